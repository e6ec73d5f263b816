"""Imports point one way."""

import ast
import re
from pathlib import Path

import lc_ray

ROOT = Path(lc_ray.__file__).parent
ORDER = [  # of the design, lowest first
    *("errors", "units", "memory", "scratch", "storage", "section", "serving", "spec", "artifact", "runs", "results"),
    *("family", "templates", "modalities", "tasks", "models", "data"),
    *("prune", "quantize", "quantizer", "predictor", "evaluate", "train", "runtime", "progress", "tune", "serve", "client", "pipeline"),
    *("deploy", "api", "preflight", "cluster", "terminal", "cli_cluster", "cli_deploy", "cli_rollout", "cli_runs", "cli", "__main__"),
]


def arrows() -> list[tuple[str, str, str]]:
    """(file, part it is in, part it imports)."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        inside = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if inside == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "lc_ray":
                names = [f"lc_ray.{a.name}" for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            found += [(str(file.relative_to(ROOT)), inside, n.split(".")[1]) for n in names if n.startswith("lc_ray.")]
    return found


def test_every_part_has_its_place():
    parts = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == set(ORDER)


def test_imports_point_one_way():
    place = {part: i for i, part in enumerate(ORDER)} | {"__version__": -1}
    assert [f"{file}: {inside} imports {imported}" for file, inside, imported in arrows() if place[imported] > place[inside]] == []


def test_a_package_says_what_its_files_are_for():
    families = {"modalities", "tasks", "prune", "quantize", "deploy", "templates", "protocols"}  # in which each file is one kind
    for file in (file for file in ROOT.rglob("__init__.py") if file.parent != ROOT and file.parent.name not in families):
        told = ast.get_docstring(ast.parse(file.read_text("utf-8")))
        named = {module.stem for module in file.parent.glob("*.py")} - {"__init__"}
        assert {name for name in named if not re.search(rf"\b{name}\b", told)} == set(), file
