import pytest

from lc_ray.errors import ServeError
from lc_ray.serve import auth


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    return tmp_path


def test_key_is_made_once_and_for_its_owner_only(home):
    assert auth.find() is None
    key = auth.ensure()
    file = home / "lc_ray" / "api_key"
    assert len(key) >= 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert auth.ensure() == auth.find() == key == file.read_text().strip()
    assert [f.name for f in file.parent.iterdir()] == ["api_key"]


def test_variable_goes_first(home, monkeypatch):
    auth.ensure()
    monkeypatch.setenv(auth.VARIABLE, "mine")
    assert auth.ensure() == auth.find() == "mine"
    assert auth.place() == "$LC_RAY_API_KEY"


def test_key_file_is_below_home_by_default(home, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert auth.key_file() == home / ".config" / "lc_ray" / "api_key"


def test_unwritable_folder_is_named(home):
    (home / "lc_ray").write_text("a file in the way")
    with pytest.raises(ServeError, match="api_key"):
        auth.ensure()


def test_a_key_that_can_not_be_written_leaves_no_file(home, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")  # of a file system without links

    monkeypatch.setattr(auth.os, "link", refuse)
    with pytest.raises(ServeError, match="Operation not permitted"):
        auth.ensure()
    assert list((home / "lc_ray").iterdir()) == []


def test_empty_key_file_is_an_error(home):
    (home / "lc_ray").mkdir()
    (home / "lc_ray" / "api_key").write_text("\n")
    with pytest.raises(ServeError, match="empty"):
        auth.ensure()


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("Bearer one", True),
        ("bearer two", True),
        ("Bearer three", False),
        ("Bearer ", False),
        ("Basic one", False),
        ("one", False),
        ("", False),
        (None, False),
        ("Bearer ü€", False),
    ],
)
def test_allowed(header, answer):
    found = auth.match(header, [auth.digest("one"), auth.digest("two")])
    assert found == (auth.digest(header.split()[1]) if answer else None)


def test_no_keys_means_open():
    assert auth.match(None, []) == ""


def test_digest_hides_the_key():
    assert "secret" not in auth.digest("secret")
    assert len(auth.digest("secret")) == 64


def test_keys_of_a_file(tmp_path):
    (tmp_path / "keys").write_text("# of the team\n\nanna: one:two\n bert :three\n")
    assert auth.read(tmp_path / "keys") == {"anna": "one:two", "bert": "three"}
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf# of the team\r\nanna:one\r\n")  # as Windows' editor writes it
    assert auth.read(tmp_path / "keys") == {"anna": "one"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no keys"), ("anna\n", "line 1"), ("anna:hidden\n:hidden", "line 2"), ("a:hidden\na:y", "twice"), ("a:hidden\nb:hidden", "twice")],
)
def test_files_that_are_none(tmp_path, text, message):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ServeError, match=message) as caught:
        auth.read(tmp_path / "keys")
    assert "hidden" not in str(caught.value)


def test_a_key_of_the_environment_may_end_in_a_new_line(home, monkeypatch):
    monkeypatch.setenv(auth.VARIABLE, " one\n")
    assert auth.find() == "one"
    monkeypatch.setenv(auth.VARIABLE, "\n")
    assert auth.find() is None


def test_keys_that_no_header_can_carry(home, monkeypatch, tmp_path):
    monkeypatch.setenv(auth.VARIABLE, "schlüssel")
    with pytest.raises(ServeError, match="printable ASCII"):
        auth.find()
    (tmp_path / "keys").write_text("anna:schlüssel", "utf-8")
    with pytest.raises(ServeError, match="line 1"):
        auth.read(tmp_path / "keys")


def test_no_file_of_keys(tmp_path):
    with pytest.raises(ServeError, match="can't be read"):
        auth.read(tmp_path / "keys")
