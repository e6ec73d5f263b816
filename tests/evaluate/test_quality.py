"""What is told of a model's answers to held-out rows."""

import weakref
from types import SimpleNamespace

from lc_ray.evaluate import quality
from lc_ray.models.batches import TARGET
from lc_ray.spec import InputSpec


class Answer(dict):
    """A dict to which references can be weak."""


def test_mistakes_are_the_surest_and_no_answers_are_kept():
    made, most = [], []

    def decode(output, parts):
        made.append(weakref.ref(answer := Answer(label="a", probabilities={"a": output})))
        most.append(sum(one() is not None for one in made))
        return answer

    def mistake(answer, target):
        return answer["probabilities"]["a"] if target != "a" else None

    task = SimpleNamespace(DECODES_SCORES=True, metrics=lambda *_: {}, encode=str, decode=decode, mistake=mistake)
    predictor = SimpleNamespace(task=task, columns={}, scores=lambda rows: [n % 10 / 10 for n in range(100)])
    _, found = quality.measure(predictor, {TARGET: ["ab"[n % 2] for n in range(100)]}, mistakes=12)
    assert [wrong["sure"] for wrong in found] == [0.9] * 10 + [0.7] * 2
    assert all((wrong["row"], wrong["target"], wrong["predicted"]) == ({}, "b", "a") for wrong in found)
    assert max(most) <= 2
    assert quality.measure(predictor, {TARGET: ["b"] * 100})[1] == []


def test_columns_are_hidden_one_by_one_unless_there_are_hundreds(monkeypatch):
    asked = []
    monkeypatch.setattr(quality, "measure", lambda _, rows: asked.append(sum(rows[name] == [0.0] for name in rows)) or ({}, []))

    def views(count):
        inputs = [InputSpec(column=f"c{n}", modality="tabular", optional=True) for n in range(count)]
        return quality.ablation(SimpleNamespace(inputs=inputs), {f"c{n}.present": [1.0] for n in range(count)})

    assert [len(views(count)) for count in (1, 2, 32, 33, 300)] == [0, 2, 64, 0, 0]
    assert asked == [1] * 2 + [31] * 32 + [1] * 32
