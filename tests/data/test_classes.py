"""Names of classes that lie beside data."""

import json

import pytest

from lc_ray import spec
from lc_ray.cluster.package import pack
from lc_ray.data import classes, prepare
from lc_ray.data.files import files
from lc_ray.errors import DataError
from lc_ray.tasks import multilabel, object_detection
from lc_ray.tasks.classification import Task

PAGE = """---
license: mit
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': airplane
          '1': bird
---
# A dataset
"""


NESTED = """---
dataset_info:
- config_name: default
  features:
  - name: label
    sequence:
    - name: bbox
      sequence: float32
    - name: category
      dtype: {class_label: {names: {'0': mask, '1': glove}}}
---
"""


@pytest.mark.parametrize(
    ("name", "content", "labels", "found"),
    [
        ("classes.txt", "cat\ndog\n\n", ["0", "1"], ["cat", "dog"]),
        ("classes.txt", "World\nSports\nBusiness\n", ["1", "2", "3"], ["World", "Sports", "Business"]),  # as AG News counts
        ("classes.txt", "World\nSports\nBusiness\n", ["1", "2"], []),  # of which it is not clear where it begins
        ("classes.txt", "cat\n", ["0", "1"], []),
        ("labels.txt", "cat\ndog\ncat\ncat\n", ["0", "2"], []),  # a label of each row
        ("labels.txt", "1 a cat\n2: dog\n", ["1", "2"], ["a cat", "dog"]),
        ("labels.txt", "0\n1\n", ["0", "1"], []),
        ("class_names.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ["n01440764", "n01443537"], ["tench, Tinca tinca", "goldfish"]),
        ("data.yaml", "train: x\nnames: {0: cat, 1: dog}\n", ["0", "1"], ["cat", "dog"]),
        ("data.yaml", "names: [cat", ["0", "1"], []),
        ("README.md", PAGE, ["0", "1"], ["airplane", "bird"]),
        ("README.md", NESTED, ["0", "1"], ["mask", "glove"]),
        ("README.md", "# Mine\n---\nnames\n", ["0", "1"], []),
        ("classes.txt", "cat\ndog\n", ["big", "small"], []),
    ],
)
@pytest.mark.parametrize("above", [False, True])
def test_names_are_found_where_it_is_clear_whose_they_are(name, content, labels, found, above, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\na,0\n")
    (tmp_path / ("." if above else "data") / name).write_text(content)
    known = classes.names(classes.candidates(files(str(tmp_path / "data" / "train.csv")), "label"), labels)
    assert list(known.values()) == found
    assert list(known) == (labels if found else [])


def test_two_lists_that_differ_name_none(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "labels.txt").write_text("0 cat\n1 dog\n")
    assert classes.names(classes.candidates(files(str(tmp_path / "a.csv")), "label"), ["0", "1"]) == {"0": "cat", "1": "dog"}
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    assert classes.names(classes.candidates(files(str(tmp_path / "a.csv")), "label"), ["0", "1"]) == {}


def test_a_model_answers_with_names_and_rows_may_have_either(tmp_path):
    task = Task(["0", "1"]).named(lambda labels: {"0": "cat", "1": "dog"})
    task = Task(**json.loads(json.dumps(task.config)))
    assert (task.labels, task.encode("1"), task.encode("dog")) == (["cat", "dog"], 1, 1)
    answer = task.decode([0.0, 9.0], {})
    assert answer["label"] == "dog"
    assert task.mistake(answer, "1") is task.mistake(answer, "dog") is None
    assert task.mistake(answer, "0") == answer["probabilities"]["dog"]
    assert Task(["0", "1"]).named(lambda labels: {}).config == {"labels": ["0", "1"]}


def test_several_labels_and_boxes_have_names_too():
    def find(labels):
        return {"0": "cat", "1": "dog"}

    several = multilabel.Task(["0", "1"]).named(find)
    several = multilabel.Task(**json.loads(json.dumps(several.config)))
    assert several.encode(["1"]).tolist() == several.encode(["dog"]).tolist() == [0, 1]
    answer = several.decode([-9.0, 9.0], {})
    assert answer["labels"] == ["dog"]
    assert several.mistake(answer, ["1"]) is None
    assert several.mistake(answer, ["0"]) > 0.9
    boxes = object_detection.Task(["0", "1"], 0.3).named(find)
    boxes = object_detection.Task(**json.loads(json.dumps(boxes.config)))
    assert (boxes.labels, boxes.threshold) == (["cat", "dog"], 0.3)
    item = {"label": "1", "box": [0, 0, 9, 9]}
    assert boxes.encode([item])["labels"].tolist() == [1]
    assert boxes.mistake({"objects": [{"label": "dog", "score": 0.9, "box": [0, 0, 9, 9]}]}, [item]) is None


def test_other_names_are_other_data(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "base").mkdir()
    data = {"train": str(tmp_path / "a.csv"), "inputs": [{"column": "text"}], "target": "label"}
    job = spec.parse({"model": {"base": str(tmp_path / "base")}, "data": data})
    before = prepare.stamps(job)
    (tmp_path / "README.md").write_text("# what is no matter of the data\n")
    assert prepare.stamps(job) == before
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert prepare.stamps(job) != before
    assert prepare.named(Task(["0", "1"]), job).labels == ["cat", "dog"]
    assert "classes.txt" in {path.name for path in pack(job).files.values()}


def test_labels_that_are_written_nearly_alike_are_told():
    (told,) = classes.alike(["Cat", "New York", "b+", "b-", "cat", "dog", "dog\u200b", "new_york"])
    assert told.startswith("labels that are written nearly alike are several labels: 'Cat' and 'cat'; 'New York' and 'new_york'; 'dog' ")
    assert classes.alike(["cat", "dog", "0", "1", "+", "-", "1.5", "15", "1-5", "a", "a-", "C", "C#", "C++"]) == []


def test_labels_that_are_made_of_others_are_told():
    (told,) = classes.alike(["action", "action|comedy", "comedy", "comedy, action", "tench, Tinca tinca", "yes|no"])
    assert "of others are labels of their own: 'action|comedy'; 'comedy, action'; for several a row there is 'multilabel'" in told


def test_a_list_of_labels_names_the_task_for_it():
    with pytest.raises(DataError, match="not a label but list; of several labels a row there is the task 'multilabel'"):
        Task.clean(["cat", "dog"])
