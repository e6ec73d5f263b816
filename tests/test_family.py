import pytest

from lc_ray import family
from lc_ray.errors import SpecError


def test_a_kind_is_a_file():
    assert {"classification", "regression"} <= set(family.kinds("tasks"))
    assert "_media" not in family.kinds("modalities")
    assert family.load("tasks", "classification").Task.__module__ == "lc_ray.tasks.classification"


def test_a_miss_lists_the_kinds_and_suggests_one():
    with pytest.raises(SpecError, match=r"did you mean 'structured'\? known kinds: structured"):
        family.load("prune", "structurd")


@pytest.mark.parametrize("kind", ["os.path", "../errors", "__init__", ""])
def test_only_files_of_the_family_can_be_named(kind):
    with pytest.raises(SpecError, match="known kinds"):
        family.load("tasks", kind)
