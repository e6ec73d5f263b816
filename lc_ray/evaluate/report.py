"""What a run came to: one self-contained page to send to a colleague, and the same comparison in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lc_ray.evaluate import plots
from lc_ray.evaluate.plots import Record
from lc_ray.storage import StoragePath


@dataclass(frozen=True)
class Row:
    """A line of the comparison: what it is, and for each model the figure and how it stands to the first model's."""

    name: str
    cells: list[tuple[str, str]]


def write_html(record: Record, path: StoragePath) -> None:
    """Write report.html: one file, no script, nothing fetched.

    Args:
        record: the run's record.json; all but `name` and `models` may be missing or empty.
        path: of the file to write.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": plots.duration, "size": plots.size, "likeliest": plots.likeliest}
    segments, objective, winner = record.get("segments") or [], _objective(record), record.get("winner")
    units = record.get("architecture") or {"before": {}, "after": {}}
    page = environment.get_template("report.html").render(
        record=record,
        headline=headline(record),
        verdict=_verdict(record),
        labels=_labels(record),
        table=comparison(record),
        ablation=ablation(record),
        exploits=exploits(segments, objective),
        objective=objective.replace("_", " "),
        curves=plots.curves(segments, objective, winner),
        lineage=plots.lineage(segments, objective, winner),
        genes=list(next((s["genes"] for s in segments if s.get("genes")), {})),
        tradeoff=plots.tradeoff(record["models"], _labels(record), objective, record.get("accept")),
        segment_times=plots.segment_times(segments),
        stage_times=plots.stage_times(record.get("stages") or []),
        units=plots.units(units["before"], units["after"]),
        job=yaml.safe_dump(record["job"], sort_keys=False, allow_unicode=True) if record.get("job") else "",
    )
    path.write_text(page)


def print_table(record: Record, console: Console) -> None:
    """Print the models side by side, and what the gate said.

    Args:
        record: the run's record.json.
        console: to print to.
    """
    table = Table(title=Text(record["name"], "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for label in _labels(record):
        table.add_column(Text(label, "bold"), justify="right")
    for row in comparison(record):
        table.add_row(row.name, *(Text.assemble(figure, (_beside(versus), "dim")) for figure, versus in row.cells))
    console.print(table, markup=False)
    objective = _objective(record).replace("_", " ")
    for row in ablation(record):
        figure = next((value for value, name in row.cells if name == objective), "")
        console.print(f"{row.name:<24}{figure} {objective}", markup=False, highlight=False)
    if verdict := _verdict(record):
        console.print(Text(verdict, "bold green" if verdict == "accepted" else "bold red"))
        for reason in record["accept"]["reasons"]:
            console.print(Text(f"  {reason}"))


def _beside(versus: str) -> str:
    """A difference in a column of its own, narrow enough that three models fit 80 characters."""
    return f"  {versus.replace('points', 'pts'):>9}" if versus else ""


def headline(record: Record) -> str:
    """The outcome in a sentence, without the gate's verdict."""
    base, final, objective = record["models"][0], record["models"][-1], _objective(record)
    quality = f"{plots.metric(objective, final['metrics'][objective])} {objective.replace('_', ' ')}" if objective else ""
    if final is base:
        figures = [quality, f"{final['cost']['throughput']:,.0f} rows/s", plots.size(final["cost"]["bytes"])]
    else:
        change = f" ({plots.change(objective, final['metrics'][objective] - base['metrics'][objective])})" if objective else ""
        speed, size = (final["cost"][part] / base["cost"][part] for part in ("throughput", "bytes"))
        figures = [quality + change, f"{speed:.1f}× the throughput", f"{size:.0%} of the bytes"]
    return f"{_labels(record)[-1]}: " + ", ".join(f for f in figures if f)


def comparison(record: Record) -> list[Row]:
    """The models side by side: metrics with their difference from the first model's, costs with their ratio to it."""
    models, base = record["models"], record["models"][0]
    # Of the several passes that an answer takes one is measured.
    latency, throughput = ("1 pass", "1 pass") if record.get("stepwise") else ("latency", "throughput")
    batch = ((record.get("job") or {}).get("serve") or {}).get("batch", {}).get("max")
    rows = []
    for name in base["metrics"]:
        values = [m["metrics"][name] for m in models]
        cells = [(plots.metric(name, v, 2), plots.change(name, v - values[0], 2) if i else "") for i, v in enumerate(values)]
        rows.append(Row(name.replace("_", " "), cells))
    for part, name, write in (
        ("parameters", "parameters", plots.number),
        ("bytes", "size on disk", plots.size),
        ("latency_ms", f"{latency} p50, batch 1", "{:.1f} ms".format),
        ("latency_p95_ms", f"{latency} p95, batch 1", "{:.1f} ms".format),
        ("throughput", f"{throughput}, batch {batch}" if batch else throughput, "{:,.0f} rows/s".format),
    ):
        values = [m["cost"][part] for m in models]
        rows.append(Row(name, [(write(v), f"{v / values[0]:.2f}×" if i else "") for i, v in enumerate(values)]))
    return rows


def ablation(record: Record) -> list[Row]:
    """The final model's metrics with all inputs and with some of them hidden; empty if that was not measured."""
    if not record.get("ablation"):
        return []
    views = {"all inputs": record["models"][-1]["metrics"], **record["ablation"]}
    return [Row(view, [(plots.metric(name, value, 2), name.replace("_", " ")) for name, value in metrics.items()]) for view, metrics in views.items()]


def exploits(segments: list[Record], objective: str) -> list[str]:
    """Each time a member went on from another one's weights, in words."""
    by_key, place = {s["key"]: s for s in segments}, {(s["member"], s["segment"]): s for s in segments}
    told = []
    for s in segments:
        donor, own = by_key.get(s.get("parent")), place.get((s["member"], s["segment"] - 1))
        if s.get("inherited") and donor:
            ours, theirs = s.get("genes") or {}, donor.get("genes") or {}
            moved = ", ".join(f"{k} {plots.gene(theirs[k])} → {plots.gene(v)}" for k, v in ours.items() if k in theirs and theirs[k] != v)
            who = f"member {s['member']}{_value(own, objective)} took over the weights of member {donor['member']}{_value(donor, objective)}"
            told.append(f"After segment {s['segment']} {who}" + (f": {moved}" if moved else ""))
    return told


def _value(segment: Record | None, objective: str) -> str:
    known = segment is not None and objective in segment.get("metrics", {})
    return f" ({plots.metric(objective, segment['metrics'][objective])})" if segment and known else ""


def _objective(record: Record) -> str:
    """The metric that decides; the first one where none is named."""
    return str(record.get("objective") or next(iter(record["models"][0]["metrics"]), ""))


def _labels(record: Record) -> list[str]:
    """Models as people call them: the quantized one by its scheme, and whether it is pruned too."""
    names = [m["name"] for m in record["models"]]
    scheme = ((record.get("job") or {}).get("quantize") or {}).get("kind", "quantized")
    return [f"{scheme} pruned" if n == "quantized" and "pruned" in names else scheme if n == "quantized" else n for n in names]


def _verdict(record: Record) -> str:
    accept: dict[str, Any] | None = record.get("accept")
    return "" if not accept else "accepted" if accept["passed"] else "refused"
