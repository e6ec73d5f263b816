import io
import shlex

import pytest
from rich.console import Console

from lc_ray import preflight
from lc_ray.evaluate.report import print_table
from lc_ray.terminal import print_run, short


def test_of_many_labels_the_likeliest_are_printed():
    few, many = ({f"label {i}": i / count for i in range(count)} for count in (2, 200))
    assert short({"label": "label 1", "probabilities": few}) == "label 1 (label 0 0.00, label 1 0.50)"
    assert short({"label": "x", "probabilities": many}) == "x (label 199 0.99, label 198 0.99, label 197 0.98, label 196 0.98, label 195 0.97, ...)"


def test_labels_are_printed_as_a_label_is():
    odds = {"billing": 0.8, "urgent": 0.1}
    assert short({"labels": ["billing"], "probabilities": odds}) == "billing (billing 0.80, urgent 0.10)"
    assert short({"labels": [], "probabilities": odds}) == "no label (billing 0.80, urgent 0.10)"
    assert short({"value": 3.5}) == "{'value': 3.5}"


@pytest.mark.parametrize("name", ["price [eur]", "price [/eur]"])
def test_brackets_are_printed_as_they_are(name):
    page = Console(file=io.StringIO(), width=200)
    cost = dict.fromkeys(("parameters", "bytes", "latency_ms", "latency_p95_ms", "throughput"), 1.0)
    print_table({"name": "x", "models": [{"name": "dense", "metrics": {"f1": 0.5}, "cost": cost}], "ablation": {f"only {name}": {"f1": 0.25}}}, page)
    rows = [{name: f"10 of {name}", "fed": {name: "10"}}]
    counts = {"parameters": 1, "trained": 1, "memory": {}, "disk": 1, "stage": 1, "slots": 1, "idle": None, "notes": []}
    preflight.show({"name": "x", "files": [], "rows": rows, "rejected": [], "missing": [f"nothing can be written to {name}"], **counts}, page)
    for told in (f"only {name} ", f"{name}: 10 of {name}", f"{name} = 10", f"✗ nothing can be written to {name}"):
        assert told in page.file.getvalue()


def test_a_command_that_is_printed_can_be_pasted(capsys, tmp_path):
    folder = tmp_path / "my runs"
    cost = dict.fromkeys(("parameters", "bytes", "latency_ms", "latency_p95_ms", "throughput"), 1.0)
    print_run({"name": "x", "models": [{"name": "dense", "metrics": {"f1": 0.5}, "cost": cost}], "answer": None, "artifact": "abc"}, folder)
    (told,) = (line.removeprefix("serve it ") for line in capsys.readouterr().out.splitlines() if line.startswith("serve it"))
    assert shlex.split(told) == ["lc-ray", "serve", str(folder / "model")]
