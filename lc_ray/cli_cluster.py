"""Commands about clusters: `submit`, `jobs ...` and `cluster ...`."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lc_ray.errors import AcceptError
from lc_ray.terminal import AsJson, JobFile, Overrides, Quiet, ended, err, list_out, out, print_run, read_job, say
from lc_ray.units import size_text

if TYPE_CHECKING:
    from lc_ray.cluster.jobs import Jobs

jobs = typer.Typer(help="The jobs of a cluster: list, status, logs, stop, fetch.", no_args_is_help=True)
cluster = typer.Typer(help="Start or stop a cluster with Ray's launcher, by a file as in cluster/, or show its nodes.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option("--cluster", help="name of a cluster in ~/.config/lc_ray/clusters.yaml; not needed if there is only one")]
Address = Annotated[str | None, typer.Option(help="URL of the cluster's dashboard, instead of a name: http://HOST:8265")]
Id = Annotated[str, typer.Argument(help="of the job, as [bold]submit[/] and [bold]jobs list[/] print it", show_default=False)]
Launcher = Annotated[Path, typer.Argument(help="a launcher file of Ray, such as cluster/aws.yaml", show_default=False)]


def submit(
    job: JobFile,
    name: Name = None,
    address: Address = None,
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="return once it is submitted")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a job on a cluster: upload the files that it names, follow it, and fetch the model and the report.

    The same job is never run twice: if it is there already, it is followed, or its result fetched. Ctrl-C leaves it running.
    """
    from lc_ray.cluster import submit as sending

    spec, there = read_job(job, overrides), _jobs(name, address)
    where = escape(f"--cluster {name}" if name else f"--address {address}" if address else "")
    try:
        sent, record = sending.run(spec, there, "quiet" if quiet else "json" if as_json else "bars", wait=not detach)
    except KeyboardInterrupt:
        err.print(f"\n[yellow]detached[/]; what was submitted goes on: [bold]lc-ray jobs list {where}[/]; the same command follows it again")
        raise ended() from None
    folder = spec.folder
    if record is None:
        print(json.dumps(asdict(sent)) if as_json else sent.id)
        if not (as_json or quiet):
            err.print(f"follow it: [bold]lc-ray jobs logs -f {sent.id} {where}[/]")
    elif as_json:
        print(json.dumps({"job": sent.id, "artifact": str(folder / "model"), "report": str(folder / "report.html")}))
    elif quiet:
        print(folder / "model")
    else:
        print_run(record, folder)


@jobs.command("list")
def list_jobs(name: Name = None, address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs, oldest first."""
    found = _jobs(name, address).all()
    if as_json:
        print(json.dumps([asdict(job) for job in found]))
        return
    table = Table("job", "status", "started", "took", box=None)
    for job in found:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        table.add_row(job.id, job.status, began, f"{(job.ended or time.time()) - job.started:.0f} s" if job.started else "")
    list_out(table)


@jobs.command()
def status(job: Id, name: Name = None, address: Address = None, as_json: AsJson = False) -> None:
    """Show a job's status."""
    found = _jobs(name, address).get(job)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    for field in ("id", "status", "message"):
        say(field, getattr(found, field))


@jobs.command()
def logs(
    job: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job is over")] = False,
    name: Name = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="as the job prints it")] = False,
) -> None:
    """Show what a job has printed."""
    from lc_ray.cluster import submit as sending
    from lc_ray.progress import Display

    there = _jobs(name, address)
    try:
        there.get(job)  # one that is not there is said at once
        found, end, said = sending.tell(there, job, Display(None, "bars"), raw=as_json, wait=follow)
    except KeyboardInterrupt:
        raise ended() from None
    if said:
        out.print("\n".join(said), markup=False, soft_wrap=True)
    if not found.active and not as_json:
        sending.judge(found, end, [])


@jobs.command()
def stop(job: Id, name: Name = None, address: Address = None) -> None:
    """Stop a job. Submitted again, it goes on where it was."""
    out.print("stopped" if _jobs(name, address).stop(job) else "it was over already")


@jobs.command()
def fetch(
    job: Id,
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="folder for the run; runs/NAME if not given")] = None,
    name: Name = None,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Fetch a finished job's model and report."""
    from lc_ray.cluster import submit as sending
    from lc_ray.progress import Display

    there = _jobs(name, address)
    found = there.get(job)
    target = (folder or Path("runs") / Path(found.name).name).resolve()  # the cluster's word for it leads nowhere else
    accepted = found.status == "SUCCEEDED"
    if not (found.active or accepted):
        with contextlib.suppress(AcceptError):  # others have left no record: what lies in the run's folder is of an earlier job
            sending.judge(*sending.tell(there, job, Display(None, "quiet"), wait=False))
    record = sending.bring(there, found, target, accepted)
    if quiet and accepted:
        print(target / "model")
    elif not quiet:
        print_run(record, target)


@cluster.command()
def up(file: Launcher, yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing")] = False) -> None:
    """Start a cluster, or bring it to what the file says."""
    _launch("up", file, yes)


@cluster.command()
def down(file: Launcher, yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing")] = False) -> None:
    """Stop all of a cluster's machines."""
    _launch("down", file, yes)


@cluster.command("status")
def cluster_status(name: Name = None, address: Address = None, as_json: AsJson = False) -> None:
    """Show a cluster's Ray version, nodes and what they have."""
    there = _jobs(name, address)
    nodes = there.nodes()
    if as_json:
        print(json.dumps({"address": there.address, "ray": there.version, "nodes": nodes}))
        return
    out.print(f"{there.address}  Ray {there.version}", markup=False)
    table = Table("node", "state", "CPU", "GPU", "memory", box=None)
    for node in nodes:
        table.add_row(node["address"], node["state"], f"{node['cpu']:g}", f"{node['gpu']:g}", size_text(node["memory"]))
    out.print(table)


def _jobs(name: str | None, address: str | None) -> Jobs:
    from lc_ray.cluster.clusters import find
    from lc_ray.cluster.jobs import Jobs

    return Jobs(find(name, address))


def _launch(what: str, file: Path, yes: bool) -> None:
    from lc_ray.cluster import launch

    launch.run(what, file, yes)
