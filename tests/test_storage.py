"""Files and folders of a mounted file system and of a bucket, which behave alike."""

import pickle
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import room

import lc_ray
from lc_ray import artifact, storage
from lc_ray.cluster import probe
from lc_ray.errors import ArtifactError, DataError
from lc_ray.models import load
from lc_ray.storage import StoragePath, storage_path, system_of


@pytest.fixture(params=["", "file://", "s3://"])
def folder(request, tmp_path):
    if request.param != "s3://":
        return StoragePath(f"{request.param}{tmp_path}/some räume")
    request.getfixturevalue("aws")
    return StoragePath("s3://models/some räume")


def test_a_file_is_written_read_and_removed(folder):
    file = folder / "deep" / "in" / "it.json"
    assert not file.exists()
    assert folder.files() == {}
    file.write_text('{"é": 1}')
    file.write_text('{"é": 2}')
    assert pickle.loads(pickle.dumps(file)).read_text() == '{"é": 2}'
    assert (file.name, file.parent.name) == ("it.json", "in")
    assert {name: size for name, (size, _) in folder.files().items()} == {"deep/in/it.json": 9}
    with file.open() as opened:
        assert opened.read_at(3, 6) == b" 2}"
    file.remove()
    file.remove()
    assert not file.exists()


def test_a_file_for_which_there_is_no_room_is_named_and_not_there(folder):
    if folder.path.startswith("s3://"):
        pytest.skip("a bucket has its own errors")
    (file := folder / "it.bin").write_text("before")
    with room(1024), pytest.raises(OSError, match="too large") as refused, file.whole() as out:
        out.write(bytes(2**16))
    assert refused.value.filename == system_of(file.path)[1]
    assert file.read_text() == "before"
    assert list(folder.files()) == ["it.bin"]


def test_whether_a_folder_can_be_written_is_tried_and_leaves_nothing(folder):
    place = folder / "new" / "runs"
    assert place.refused() == ""
    assert folder.files() == {}
    (folder / "file").write_text("")
    if not folder.path.startswith("s3://"):
        assert (folder / "file" / "runs").refused() == "Not a directory"


@pytest.mark.parametrize(("place", "why"), [("/proc/1/runs", "No such file"), ("ftp://there/runs", "Unrecognized"), ("s3://nobodys/runs", "nobodys")])
def test_why_a_folder_can_not_be_written(aws, place, why):
    assert why in storage_path(place).refused()


ODD = ["a#1.txt", "a#2.txt", "50%.txt", "b%20c.txt", "what?.txt", "é [1] & 'x'.txt"]


def test_files_have_any_names(folder, tmp_path):
    for name in ODD:
        (tmp_path / name).write_text(name)
    folder.complete(tmp_path)
    assert set(ODD) <= set(folder.files())
    assert [(folder / name).read_text() for name in ODD] == ODD
    folder.get(tmp_path / "back")
    assert [(tmp_path / "back" / name).read_text() for name in ODD] == ODD


@pytest.mark.parametrize("name", ["../../models/out.txt", "in/../../../models/out.txt", "/tmp/out.txt"])
def test_no_name_in_a_bucket_leads_out_of_the_folder_that_it_is_copied_to(aws, tmp_path, monkeypatch, name):
    import boto3
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for key in ("model/manifest.json", "out.txt", f"model/{name}"):  # the second is what the last may be read as
        boto3.client("s3").put_object(Bucket="models", Key=key, Body=b"{}")
    with pytest.raises(DataError, match="leads out of the folder"):
        artifact.read("s3://models/model")
    with pytest.raises(DataError, match="leads out of the folder"):
        storage_path("s3://models/model").get(tmp_path / "copy" / "model")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_others_find_a_file_by_its_name(folder):
    file = folder / "a#1.txt"
    file.write_text("there")
    given = pickle.loads(pickle.dumps(file.of_ray))
    assert given["storage_filesystem"].open_input_file(given["storage_path"]).read() == b"there"
    assert probe._exists(str(file))


def test_a_folder_is_filled_brought_here_and_removed(folder):
    made = folder / "model"
    with made.filled(last="manifest.json") as here:
        (here / "engine").mkdir(parents=True)
        for name in ("manifest.json", "engine/weights.bin", "z.txt"):
            (here / name).write_text(name)
    times = {name: time for name, (_, time) in made.files().items()}
    assert made.exists()
    assert times.keys() == {"manifest.json", "engine/weights.bin", "z.txt"}
    if made.remote:
        assert times["manifest.json"] == max(times.values())
    with made.here() as here:
        assert (here / "engine" / "weights.bin").read_text() == "engine/weights.bin"
    assert here.exists() != made.remote
    made.remove()
    assert not made.exists()


