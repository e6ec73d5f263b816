"""How far rows are from those of training."""

import math
import random

import numpy as np
import pytest

from lc_ray.artifact import Feature
from lc_ray.evaluate import drift
from lc_ray.modalities.audio import Modality as Audio
from lc_ray.modalities.image import Modality as Image
from lc_ray.modalities.picture import Modality as Picture
from lc_ray.modalities.tabular import Modality as Tabular
from lc_ray.models.batches import prepare
from lc_ray.predictor import load
from lc_ray.spec import InputSpec


def index(feature, values):
    counts = [0] * drift.size(feature)
    for value in values:
        counts[drift.place(feature, value)] += 1
    return drift.psi(feature.counts, counts)


def test_the_index_is_that_of_the_literature():
    """Yurdakul's first example: shares of 0.25 each that become 0.4, 0.3, 0.2, 0.1."""
    shares = (0.4, 0.3, 0.2, 0.1)
    expected = sum((now - 0.25) * math.log(now / 0.25) for now in shares)
    assert drift.psi([250_000] * 4, [int(share * 1e6) for share in shares]) == pytest.approx(expected, abs=1e-4)


def test_rows_of_the_same_kind_have_not_drifted_and_others_have():
    draw = random.Random(0)
    feature = drift.fit([draw.gauss(0, 1) for _ in range(1024)])
    assert index(feature, [draw.gauss(0, 1) for _ in range(drift.LEAST)]) < 0.1
    assert index(feature, [draw.gauss(1, 1) for _ in range(drift.LEAST)]) > 0.25
    assert index(feature, [draw.gauss(0, 3) for _ in range(drift.LEAST)]) > 0.25


@pytest.mark.parametrize("rows", [100, 200, 1000])
@pytest.mark.parametrize("kind", ["number", "label"])
def test_chance_is_seldom_told_as_drift(kind, rows):
    random, labels = np.random.default_rng(0), [str(label) for label in range(20)]
    often = 1 / np.arange(1, 21)

    def draw(count):
        return list(random.normal(size=count) if kind == "number" else random.choice(labels, count, p=often / often.sum()))

    found = [index(drift.fit(draw(rows)), draw(drift.LEAST)) for _ in range(50)]
    assert np.mean(np.array(found) > 0.1) < 0.25
    assert max(found) < 0.25


def test_few_values_have_no_statistics(tiny_artifact):
    predictor = load(tiny_artifact, threads=1)
    training, held_out = (prepare({"text": ["good", "bad flight"] * half}, predictor.columns) for half in (50, 49))
    assert {name.partition(".")[0] for name in drift.reference(predictor, training, held_out)} == {"text"}
    assert "answer.label" in drift.reference(predictor, held_out, training)


@pytest.mark.parametrize("now", [4.0, 6.0, "five", math.nan])
def test_a_number_that_never_changed_is_missed(now):
    feature = drift.fit([5.0] * 1000)
    assert sum(feature.counts) == max(feature.counts) == 1000
    assert index(feature, [5.0] * 1000) == pytest.approx(0)
    assert index(feature, [now] * 1000) > 1


def test_every_value_of_training_is_between_the_edges():
    values = [float(value) for value in np.random.default_rng(0).integers(0, 7, 500)]
    feature = drift.fit(values)
    assert feature.counts[0] == feature.counts[-1] == feature.counts[-2] == 0
    assert sum(feature.counts) == 500
    assert len(feature.counts) == len(drift.names(feature)) == drift.size(feature)


def test_categories_that_few_rows_have_are_not_told():
    feature = drift.fit(["red"] * 50 + ["blue"] * 30 + ["green"] * 20 + [f"person-{i}" for i in range(40)])
    assert feature.categories == ["red", "blue"]
    assert feature.counts == [50, 30, 60]
    assert drift.names(feature)[-1] == "others"
    assert index(feature, ["yellow"] * 1000) > 0.9


def test_a_feature_survives_its_manifest():
    feature = drift.fit([1.0, 2.0, 3.0] * 10)
    assert Feature.model_validate_json(feature.model_dump_json()) == feature


@pytest.mark.parametrize(
    ("modality", "value", "features"),
    [
        (Tabular(InputSpec(column="x", modality="tabular"), ""), "1.5", {"value": 1.5}),
        (Tabular(InputSpec(column="x", modality="tabular"), ""), "red", {"value": "red"}),
        (Image(InputSpec(column="x", modality="image", base="resnet18", size=32), ""), bytes([7]) * 3 * 32**2, {"brightness": 7, "contrast": 0}),
        (
            Picture(InputSpec(column="x", modality="picture", base="b", size=8), ""),
            {"pixels": bytes([9]) * 192, "width": 40, "height": 30},
            {"brightness": 9, "contrast": 0, "width": 40, "height": 30},
        ),
    ],
)
def test_what_is_measured_of_a_column(modality, value, features):
    parts = modality.prepare([value, value])
    found = drift.of_row({f"x.{name}": cells for name, cells in parts.items()}, {"x": modality}, 1)
    assert found == {f"x.{name}": pytest.approx(of) if not isinstance(of, str) else of for name, of in features.items()}


def test_what_is_measured_of_a_sound():
    clip = Audio.__new__(Audio)
    clip.rate = 8000
    samples = (0.5 * 32767 * np.sin(np.arange(16000) / 6)).astype("<i2").tobytes()
    assert clip.measure({"samples": samples}) == {"seconds": 2.0, "level": pytest.approx(-9, abs=0.1)}  # 0.5²/2 is -9 dB


def test_a_row_that_lacks_a_column_tells_just_that():
    modality = Tabular(InputSpec(column="x", modality="tabular", optional=True), "")
    rows = {"x.cell": [None, "2"], "x.number": [0.0, 2.0], "x.category": [0, 0], "x.present": [0.0, 1.0]}
    assert [drift.of_row(rows, {"x": modality}, i) for i in (0, 1)] == [{"x.present": "no"}, {"x.present": "yes", "x.value": 2.0}]


@pytest.mark.parametrize(
    ("answer", "features"),
    [
        ({"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}, {"label": "a", "confidence": 0.75}),
        ({"labels": ["b", "a"], "probabilities": {"a": 0.9, "b": 0.6}}, {"labels": "a, b", "confidence": 0.9}),
        ({"value": 2.5}, {"value": 2.5}),
        ({"text": "hello"}, {"characters": 5.0}),
        ({"image": "data:image/png;base64,AA=="}, {}),
    ],
)
def test_what_is_measured_of_an_answer(answer, features):
    assert drift.of_answer(answer) == {f"answer.{name}": value for name, value in features.items()}
