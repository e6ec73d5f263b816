import tracemalloc
from decimal import Decimal

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from lc_ray.errors import DataError
from lc_ray.tasks.classification import Task

TASK = Task(["bad", "good", "ok"])


def test_labels_come_from_the_training_rows_sorted():
    assert Task.fit(["ok", "bad", "ok", "good"], Task.Options(), {}).labels == ["bad", "good", "ok"]


def test_one_label_is_not_enough():
    with pytest.raises(DataError, match="at least 2 labels"):
        Task.fit(["ok", "ok"], Task.Options(), {})


def test_names_of_rows_are_no_labels():
    few = Task.fit([f"row {number}" for number in range(100)], Task.Options(), {})
    assert len(few.labels) == 100
    with pytest.raises(DataError, match=r"the 1,000 training rows have 600 labels.*\n.*data\.target"):
        Task.fit([f"row {number % 600}" for number in range(1000)], Task.Options(), {})


WHOLE = [(1, "1"), (2.0, "2"), ("2.0", "2"), (b"-1.00", "-1")]
OTHER = [("ok", "ok"), (b" ok ", "ok"), (True, "True"), (2.5, "2.5"), ("v2.0", "v2.0"), (Decimal("1.50"), "1.50"), ("e\u0301", "\xe9")]


@pytest.mark.parametrize(("value", "label"), [*WHOLE, *OTHER])
def test_cells_as_labels(value, label):
    assert Task.clean(value) == label


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", b"\xff", "\ud83d", ["a"], {"a": 1}, np.array(["a"])])
def test_cells_that_are_no_label(value):
    with pytest.raises(DataError):
        Task.clean(value)


def test_an_unknown_label_names_the_nearest():
    with pytest.raises(DataError, match="did you mean 'good'"):
        TASK.encode("goood")


def test_metrics_equal_scikit_learns():
    random = np.random.default_rng(0)
    logits = random.normal(size=(500, 3)).astype(np.float32)
    targets = random.integers(0, 3, 500)
    probability = torch.from_numpy(logits).softmax(-1).numpy()
    found = TASK.metrics(logits, targets)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, logits.argmax(1)))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss(targets, probability), rel=1e-5)


def test_an_error_however_sure_costs_what_it_costs():
    assert TASK.metrics(np.array([[200, 0, 0]], np.float32), np.array([1]))["log_loss"] == 200


def test_calibration_error_by_hand():
    sure = np.log(np.array([[0.9, 0.05, 0.05]], np.float32)).repeat(10, 0)
    targets = np.array([0] * 6 + [1] * 4)  # 90% sure, right 60% of the time
    assert TASK.metrics(sure, targets)["calibration_error"] == pytest.approx(0.3, abs=1e-6)


def test_a_label_that_nobody_predicts_or_has_does_not_count():
    logits = np.array([[5, 0, 0], [5, 0, 0]], np.float32)
    assert TASK.metrics(logits, np.array([0, 0]))["macro_f1"] == 1.0


def test_balanced_labels_weigh_as_much_in_a_batch_of_one_row():
    targets = ["ok"] * 6 + ["bad"] * 2
    task = Task.fit(targets, Task.Options(class_weights="balanced"), {})
    outputs, wanted = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), task.collate([task.encode(target) for target in targets])
    whole = torch.nn.functional.cross_entropy(outputs, wanted, torch.tensor(task.weights))
    alone = [task.loss(outputs[i : i + 1], wanted[i : i + 1]) for i in range(8)]
    assert task.loss(outputs, wanted).item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.stack(alone).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_distilling_from_oneself_costs_nothing():
    outputs = torch.randn(4, 3)
    assert TASK.distill(outputs, outputs, None, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert TASK.distill(outputs, outputs.flip(1), None, 2.0).item() > 0.01


def test_decode_gives_probabilities():
    answer = TASK.decode(np.array([0.0, 2.0, 0.0], np.float32), {})
    assert answer["label"] == "good"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert list(answer["probabilities"]) == TASK.labels


def test_metrics_of_many_labels_take_little_more_memory_than_their_logits():
    task, rows, labels = Task([f"{n:04d}" for n in range(500)]), 8000, 500
    scores, encoded = np.random.default_rng(0).normal(size=(rows, labels)).astype(np.float32), np.random.default_rng(1).integers(0, labels, rows)
    expected = accuracy_score(encoded, scores.argmax(1)), f1_score(encoded, scores.argmax(1), average="macro")
    tracemalloc.start()
    found = task.metrics(list(scores), encoded.tolist())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found["accuracy"], found["macro_f1"]) == pytest.approx(expected)
    assert peak < scores.nbytes
