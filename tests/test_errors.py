import pickle

import pytest
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from lc_ray import errors
from lc_ray.errors import DataError, LcRayError, first_line, unwrap

TREE = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LcRayError)]


@pytest.mark.parametrize("kind", TREE)
def test_survives_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what", "where", "fix")))
    assert type(error) is kind
    assert (error.what, error.where, error.fix) == ("what", "where", "fix")


def test_says_what_where_and_what_to_do():
    assert str(DataError("no column 'x'", "rows.csv", "correct it")) == "rows.csv: no column 'x'\n  → correct it"
    assert str(DataError("no rows")) == "no rows"


@pytest.mark.parametrize("kind", TREE[1:])
def test_every_error_is_drawn_in_the_tree(kind):
    assert kind.__name__ in errors.__doc__


def test_the_first_line_of_an_error_is_its_name_where_it_says_nothing():
    assert [first_line(error) for error in (ValueError("\na\nb"), OSError(2, "gone"), TimeoutError())] == ["a", "[Errno 2] gone", "TimeoutError"]


def test_the_first_line_of_what_ray_has_wrapped():
    error = OSError("ray::train() (pid=1)\nTraceback\nOSError: the token has expired")
    error.cause = OSError("the token has expired")
    assert first_line(error) == "the token has expired"


def test_unwrap_finds_ours_inside_the_wrappers():
    ours, outer = DataError("inner"), RuntimeError("outer")
    outer.__cause__ = ValueError("between")
    outer.__cause__.__cause__ = ours
    assert unwrap(outer) is ours
    wrapper = RuntimeError("ray")
    wrapper.cause = ours
    assert unwrap(wrapper) is ours
    ray_task_error = type("RayTaskError", (DataError,), {})("with a traceback")  # as Ray makes them
    ray_task_error.cause = ours
    assert unwrap(ray_task_error) is ours
    workers = WorkerGroupError("training failed", {0: RuntimeError("elsewhere"), 1: UserExceptionWithTraceback(ours, "a traceback")})
    assert unwrap(workers) is ours
    assert unwrap(ControllerError(ours)) is ours
    other = KeyError("x")
    assert unwrap(other) is other
