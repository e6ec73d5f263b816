"""Tasks whose tests train by a loop of their own, and a pruner, on a GPU that is pretended; and that what would fail on one is found so."""

import pytest
import torch
from pretend import CUDA, Pretended, mark, on_a_gpu

from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.prune.structured import Pruner
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks import classification, masked_language_modeling, multilabel, regression, token_classification

TEXTS = ["good day", "the worst flight ever", "love it", "so late"]
TARGETS = {
    classification: ["a", "b", "b", "a"],
    multilabel: [["a"], [], ["a", "b"], ["b"]],
    regression: [1.0, 2.0, 3.0, 5.0],
    token_classification: [["O"] * len(text.split()) for text in TEXTS[:-1]] + [["B-x", "O"]],
    masked_language_modeling: [None] * 4,
}


@pytest.fixture
def made(tiny_base):
    """made(kind) → a model of a kind of task, the task, four rows, and the columns' modalities."""

    def made(kind):
        modality = "words" if kind is token_classification else "text"
        inputs = [InputSpec(column="text", base=str(tiny_base), max_length=16, modality=modality, optional=False)]
        columns, weighs = load.modalities(inputs), "class_weights" in kind.Task.Options.model_fields
        options = kind.Task.Options(**({"class_weights": "balanced"} if weighs else {}))
        task = kind.Task.fit(iter(TARGETS[kind]), options, columns).bind(columns)
        values = {"text": [columns["text"].decode(text) for text in TEXTS]}
        return load.pretrained(ModelSpec(), inputs, task), task, prepare(values, columns) | {TARGET: TARGETS[kind]}, columns

    return made


@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_all_is_where_the_model_is(made, kind):
    on_a_gpu(*made(kind))


def test_what_is_not_is_found(made, monkeypatch):
    model, task, *others = made(classification)
    monkeypatch.setattr(task, "loss", lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets, torch.ones(2)))
    with pytest.raises(RuntimeError, match=r"same device: .* cpu \(2,\)"):
        on_a_gpu(model, task, *others)


def test_units_are_scored_and_removed(made):
    model, task, rows, columns = made(classification)
    with Pretended():
        batch, targets = mark(feed(rows, columns, task))
        pruner = Pruner(model.cuda(), batch, model.keep)
        task.loss(model(batch), targets).backward()
        pruner.observe()
        before = load.parameters(model)
        pruner.remove(0.5)
        assert load.parameters(model) < before
        assert model(batch).device == CUDA
