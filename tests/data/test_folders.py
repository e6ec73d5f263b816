"""Folders of which each file is a row, and what lies beside it."""

import io

import pytest
from PIL import Image

from lc_ray.data import boxes, read
from lc_ray.data.files import files
from lc_ray.errors import DataError
from lc_ray.tasks.object_detection import Task

VOC = """<annotation><filename>1.jpg</filename><size><width>60</width><height>40</height></size>
<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>14</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part></object></annotation>"""


def put(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(**saved):
    out = io.BytesIO()
    Image.new("RGB", (60, 40)).save(out, "JPEG", **saved)
    return out.getvalue()


def rows(source, wanted, shards=1, size=2):
    (file,) = files(str(source))
    reader = read.Reader(file)
    reader.require(wanted)
    return [row for shard in range(shards) for chunk in reader.rows(wanted, shard, shards, size) for row in chunk]


def test_texts_in_a_subfolder_per_label(tmp_path):
    """As IMDB's reviews, and, without an ending, the posts of 20 newsgroups."""
    for name, text in (("pos/0_9.txt", "good\n"), ("pos/1_8.txt", "love"), ("neg/0_1.txt", b"caf\xe9"), ("urls.txt", "none"), ("bag.feat", "0")):
        put(tmp_path / "reviews" / name, text)
    for uri in ("", "file://"):
        found = rows(f"{uri}{tmp_path}/reviews", ["text", "label"], shards=2)
        assert {(row["text"], row["label"]) for row in found} == {(b"good\n", "pos"), (b"love", "pos"), (b"caf\xe9", "neg")}
        assert sorted(row["_row"] for row in found) == [0, 1, 2]
    put(tmp_path / "news" / "sci.space" / "10", "From: a")
    put(tmp_path / "news" / "alt.atheism" / "20", "From: b")
    posts = rows(tmp_path / "news", ["text", "label"])
    assert [(row["label"], row["text"]) for row in posts] == [("alt.atheism", b"From: b"), ("sci.space", b"From: a")]
    for name in ("train/pos/1.txt", "train/unsup/1.txt", "train/urls_pos.txt", "test/pos/1.txt", "test/urls_pos.txt", "imdb.vocab", "README"):
        put(tmp_path / "whole" / name, "a")
    with pytest.raises(DataError, match="holds several splits: test, train"):
        files(str(tmp_path / "whole"))
    assert [row["label"] for row in rows(tmp_path / "whole" / "train", ["text", "label"])] == ["pos"]
    assert len(rows(tmp_path / "whole" / "train", ["text"])) == 2, "what has no label is a text as any other"
    put(tmp_path / "books" / "one.txt", "once\nupon")
    assert rows(tmp_path / "books", ["text"]) == [{"text": b"once\nupon", "_row": 0}]
    with pytest.raises(DataError, match="no column 'label'; there are: text"):
        rows(tmp_path / "books", ["text", "label"])


def test_a_folder_that_has_all_of_them_is_no_label(tmp_path):
    """As archives are unpacked: PetImages/PetImages/Cat."""
    for name in ("PetImages/Cat/1.png", "PetImages/Cat/more/2.png", "PetImages/Dog/1.png"):
        put(tmp_path / "pets" / name)
        put(tmp_path / "cats" / name.replace("Dog", "Cat"))
        put(tmp_path / "mixed" / name.replace("Dog/", ""))
    assert [row["label"] for row in rows(tmp_path / "pets", ["image", "label"])] == ["Cat", "Cat", "Dog"]
    for alike in ("cats", "mixed"):
        assert {row["label"] for row in rows(tmp_path / alike, ["image", "label"])} == {"PetImages"}


def test_no_picture_that_can_be_read_is_passed_over(tmp_path):
    names = {"PNG": "1.png", "JPEG": "2.JPG", "JPEG2000": "3.jp2", "TGA": "4.tga", "ICO": "5.ico", "PPM": "6.pnm", "TIFF": "7.tif", "AVIF": "8.avif"}
    (tmp_path / "all").mkdir()
    for form, name in names.items():
        Image.new("RGB", (16, 16)).save(tmp_path / "all" / name, form)
    assert [row["image"] for row in rows(tmp_path / "all", ["image"])] == [f"all/{name}" for name in names.values()]


def test_what_is_said_lies_beside_sounds_and_captions_beside_pictures(tmp_path):
    """As in LibriSpeech, and in folders that diffusion models are taught with."""
    for name in ("84/1/84-1-0.flac", "84/1/84-1-1.flac"):
        put(tmp_path / "clean" / name)
    put(tmp_path / "clean" / "84" / "1" / "84-1.trans.txt", "84-1-0 GOOD DAY\n84-1-1 BAD DAY\n")
    found = rows(tmp_path / "clean", ["audio", "text"])
    assert [(row["audio"], row["text"]) for row in found] == [("clean/84/1/84-1-0.flac", b"GOOD DAY"), ("clean/84/1/84-1-1.flac", b"BAD DAY")]
    for name, content in (("1.png", b""), ("2.png", b""), ("1.txt", "a dog"), ("notes.txt", "none")):
        put(tmp_path / "dogs" / name, content)
    assert [(row["image"], row["text"]) for row in rows(tmp_path / "dogs", ["image", "text"])] == [("dogs/1.png", b"a dog"), ("dogs/2.png", None)]
    put(tmp_path / "plain" / "1.png")
    with pytest.raises(DataError, match=r"no column 'label'; there are: image\n.*labels are names of subfolders, or"):
        rows(tmp_path / "plain", ["image", "label"])


def test_boxes_of_pascal_voc(tmp_path):
    for name, label in (("1", "cat"), ("2", "dog")):
        put(tmp_path / "VOC" / "JPEGImages" / f"{name}.jpg", picture())
        put(tmp_path / "VOC" / "Annotations" / f"{name}.xml", VOC.format(label))
    put(tmp_path / "VOC" / "JPEGImages" / "3.jpg", picture())
    put(tmp_path / "VOC" / "Annotations" / "3.xml", "<annotation")
    one, two, three = rows(tmp_path / "VOC" / "JPEGImages", ["image", "annotations"])
    assert (one["image"], Task.clean(one["annotations"])) == ("JPEGImages/1.jpg", [{"label": "cat", "box": [1, 2, 11, 14], "picture_size": [60, 40]}])
    assert two["annotations"][0]["label"] == "dog"
    assert three["_error"] == "not Pascal VOC's XML"
    (file,) = files(str(tmp_path / "VOC" / "JPEGImages"))
    before = file.stamp()
    put(tmp_path / "VOC" / "Annotations" / "3.xml", VOC.format("cat"))
    assert file.stamp() != before, "other boxes are other data"


@pytest.mark.parametrize("layout", ["yolo/{}/train/{}", "yolo/train/{}/{}"])
def test_boxes_of_yolo(tmp_path, layout):
    turned = Image.Exif()
    turned[0x0112] = 6
    texts = ["1 0.5 0.5 0.2 0.5\n", "0 0.1 0.1 0.5 0.1 0.5 0.6\n", "", None, "a b", "2 0.5 0.5 1 1 0.9"]
    for name, content in zip("123456", texts, strict=True):
        put(tmp_path / layout.format("images", f"{name}.jpg"), picture(**({"exif": turned} if name == "6" else {})))
        if content is not None:
            put(tmp_path / layout.format("labels", f"{name}.txt"), content)
    put(tmp_path / "yolo" / "data.yaml", "train: images/train\nnames: {0: cat, 1: dog}\n")
    folder = (tmp_path / layout.format("images", "1.jpg")).parent
    found = rows(folder, ["image", "annotations"])
    boxes = [Task.clean(row["annotations"]) if "_error" not in row else row["_error"] for row in found]
    assert boxes[:2] == [[{"label": "dog", "box": [24, 10, 36, 30]}], [{"label": "cat", "box": [6, 4, 30, 24]}]]
    assert boxes[2:] == [[], [], "not YOLO's boxes beside a picture", [{"label": "2", "box": [0, 0, 40, 60]}]]
    (file,) = files(str(folder))
    before = file.stamp()
    put(tmp_path / "yolo" / "data.yaml", "train: images/train\nnames: {0: cat, 1: hound}\n")
    assert file.stamp() != before, "other names are other data"


def test_a_list_of_classes_that_is_no_yaml_is_not_one():
    files = {"/yolo/images/data.yaml": b"names: [cat", "/yolo/classes.txt": b"cat\ndog\n"}
    assert boxes.names("/yolo/images", files.get) == {"0": "cat", "1": "dog"}
