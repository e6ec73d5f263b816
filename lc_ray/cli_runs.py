"""Commands about runs on this machine: `runs list` and `runs prune`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from lc_ray.terminal import AsJson, err, list_out, out
from lc_ray.units import size_text

runs = typer.Typer(help="The runs on this machine: list what they take on disk, prune what they need no more.", no_args_is_help=True)

Storage = Annotated[str, typer.Option(help="folder of runs, as a job's `storage`")]


@runs.command("list")
def list_runs(storage: Storage = "runs", as_json: AsJson = False) -> None:
    """List the runs, and what they take on disk: the result, and what only the same job, or a changed one, would go on from."""
    from lc_ray import runs as known

    found: list[dict[str, Any]] = []
    for run in known.find(storage):
        spare = known.size(run.spare)
        found.append({"name": run.folder.name, "state": run.state, "result": known.size([run.folder]) - spare, "spare": spare})
    prepared = known.size(known.prepared(storage))
    if as_json:
        print(json.dumps({"runs": found, "prepared": prepared}))
        return
    table = Table("run", "state", "result", "to go on from", box=None)
    for one in found:
        table.add_row(one["name"], one["state"], size_text(one["result"]), size_text(one["spare"]))
    table.add_row("", "prepared rows", "", size_text(prepared))
    list_out(table)


@runs.command()
def prune(
    names: Annotated[list[str] | None, typer.Argument(help="of runs; all that were accepted, and prepared rows, if none is given")] = None,
    storage: Storage = "runs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be removed")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what finished runs need no more: models that lost, what earlier forms of a job have left, prepared rows. A changed job then trains anew.

    Model, report, and the models that it compares are kept, and so are runs that are unfinished.
    """
    from lc_ray import runs as known

    gone, kept = known.prune(storage, names or (), dry_run)
    if as_json:
        print(json.dumps({"removed": gone, "kept": kept}))
        return
    for sentence in kept:
        err.print(f"[yellow]kept: {sentence}[/]")
    for name, size in gone.items():
        out.print(f"{'would remove' if dry_run else 'removed'} {size_text(size)} of {name}", markup=False)
    if not gone:
        out.print("nothing to remove")