def test_a_folder_is_completed_and_what_is_there_stays_as_old_as_it_was(folder, tmp_path):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    for name in ("same.txt", "longer.txt", "deep/new.txt"):
        (tmp_path / "here" / name).write_text(name)
    folder.put(tmp_path / "here", ["same.txt"])
    (folder / "longer.txt").write_text("x")
    before = folder.files()["same.txt"]
    folder.complete(tmp_path / "here")
    assert folder.files()["same.txt"] == before
    assert {name: (folder / name).read_text() for name in folder.files()} == {name: name for name in ("same.txt", "longer.txt", "deep/new.txt")}


def test_what_was_not_written_whole_is_not_there(folder):
    file = folder / "runs" / "record.json"
    file.write_text("before")

    def cut_off():
        with file.whole() as out:
            out.write(b"aft")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert file.read_text() == "before"
    assert file.parent.files().keys() == {"record.json"}


def test_no_signal_cuts_off_what_is_copied_to_a_bucket(aws, tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("0123456789")
    copy = shutil.copyfileobj

    def stopped(content, out, size):
        out.write(content.read(5))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        copy(content, out, size)

    monkeypatch.setattr(shutil, "copyfileobj", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background does not have
    try:
        with pytest.raises(KeyboardInterrupt):
            StoragePath("s3://models/run").put(tmp_path, ["weights"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert StoragePath("s3://models/run/weights").read_text() == "0123456789"


def test_paths_as_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_path("runs").path == f"{tmp_path}/runs"
    assert storage_path("s3://bucket/runs/").path == "s3://bucket/runs"
    assert system_of("file:///")[1] == "/"
    with pytest.raises(DataError, match="can't be opened"):
        StoragePath("nothing://there").exists()


def test_a_busy_store_is_waited_for_by_ray_too():
    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            time.sleep(4)
            self.send_response(200)
            self.send_header("content-length", "5")
            self.end_headers()

    asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
        given = pickle.loads(pickle.dumps(StoragePath(f"s3://a:b@models/record.json?{place}").of_ray))
        assert given["storage_filesystem"].get_file_info(given["storage_path"]).size == 5
        server.shutdown()
    assert asked == ["/models/record.json"]


def test_what_hadoop_needs_is_told():
    with pytest.raises(DataError, match=r"ARROW_LIBHDFS_DIR(.|\n)*CLASSPATH"):
        StoragePath("hdfs://127.0.0.1:1/runs").exists()


def test_a_base_model_comes_from_a_bucket(aws, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    bucket = StoragePath("s3://models/bases/tiny")
    bucket.put(tiny_base, [file.name for file in tiny_base.iterdir()])
    (bucket / "pytorch_model.bin").write_text("a pickle")
    found = load.find("s3://models/bases/tiny/")
    assert {file.name for file in load.Path(found).iterdir()} == {file.name for file in tiny_base.iterdir()}
    with pytest.raises(load.ModelError, match="no model there"):
        load.find("s3://models/bases/other")


def test_what_is_no_artifact_is_not_fetched(aws, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (StoragePath("s3://models/runs/tiny") / "model" / artifact.MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="s3://models/runs/tiny: not an artifact"):
        artifact.read("s3://models/runs/tiny")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=r"^s3://models/runs/tiny/model: manifest\.json can't be read"):
        artifact.read("s3://models/runs/tiny/model")


def test_an_artifact_comes_from_a_bucket(aws, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    here, bucket = artifact.read(tiny_artifact), StoragePath("s3://models/runs/tiny/model")
    bucket.put(here.path, [*here.manifest.files, artifact.MANIFEST])
    found = artifact.read(str(bucket))
    assert (found.digest, found.place) == (here.digest, str(bucket))
    assert lc_ray.load(str(bucket)).predict(["i love it"]) == lc_ray.load(tiny_artifact).predict(["i love it"])
    assert artifact.read(str(bucket)).path == found.path
    (bucket / "model.safetensors").write_text("other weights")
    with pytest.raises(ArtifactError, match="was altered"):
        artifact.read(str(bucket))
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.read("s3://models/nothing")


def test_what_a_record_tells_of_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, flushed = [], storage._to_disk

    def watch(path):
        seen.append((path.parent, path.name, sorted(one.name for one in path.parent.iterdir())))
        flushed(path)

    monkeypatch.setattr(storage, "_to_disk", watch)
    storage_path(tmp_path / "record.json").write_text("{}")
    with storage.whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("x")
    (parents, partials, there) = zip(*seen, strict=True)
    assert parents == (tmp_path, tmp_path)
    assert there == ([partials[0]], sorted([partials[1], "record.json"]))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "record.json"]
