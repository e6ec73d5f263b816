"""What the bars of a run show."""

from lc_ray.progress import Display


def test_a_member_whose_steps_are_others_has_a_bar_of_its_own_length():
    display = Display(None, "bars")
    for member, steps in ((0, 100), (1, 50), (1, 80)):  # the last after it has inherited
        display.show({"event": "worker", "member": member, "steps": steps})
    assert [task.total for task in display._bars.tasks] == [100, 80]


def test_notes_are_told_as_they_are(capsys):
    Display(None, "bars").show({"event": "note", "text": "a [red] column: 25% of the rows"})
    assert "a [red] column: 25% of the rows" in capsys.readouterr().out
