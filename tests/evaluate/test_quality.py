"""What is told of a model's answers to held-out rows."""

import weakref
from types import SimpleNamespace

from lc_ray.evaluate import quality
from lc_ray.models.batches import TARGET


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
