import pytest

from lc_ray import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.fraction, "50%", 0.5),
        (units.fraction, 0.25, 0.25),
        (units.points, "3 points", 0.03),
        (units.points, "1 point", 0.01),
        (units.seconds, "5ms", 0.005),
        (units.seconds, "2h", 7200),
        (units.size, "512MiB", 512 * 2**20),
        (units.size, "1MB", 1_000_000),
        (units.count, "256 rows", 256),
        (units.count, "1e3", 1000),
        (units.points, 1e-05, 1e-05),
        (units.size, 1e20, 10**20),
        (units.count, "1_000", 1000),
        (units.share, "1000 rows", 1000),
        (units.share, 1000, 1000),
        (units.share, "1000", 1000),
        (units.share, "10%", 0.1),
    ],
)
def test_quantities(parse, text, value):
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *[(units.fraction, "50 percent"), (units.seconds, "5 parsecs"), (units.size, True), (units.count, 1.5), (units.count, None)],
        *[(units.points, ""), (units.size, float("inf")), (units.count, "1e400"), (units.seconds, float("nan"))],
        *[(units.fraction, 10**400), (units.seconds, -(10**400)), (units.share, 10**400)],
    ],
)
def test_nonsense_names_an_example(parse, text):
    with pytest.raises(ValueError, match="expected"):
        parse(text)


@pytest.mark.parametrize(("size", "text"), [(10, "10 B"), (2048, "2 KiB"), (5 * 2**20, "5 MiB"), (3 * 2**30, "3.0 GiB")])
def test_sizes_as_text(size, text):
    assert units.size_text(size) == text
