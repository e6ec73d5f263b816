import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["lc_ray", "lc_ray.client"])
def test_what_programs_import_first_loads_nothing_heavy(module):
    code = f"import {module}, sys; print(*[m for m in ('torch', 'ray', 'transformers', 'openvino', 'deepspeed') if m in sys.modules])"
    assert run(code) == ""


def test_ray_leaves_out_what_means_nothing_here_for_programs_too():
    assert "graceful_shutdown" in run("import lc_ray, ray; print(ray._private.ray_constants.RAY_DEDUP_LOGS_SKIP_REGEX)")


def test_every_public_name_is_there():
    assert run("import lc_ray; print(all(hasattr(lc_ray, name) for name in lc_ray.__all__))") == "True"


def test_help_needs_neither_torch_nor_ray():
    code = """
import sys
from typer.testing import CliRunner
from lc_ray.cli import app
assert CliRunner().invoke(app, ['--help']).exit_code == 0
print(*[m for m in ('torch', 'ray') if m in sys.modules])"""
    assert run(code) == ""


def test_what_starts_and_changes_endpoints_leaves_the_engines_to_their_replicas():
    code = "import sys; from lc_ray.serve import app, build, run, update; print(*[m for m in ('torch', 'openvino') if m in sys.modules])"
    assert run(code) == ""


def test_members_of_a_search_leave_torch_to_their_workers():
    assert run("import sys, lc_ray.tune.population; print('torch' in sys.modules)") == "False"


def test_a_replica_of_an_int8_model_leaves_transformers_models_alone():
    assert run("import sys, lc_ray.serve.replica, lc_ray.quantize.int8; print('transformers.modeling_utils' in sys.modules)") == "False"
