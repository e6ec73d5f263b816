"""`lc-ray check`: everything that can be known before training, found out and shown."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lc_ray import family, runtime
from lc_ray.data import cells, classes, read
from lc_ray.data.files import File, files
from lc_ray.data.prepare import named, task_kind
from lc_ray.data.sides import hints
from lc_ray.errors import DataError
from lc_ray.models import batches, load
from lc_ray.models.batches import TARGET
from lc_ray.spec import InputSpec, JobSpec, module_name
from lc_ray.storage import storage_path
from lc_ray.train import plan
from lc_ray.tune import space
from lc_ray.units import size_text

_ROWS, _LOOKED_AT = 5, 256
_TARGETS = 1_000_000  # rows


def check(job: JobSpec) -> dict[str, Any]:
    """Open the data and the model, ask the cluster for room, and see that a run can be written. Nothing is trained, and nothing left there.

    Returns:
        `rows`: the first rows as they will be fed; `rejected`: those of them that can't be used; `files`; `parameters` and `trained`;
        `memory`: bytes per worker by ZeRO stage; `disk`: bytes that segments take; `slots`: members that train at a time;
        `idle`: what is said of GPUs that none uses, if of any;
        `notes`: what should be known of the data;
        `missing`: what stands in the way.

    Raises:
        SpecError: a gene of the search can't have its values.
        DataError, ModelError: the data or the base model is not there, or the model can't be pruned or quantized.
    """
    space.require(job)
    inputs, task = job.inputs(), task_kind(job)
    options = task.options(job.task)
    found = [file for source in job.data.sources.values() for file in files(source)]
    cells.require(job, found)
    columns = load.modalities(inputs)
    reader = task.reader(options, columns)
    clean, rejected = _look(job, columns, task, reader)
    rows = [_fed(row, columns, task, job.data.target) for row in clean]
    try:
        fitted = named(task.fit(_targets(job, task, reader), options, columns), job)
    except DataError:
        if rows or not rejected:
            raise
        why = f"none of the first {len(rejected)} rows can be used; {_told(rejected[0])}"
        raise DataError(why, job.data.train, "correct them, or `data.inputs` and `data.target`" + hints(why)) from None
    model = load.pretrained(job.model, inputs, fitted.bind(columns))
    with runtime.session():
        job = runtime.settled(job)
        nodes = runtime.nodes()
        placement = plan.placement(job.train.workers, nodes)
        resources = dict(ray.cluster_resources())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = load.parameters(model)
    memory = plan.estimate(job, parameters, trained, *_extent(model))
    if clean:
        _require_smaller(job, model, clean, columns, fitted)
    slots = min(placement.slots, job.members)
    refused = storage_path(job.storage).refused()
    disk, room = plan.disk(job, parameters, trained, slots), None if refused else (storage_path(job.storage) / job.name).room()
    crowded = room is not None and room < disk and f"the run writes about {size_text(disk)} to {job.storage}, which has room for {size_text(room)}"
    shortage = plan.shortage(memory, job.train.zero.stage, job.train.workers, nodes)
    return {
        "name": job.name,
        "files": [str(f) for f in found],
        "rows": rows,
        "rejected": rejected[:_ROWS],
        "parameters": parameters,
        "trained": trained,
        "memory": memory,
        "stage": job.train.zero.stage,
        "disk": disk,
        "slots": slots,
        "idle": plan.idle(job.train.workers, nodes),
        "notes": [
            *cells.unread(job),
            *([] if task.divides(job.data.target, columns) else _cut(rows, inputs)),
            *classes.alike(getattr(fitted, "labels", ())),
        ],
        "cluster": {"cpu": resources.get("CPU", 0.0), "gpu": resources.get("GPU", 0.0), "memory": resources.get("memory", 0.0)},
        "missing": [
            *placement.missing,
            *([shortage] if shortage else []),
            *([crowded] if crowded else []),
            *([f"nothing can be written to storage {job.storage}: {refused}"] if refused else []),
            *([] if rows else [f"none of the first {len(rejected)} rows can be used{hints(rejected[0]['reason']) if rejected else ''}"]),
        ],
    }


def _require_smaller(job: JobSpec, model: Any, clean: list[dict[str, Any]], columns: dict[str, Any], task: Any) -> None:
    """Raise ModelError where the model can't be pruned or quantized, which a run would find after training only. The model is then another."""
    numbers, fed = batches.learned({name: [row[name] for row in clean[:2]] for name in columns}, columns, task.divides(job.data.target, columns))
    batch, _ = batches.feed(fed | {TARGET: [clean[number].get(TARGET) for number in numbers]}, columns, task)
    batch = {name: tensor[:2] for name, tensor in batch.items()}
    if job.prune is not None:
        pruner = family.load("prune", job.prune.kind).Pruner(model, batch, keep=model.keep)
        pruner.scores = torch.rand(len(pruner.scores), generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # something of all layers
        pruner.remove(job.prune.parameters)
    if job.quantize is not None:
        with tempfile.TemporaryDirectory() as folder:
            family.load("quantize", job.quantize.kind).build(model.eval(), [batch], Path(folder))


def _look(job: JobSpec, columns: dict[str, Any], task: Any, reader: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first rows that can be used, clean, and among many the ones that can't."""
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for file, row in itertools.islice(_rows(job, cells.wanted(job), _LOOKED_AT), _LOOKED_AT):
        clean = cells.cleaned(row, file, columns, task, reader, job)
        if clean["_reason"]:
            rejected.append({"row": row["_row"], "column": clean["_column"], "reason": clean["_reason"]})
        elif len(rows) < _ROWS:
            rows.append(clean)
    return rows, rejected


def _fed(clean: dict[str, Any], columns: dict[str, Any], task: Any, target: str | None) -> dict[str, Any]:
    """A row as it is read, and as it will be fed to the model; of a text that is several rows, the first."""
    values = {name: [clean[name]] for name in columns}
    _, fed = batches.learned(values, columns, task.divides(target, columns))
    shown = batches.show(batches.parts_of(fed, columns, 0), columns) | ({target: clean[TARGET]} if target else {})
    tensors = {name: list(tensor.shape) for name, tensor in batches.collate(fed, columns).items()}
    plain = {name: values[0] for name, values in fed.items() if name in tensors and not isinstance(values[0], bytes)}
    fed = {name: plain.get(name, f"tensor of {' × '.join(map(str, shape[1:]))}") for name, shape in tensors.items()}
    return {**{name: f"{len(value)} bytes" if isinstance(value, bytes) else value for name, value in shown.items()}, "fed": fed}


def _cut(rows: list[dict[str, Any]], inputs: list[InputSpec]) -> list[str]:
    """How many of the first rows fill an input's `max_length`, in sentences."""
    full = [(i, sum(len(row["fed"].get(f"{module_name(i.column)}.input_ids", ())) >= i.max_length for row in rows)) for i in inputs]
    what = "tokens of its max_length, beyond which texts are cut"
    return [f"{i.column}: {number} of the first {len(rows)} rows fill the {i.max_length} {what}" for i, number in full if number]


def _rows(job: JobSpec, names: list[str], size: int = read.CHUNK) -> Iterator[tuple[File, dict[str, Any]]]:
    """Raw rows of the training files, with the file of each, read in chunks of `size`."""
    for file in files(job.data.train):
        for chunk in read.Reader(file, job.data.columns).rows(names, size=size):
            yield from ((file, row) for row in chunk)


def _targets(job: JobSpec, task: Any, reader: Any) -> Iterator[Any]:
    """Clean targets of the training files: of many rows, since a file may be sorted by them."""
    if job.data.target is None:
        yield None
        return
    for file, row in itertools.islice(_rows(job, [job.data.target]), _TARGETS):
        with contextlib.suppress(DataError, KeyError):
            yield task.read(row[job.data.target], file.folder, reader)


def _extent(model: Any) -> tuple[int, int]:
    """Width and number of layers of the widest transformer in the model; 0 where no configuration says."""
    configs = [part.config.to_dict() for part in model.modules() if hasattr(getattr(part, "config", None), "to_dict")]
    extents = [
        (int(c.get("hidden_size") or c.get("d_model") or 0), int(c.get("num_hidden_layers") or c.get("encoder_layers") or 0)) for c in configs
    ]
    return max(extents, default=(0, 0))


def _told(row: dict[str, Any]) -> str:
    """Which row is rejected, for which column if not as a whole, and why."""
    return ", ".join([f"row {row['row']}", *([row["column"]] if row["column"] else [])]) + f": {row['reason']}"


def show(report: dict[str, Any], console: Console) -> None:
    """Print what `check` found."""
    console.print(f"[bold]{report['name']}[/]: the job file is valid; {len(report['files'])} file(s) found")
    table = Table("row", "fed to the model as", show_lines=True)
    for row in report["rows"]:
        fed = "\n".join(f"{name} = {str(value)[:90]}" for name, value in row["fed"].items())
        table.add_row("\n".join(f"{k}: {str(v)[:200]}" for k, v in row.items() if k != "fed"), fed)
    console.print(table, markup=False)
    for row in report["rejected"]:
        console.print(f"  [yellow]would be rejected: {escape(_told(row))}[/]")
    console.print(f"model: {report['parameters']:,} parameters, {report['trained']:,} trained")
    memory = Table("ZeRO stage", "memory per worker, about")
    for stage, size in report["memory"].items():
        memory.add_row(f"{stage}{' (this job)' if int(stage) == report['stage'] else ''}", size_text(size))
    console.print(memory)
    console.print(f"disk: about {size_text(report['disk'])} of weights and optimizer states while it trains")
    for note in filter(None, [report["idle"], *report["notes"]]):
        console.print(f"[yellow]{escape(note)}[/]")
    if report["missing"]:
        for sentence in report["missing"]:
            console.print(f"[red]✗[/] {escape(sentence)}")
    else:
        at_once = f"{report['slots']} members train" if report["slots"] > 1 else "one member trains"
        console.print(f"[green]✓[/] the cluster can place the job; {at_once} at a time")
