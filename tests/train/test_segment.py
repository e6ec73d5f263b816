import dataclasses
import itertools
import json

import pytest

from lc_ray import spec
from lc_ray.errors import TrainError
from lc_ray.section import override
from lc_ray.storage import StoragePath
from lc_ray.train.segment import RECORD, Segment, SegmentResult, finished, learning_rate, removed_at

JOB = {
    "model": {"base": "b"},
    "data": {"train": "t.csv", "inputs": [{"column": "text"}], "target": "label"},
    "train": {"epochs": 4, "segments": 4, "batch_size": 10},
    "prune": {"parameters": 0.6, "start": 0.5},
}


def segment(number=0, rows=1000, member=0, parent=None, removed=0.0, **values):
    job = spec.parse(override(JOB, values)).model_dump(mode="json")
    return Segment(job, StoragePath("/prepared/key"), StoragePath("/store"), number, rows, parent, None, member, removed)


def test_segments_cover_the_training_without_gaps():
    parts = [segment(n) for n in range(4)]
    assert [p.first for p in parts] == [0, 100, 200, 300]
    assert [p.until for p in parts] == [100, 200, 300, 400]


@pytest.mark.parametrize("rows", [11, 975, 12345])
def test_at_most_200_steps_are_reported_and_the_last_of_each_segment(rows):
    parts = [segment(n, rows) for n in range(4)]
    told = [step for part in parts for step in range(part.first, part.until) if part.told(step)]
    assert {part.until - 1 for part in parts} <= {*told}
    assert len(told) <= 200 + len(parts)


@pytest.mark.parametrize("rows", [11, 95, 1003, 12345])
def test_boundaries_meet_whatever_the_rows(rows):
    parts = [segment(n, rows) for n in range(4)]
    assert all(a.until == b.first for a, b in itertools.pairwise(parts))
    assert parts[-1].until == parts[0].total


@pytest.mark.parametrize("start", [0.01, 0.95, 0.99])
@pytest.mark.parametrize("rows", [1, 20, 50])
def test_no_segment_is_without_a_step(rows, start):
    parts = [segment(n, rows, **{"prune.start": start, "train.epochs": 2}) for n in range(4)]
    assert all(part.first < part.until for part in parts)
    assert (parts[0].first, parts[-1].until) == (0, parts[0].total)


def test_the_key_holds_all_that_the_result_depends_on():
    keys = [
        segment().key,
        segment(1).key,
        segment(rows=2000).key,
        segment(member=1).key,
        segment(parent="p").key,
        segment(parent="p", removed=0.1).key,
        segment(seed=5).key,
        segment(**{"train.learning_rate": 1e-3}).key,
        segment(**{"model.base": "c"}).key,
        segment(**{"prune.start": 0.4}).key,
        segment(**{"data.inputs.0.rate": 0.5}).key,
        segment(**{"data.inputs.0.weights": "random"}).key,
        segment(**{"data.inputs.0.augment": True}).key,
        segment(**{"evaluate.rows": 500}).key,
        segment(search={"genes": {"train.learning_rate": {"uniform": [0.1, 0.2]}}}).key,
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_holds_nothing_else():
    assert segment(**{"accept": {"max_drop": 0.2}}).key == segment().key
    assert segment(**{"train.workers.cpu": 4, "train.workers.max_failures": 0}).key == segment().key
    assert segment(**{"train.workers.count": 2}).key != segment().key
    assert segment(**{"prune.parameters": 0.3}).key == segment().key, "an unpruned segment does not depend on how much is pruned later"
    assert segment(2, **{"prune.parameters": 0.3}).key != segment(2).key


def test_pruning_starts_at_its_segment_and_stays():
    assert [segment(n).pruned for n in range(4)] == pytest.approx([0, 0, 0.6, 0.6])
    assert [segment(n, removed=segment(n - 1).pruned if n else 0.0).prunes for n in range(4)] == [False, False, True, False]


def test_what_the_parent_lost_counts_not_what_its_heir_would_have():
    assert segment(3, removed=0.3).prunes, "on to 60%"
    further = segment(3, removed=0.7)
    assert (further.prunes, further.pruned) == (False, 0.7), "what is gone stays gone"


def test_a_ramp_removes_more_at_first():
    job = spec.parse(override(JOB, {"train.segments": 5, "prune": {"parameters": 0.8, "start": 0.4, "end": 1.0}}))
    removed = [removed_at(job, n) for n in range(5)]
    assert removed[:2] == [0, 0]
    assert removed[-1] == pytest.approx(0.8)
    steps = [b - a for a, b in itertools.pairwise(removed[1:])]
    assert steps == sorted(steps, reverse=True)


def test_the_optimizer_is_kept_only_for_one_that_goes_on_with_it():
    assert [segment(n).keeps_optimizer for n in range(4)] == [True, False, True, False]


def test_each_phase_warms_up_and_ends_at_zero():
    assert [segment(n).phase for n in range(4)] == [(0, 200), (0, 200), (200, 400), (200, 400)]
    for phase in ((0, 200), (200, 400)):
        rates = [learning_rate(1.0, step, phase, 0.1) for step in range(*phase)]
        assert rates[0] == pytest.approx(1 / 20)
        assert max(rates) == 1.0 == rates[19]
        assert rates[-1] < 0.01
        assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_one_step_phase_has_a_rate():
    assert learning_rate(1.0, 5, (5, 6), 0.1) == 1.0


def test_a_record_is_finished_once_it_is_whole(tmp_path):
    folder = StoragePath(str(tmp_path))
    result = SegmentResult("k", 0, 1, None, "k", 0.0, {"accuracy": 0.5}, [{"step": 1, "loss": 2.0}], {"total": 1.0}, None, {"g": 1})
    assert finished(folder) is None
    result.write(folder)
    assert finished(folder) == result
    assert dataclasses.replace(result, member=2) != finished(folder)


@pytest.mark.parametrize("fields", [{"color": "red"}, {"metrics": None}])
def test_what_another_lc_ray_has_recorded_otherwise_is_trained_again(tmp_path, fields):
    folder = StoragePath(str(tmp_path))
    SegmentResult("key", 0, 0, None, "key", 0.0, {"accuracy": 0.9}, [], {}, None).write(folder)
    record = json.loads((folder / RECORD).read_text()) | fields
    (folder / RECORD).write_text(json.dumps({name: value for name, value in record.items() if value is not None or name == "parent"}))
    assert finished(folder) is None


def test_a_record_that_a_power_cut_has_left_empty_is_none(tmp_path):
    (tmp_path / RECORD).write_text("")
    assert finished(StoragePath(str(tmp_path))) is None


def test_a_parent_that_was_of_other_settings_can_not_be_trained_anew(tmp_path):
    store = StoragePath(str(tmp_path))
    first, heir = (dataclasses.replace(segment(n, parent="0" if n else None), store=store) for n in (0, 1))
    assert heir.lost() is None, "there is none"
    SegmentResult("0", 0, 0, None, "0", 0.0, {}, [], {}, "step-100").write(store / "0")
    with pytest.raises(TrainError, match=r"the state of its optimizer is gone(.|\n)*remove "):
        heir.lost()
    SegmentResult(first.key, 0, 0, None, first.key, 0.0, {}, [], {}, "step-100").write(first.folder)
    assert dataclasses.replace(heir, parent=first.key, dense=first.key).lost() == first
    assert first.lost() is None
