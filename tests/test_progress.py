"""What the bars of a run show."""

import json

from serving import room

from lc_ray import progress
from lc_ray.progress import Display


def test_a_member_whose_steps_are_others_has_a_bar_of_its_own_length():
    display = Display(None, "bars")
    for member, steps in ((0, 100), (1, 50), (1, 80)):  # the last after it has inherited
        display.show({"event": "worker", "member": member, "steps": steps})
    assert [task.total for task in display._bars.tasks] == [100, 80]


def test_notes_are_told_as_they_are(capsys):
    Display(None, "bars").show({"event": "note", "text": "a [red] column: 25% of the rows"})
    assert "a [red] column: 25% of the rows" in capsys.readouterr().out


def test_where_there_are_no_bars_steps_are_told_now_and_then(capsys, monkeypatch):
    display = Display(None, "bars")
    now = iter([0, 60, 59, 60, 61, 120])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    for _ in range(2):
        display.show({"event": "worker", "member": 0, "steps": 9})
    for step in range(1, 5):
        display.show({"event": "step", "member": 0, "step": step, "steps": 9, "loss": 0.5})
    assert capsys.readouterr().out.splitlines() == ["  member 0: step 2/9 loss 0.500", "  member 0: step 4/9 loss 0.500"]


def test_events_go_on_while_the_disk_is_full_and_are_kept_once_it_is_not(tmp_path):
    display = Display(tmp_path, "quiet")
    display.show({"event": "note", "text": "before"})
    with room(1):
        display.show({"event": "note", "text": "meanwhile"})
    display.show({"event": "note", "text": "after"})
    display.close()
    kept = (tmp_path / "events.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in kept] == ["before", "meanwhile", "after"]
