"""What goes with a job, and by which names the cluster finds it."""

import json
import zipfile

import pytest

from lc_ray import spec
from lc_ray.cluster import package
from lc_ray.cluster.package import pack
from lc_ray.errors import ClusterError, DataError, ModelError
from lc_ray.section import override


@pytest.fixture
def job(tiny_job):
    def job(**values):
        return spec.parse(override(tiny_job, values))

    return job


def test_the_data_and_the_model_go_along_and_nothing_else(job, tiny_base, tiny_rows, tmp_path):
    (tiny_base / "pytorch_model.bin").write_bytes(b"a pickle")
    packed = pack(job())
    (tiny_base / "pytorch_model.bin").unlink()
    names = {name.partition("/")[2] for name in packed.files}
    assert tiny_rows.name in names
    assert {f"{tiny_base.name}/config.json", f"{tiny_base.name}/model.safetensors"} < names
    assert not [name for name in names if name.endswith(".bin")]

    packed.write(tmp_path / "job.zip", "/mnt/runs")
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        there = json.loads(archive.read("job.json"))
        root = f"/mnt/runs/inputs/{packed.digest}/"
        for path in (there["data"]["train"], there["model"]["base"] + "/config.json"):
            assert archive.read("files/" + path.removeprefix(root))
    assert there["storage"] == "/mnt/runs"


def test_the_same_job_has_the_same_key_wherever_it_is_kept(job, tiny_rows, tmp_path):
    copy = tmp_path / "elsewhere" / tiny_rows.name
    copy.parent.mkdir()
    copy.write_bytes(tiny_rows.read_bytes())
    first, moved = pack(job()), pack(job(**{"data.train": str(copy), "storage": "other"}))
    assert moved.key("1") == first.key("1") != first.key("2")
    first.write(tmp_path / "a.zip", "/s")
    moved.write(tmp_path / "b.zip", "/s")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    copy.write_text(copy.read_text("utf-8").replace("love", "adore"), "utf-8")
    assert pack(job(**{"data.train": str(copy)})).key("1") != first.key("1")
    assert pack(job(**{"train.epochs": 1})).key("1") != first.key("1")


def test_a_file_that_is_changed_before_it_is_sent_is_not_sent_under_its_old_name(job, tiny_rows, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_bytes(tiny_rows.read_bytes())
    packed = pack(job(**{"data.train": str(rows)}))
    rows.write_text(rows.read_text("utf-8").replace("love", "evol"), "utf-8")
    with pytest.raises(DataError, match="changed while it was submitted"):
        packed.write(tmp_path / "job.zip", "/s")


def test_what_is_on_the_cluster_or_anywhere_is_left_where_it_is(job, tiny_rows):
    packed = pack(job(**{"data.train": "/mnt/there/rows.csv", "data.validation": "s3://bucket/rows.csv", "model.base": "package:carrier/model"}))
    assert packed.files == packed.names == {}
    assert packed.there == ("/mnt/there/rows.csv",)
    assert packed.modules == ("carrier",)
    assert packed.job_at("/s").data.validation == "s3://bucket/rows.csv"
    mounted = pack(job(), shared=str(tiny_rows.parent))
    assert mounted.there == (str(tiny_rows),)
    assert "data.train" not in mounted.names


@pytest.mark.parametrize("where", ["{}", "photos/{}.png"])
def test_pictures_that_cells_name_go_along(job, tmp_path, where):
    (tmp_path / "photos").mkdir()
    for name in "abc":
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"picture")
    cells = [f"photos/{name}.png" if where == "{}" else name for name in "ab"]
    (tmp_path / "rows.csv").write_text("photo,label\n" + "".join(f"{cell},x\n" for cell in cells), "utf-8")
    inputs = [{"column": "photo", "modality": "image", "base": "resnet18", "path": where}]
    packed = pack(job(**{"data.train": str(tmp_path / "rows.csv"), "data.inputs": inputs}))
    assert {"0/rows.csv", "0/photos/a.png", "0/photos/b.png"} <= set(packed.files)
    assert "0/photos/c.png" not in packed.files


def test_texts_are_not_taken_for_names_of_files(job, tmp_path):
    (tmp_path / "positive").write_text("a file beside the rows")
    (tmp_path / "rows.csv").write_text(f"text,label\na,positive\nb,{'long ' * 100}\nc,~10 items\n", "utf-8")
    packed = pack(job(**{"data.train": str(tmp_path / "rows.csv")}))
    assert [name for name in packed.files if name.startswith("0/")] == ["0/rows.csv"]


def test_sounds_that_are_targets_go_along_and_what_names_none_stays(job, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "rows.csv").write_text(f"text,said\na,a.wav\nb,~b.wav\nc,{'c' * 300}\n", "utf-8")
    packed = pack(job(**{"data.train": str(tmp_path / "rows.csv"), "data.target": "said", "task.kind": "text_to_speech"}))
    assert [name for name in packed.files if name.startswith("0/")] == ["0/rows.csv", "0/a.wav"]


