"""Several columns, one vector; one is named as a method of every module."""

import random

import pytest
import torch
from artifacts import save
from pretend import on_a_gpu

from lc_ray.errors import DataError, ModelError
from lc_ray.evaluate import quality
from lc_ray.models import batches, load
from lc_ray.models.batches import TARGET, feed
from lc_ray.predictor import Predictor
from lc_ray.spec import FusionSpec, InputSpec, ModelSpec
from lc_ray.tasks import classification, token_classification


@pytest.fixture
def inputs(tiny_base):
    text = InputSpec(column="text", base=str(tiny_base), max_length=8, optional=True)
    return [text, InputSpec(column="type", modality="tabular", optional=True)]


def rows(count, seed):
    """Whether love meets red or hate meets blue: neither column says anything alone."""
    draw, filler = random.Random(seed), ["flight", "day", "service", "it"]
    values = {"text": [], "type": []}
    labels = []
    for _ in range(count):
        word, cell = draw.choice(["love", "hate"]), draw.choice(["red", "blue"])
        values["text"].append(" ".join(draw.sample([word, *draw.sample(filler, 2)], 3)))
        values["type"].append(cell)
        labels.append("yes" if (word == "love") == (cell == "red") else "no")
    return values, labels


def fitted(inputs, kind, drop=0.0, steps=200):
    columns, task = load.modalities(inputs), classification.Task(["no", "yes"])
    torch.manual_seed(0)
    model = load.pretrained(ModelSpec(dropout=0.0, fusion=FusionSpec(kind=kind, width=32, drop=drop)), inputs, task)
    values, labels = rows(512, 0)
    known = batches.prepare(values, columns) | {TARGET: labels}
    optimizer, draw = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(512, (32,), generator=draw).tolist()
        tensors, targets = feed({k: [v[i] for i in chosen] for k, v in known.items()}, columns, task, draw, True, drop)
        loss = task.loss(model(tensors), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    on_a_gpu(model, task, {k: v[:4] for k, v in known.items()}, columns)
    return model.eval(), columns, task


@pytest.mark.parametrize("kind", ["concat", "gated", "attention"])
def test_what_two_columns_say_together_is_learned(inputs, kind, tmp_path):
    model, columns, task = fitted(inputs, kind, drop=0.1)
    predictor = Predictor(save(tmp_path / "model", model, task, inputs), 1)
    values, labels = rows(300, 1)
    held_out = batches.prepare(values, columns) | {TARGET: labels}
    both, _ = quality.measure(predictor, held_out)
    assert both["accuracy"] > 0.95
    alone = quality.ablation(predictor, held_out)
    assert alone.keys() == {"only text", "only type"}
    assert all(0.35 < metrics["accuracy"] < 0.65 for metrics in alone.values())
    assert {a["label"] for a in predictor.predict([{"text": "love it", "type": "red"}, {"text": "it hate", "type": "blue"}])} == {"yes"}
    assert predictor.predict([{"text": "love it", "type": None}])[0]["label"] in ("yes", "no")
    with pytest.raises(DataError, match="all of them are missing"):
        predictor.predict([{"text": None}])


class Seen(dict):
    """Remembers how often it was looked through."""

    times = 0

    def items(self):
        self.times += 1
        return super().items()


def test_of_many_columns_names_are_looked_through_once():
    many = [InputSpec(column=f"c{n}", modality="tabular", optional=True) for n in range(9)]
    columns, task = load.modalities(many), classification.Task(["no", "yes"])
    prepared = Seen(batches.prepare({f"c{n}": ["3", "red"] for n in range(9)}, columns))
    batch = Seen(batches.collate(prepared, columns))
    assert {name: list(parts) for name, parts in batches.parts_of(prepared, columns, 1).items()} == {
        f"c{n}": ["cell", "number", "category", "present"] for n in range(9)
    }
    load.pretrained(ModelSpec(), many, task)(batch)
    assert (prepared.times, batch.times) == (2, 1)


@pytest.mark.parametrize("kind", ["concat", "gated", "attention"])
def test_what_is_missing_cannot_be_seen(inputs, kind):
    model, columns, _ = fitted(inputs, kind, steps=1)
    known = batches.prepare({"text": ["love it", "hate service day"], "type": ["red", "blue"]}, columns)
    known["type_.present"] = [0.0, 1.0]
    other = known | {"type_.category": [17, known["type_.category"][1]]}
    with torch.no_grad():
        one, two = (model(feed(r, columns, None)[0]) for r in (known, other))
        shown = model(feed(other | {"type_.present": [1.0, 1.0]}, columns, None)[0])
    torch.testing.assert_close(one, two)
    assert not torch.allclose(shown[0], one[0])


def test_hidden_columns_are_about_as_many_as_asked_and_never_all():
    batch = {f"{name}.present": torch.ones(4000) for name in "abc"}
    hidden = torch.stack(list(batches.hide(batch, 0.5, torch.Generator().manual_seed(0)).values()), 1)
    assert hidden.sum(1).min() >= 1
    assert hidden.mean() == pytest.approx(0.5 + 0.5**3, abs=0.02)  # rows that would lose all keep all
    assert batches.hide(batch, 0.0, torch.Generator()) is batch


def test_a_rate_of_zero_freezes_an_encoder(inputs):
    still = [inputs[0].model_copy(update={"rate": 0.0}), inputs[1]]
    model = load.pretrained(ModelSpec(), still, classification.Task(["no", "yes"]))
    assert {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad} == {"text"}
    assert all(not p.requires_grad for p in model.encoders["text"].parameters())


def test_a_task_of_positions_takes_one_column(inputs):
    with pytest.raises(ModelError, match="labels each position of one input column"):
        load.pretrained(ModelSpec(), inputs, token_classification.Task(["B-x", "I-x", "O"]))
