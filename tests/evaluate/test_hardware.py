"""What figures were measured on."""

from importlib.metadata import PackageNotFoundError, version

import lc_ray
from lc_ray.evaluate import hardware


def test_lc_ray_need_not_be_installed_where_it_came_with_a_job(monkeypatch):
    def installed(name):
        if name == "lc_ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(hardware, "version", installed)
    found = hardware.describe()
    assert found["versions"]["lc_ray"] == lc_ray.__version__
    assert found["versions"]["torch"] == version("torch")
    assert found["hardware"]["cores"] >= 1