def test_files_with_any_names_are_found_in_a_bucket(job, tmp_path):
    (tmp_path / "50% what?.csv").write_text("text,label\na,x\n")
    packed = pack(job(**{"data.train": str(tmp_path / "50% what?.csv")}))
    assert packed.job_at("s3://b/runs").data.train == f"s3://b/runs/inputs/{packed.digest}/0/50%25 what%3F.csv"
    assert packed.job_at("/mnt/runs").data.train == f"/mnt/runs/inputs/{packed.digest}/0/50% what?.csv"


def test_a_folder_per_label_goes_along(job, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").write_bytes(b"picture")
    inputs = [{"column": "image", "modality": "image", "base": "resnet18"}]
    packed = pack(job(**{"data.train": str(tmp_path / "pets"), "data.inputs": inputs}))
    assert {"0/pets/cat/1.png", "0/pets/dog/1.png"} <= set(packed.files)
    assert packed.names["data.train"] == "0/pets"


def test_some_files_of_a_folder_go_along(job, tmp_path):
    for name in ("train-0.csv", "train-1.csv", "test-0.csv"):
        (tmp_path / name).write_text("text,label\na,x\n")
    packed = pack(job(**{"data.train": f"{tmp_path}/train-*.csv"}))
    assert {name for name in packed.files if name.endswith(".csv")} == {"0/train-0.csv", "0/train-1.csv"}
    assert packed.names["data.train"] == "0/train-*.csv"


def test_what_lies_beside_the_files_of_a_folder_goes_along(job, tmp_path):
    for name in ("clips/a.wav", "clips/a.txt", "clips/b.wav", "clips/notes.txt", "images/1.png", "labels/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0 0.5 0.5 1 1")
    inputs = [{"column": "audio", "modality": "audio", "base": "b"}]
    packed = pack(job(**{"data.train": str(tmp_path / "clips"), "data.inputs": inputs, "data.target": "text"}))
    assert {name for name in packed.files if name.startswith("0/")} == {"0/clips/a.wav", "0/clips/a.txt", "0/clips/b.wav"}
    inputs = [{"column": "image", "modality": "picture", "base": "b"}]
    with pytest.raises(DataError, match=r"labels/1\.txt' is not below the data file's folder"):
        pack(job(**{"data.train": str(tmp_path / "images"), "data.inputs": inputs, "data.target": "annotations"}))


def test_librispeechs_transcripts_go_along(job, tmp_path):
    for name in ("1-2-0001.flac", "1-2.trans.txt"):
        (tmp_path / "clean" / "1" / "2").mkdir(parents=True, exist_ok=True)
        (tmp_path / "clean" / "1" / "2" / name).write_bytes(b"1-2-0001 GOOD DAY")
    inputs = [{"column": "audio", "modality": "audio", "base": "b"}]
    packed = pack(job(**{"data.train": str(tmp_path / "clean"), "data.inputs": inputs, "data.target": "text"}))
    assert {name for name in packed.files if name.startswith("0/")} == {"0/clean/1/2/1-2-0001.flac", "0/clean/1/2/1-2.trans.txt"}


def test_files_outside_the_datas_folder_are_refused(job, tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("photo,label\n../a.png,x\n", "utf-8")
    inputs = [{"column": "photo", "modality": "image", "base": "resnet18"}]
    with pytest.raises(DataError, match="row 0, column 'photo'"):
        pack(job(**{"data.train": str(tmp_path / "data" / "rows.csv"), "data.inputs": inputs}))


def test_mistakes_are_found_before_anything_is_sent(job):
    with pytest.raises(DataError, match="no such file"):
        pack(job(**{"data.train": "nothing.csv"}))
    with pytest.raises(DataError, match="no column 'stars'"):
        pack(job(**{"data.target": "stars"}))
    with pytest.raises(DataError, match="no column 'speaker'"):
        pack(job(**{"data.split": "speaker"}))
    for folder in ("./nothing", "~nobody-of-this-name/nothing"):
        with pytest.raises(ModelError, match="nothing: no such file or folder"):
            pack(job(**{"model.base": folder}))


def test_too_much_for_an_upload(job, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "LARGEST", 2000)
    with pytest.raises(ClusterError, match=r"largest is .*\n.*a folder that the cluster's nodes mount"):
        pack(job()).write(tmp_path / "job.zip", "/s")
    monkeypatch.setattr(package, "LARGEST", 20)
    with pytest.raises(ClusterError, match="no more than 20 B"):
        pack(job())


def test_a_path_through_a_link_or_its_parent_is_the_file_it_leads_to(job, tiny_rows, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tiny_rows.parent)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    known = pack(job()).key("1")
    assert pack(job(**{"data.train": f"../link/{tiny_rows.name}"})).key("1") == known
