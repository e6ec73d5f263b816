"""Clusters by name."""

import re
from pathlib import Path

import pytest

from lc_ray.cluster import clusters
from lc_ray.cluster.jobs import Jobs
from lc_ray.errors import ClusterError


@pytest.fixture
def named(tmp_path, monkeypatch):
    """named(text of clusters.yaml)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)

    def write(text):
        clusters.config().parent.mkdir(exist_ok=True)
        clusters.config().write_text(text, "utf-8")

    return write


def test_by_name_by_address_and_the_only_one(named):
    assert clusters.find(None, "http://10.0.0.1:8265").address == "http://10.0.0.1:8265"
    named("office: {address: 'https://ray.office:8265', storage: /mnt/runs}\n")
    assert clusters.find("office", None) == clusters.find(None, None)
    assert clusters.find(None, None).storage == "/mnt/runs"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", None, "which cluster"),
        ("a: {address: 'http://a'}\nb: {address: 'http://b'}\n", None, "named: a, b"),
        ("a: {address: 'http://a'}\n", "c", "no cluster is named 'c'; named: a"),
        ("a: {address: 'http://a'}\na: {address: 'http://b'}\n", "a", "can't be read: 'a' is there twice"),
        ("a: {adress: 'http://a'}\n", "a", "did you mean 'address'"),
        ("a: {address: 'ray://a:10001'}\n", "a", "address.*for example https://ray.example.com:8265"),
        ("", "", "no cluster is named ''"),
        ("a: {address: 'http://a', storage: runs}\n", "a", "storage"),
        ("- a\n", "a", "mapping"),
        ("a: {\n", "a", "can't be read"),
    ],
)
def test_mistakes(named, text, name, message):
    named(text)
    with pytest.raises(ClusterError, match=message):
        clusters.find(name, None)


def test_name_and_address(named):
    with pytest.raises(ClusterError, match="either"):
        clusters.find("a", "http://a:8265")


def test_the_token_is_looked_for_where_ray_does(named, tmp_path, monkeypatch):
    cluster = clusters.Cluster(address="http://a:8265")
    assert cluster.token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from home\n", "utf-8")
    assert cluster.token() == "from home"
    (tmp_path / "other").write_text("from path", "utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert cluster.token() == "from path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from variable")
    assert cluster.token() == "from variable"
    own = cluster.model_copy(update={"token_file": str(tmp_path / "other")})
    assert own.token() == "from path"
    with pytest.raises(ClusterError, match="token_file"):
        own.model_copy(update={"token_file": str(tmp_path / "nothing")}).token()


@pytest.mark.parametrize("token", ["two\nlines", "tökens"])
def test_a_token_that_no_header_carries_is_refused_and_not_told(named, monkeypatch, token):
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN: the token has other characters") as raised:
        clusters.Cluster(address="http://a:8265").token()
    assert token not in str(raised.value)


def test_an_authority_that_is_none(named, tmp_path):
    for text in (None, "no certificate"):
        if text:
            (tmp_path / "ca.pem").write_text(text, "utf-8")
        with pytest.raises(ClusterError, match=r"ca\.pem: no PEM file of certificates"):
            Jobs(clusters.Cluster(address="https://127.0.0.1:1", ca=str(tmp_path / "ca.pem")))


def test_the_readmes_example_is_valid(named):
    readme = Path("README.md").read_text("utf-8")
    named(re.search(r"```yaml\n(office:.*?)```", readme, re.DOTALL)[1])
    assert all(clusters.find(name, None).storage for name in ("office", "aws"))
