"""The command line. One job file instead of a flag per field; errors of ours are caught once, here."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from lc_ray import __version__, cli_cluster, cli_deploy, cli_rollout, cli_runs, templates, terminal
from lc_ray.errors import AcceptError, LcRayError, SpecError, first_line, unwrap
from lc_ray.terminal import ArtifactPath, ArtifactPaths, AsJson, JobFile, Overrides, Quiet, ended, err, out, plain, print_run, read_job, short, values

_TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_READING = "columns or encoding_errors of a job's data: --set columns=\\[label,text]"
_ASKED = 32  # rows in a request to an endpoint, which takes no more than `serve.max_instances`


class _Explained(TyperGroup):
    """Turns our errors into a sentence on stderr and an exit code: 1 for a mistake, 3 for a refused model, 130 for Ctrl-C, 143 for SIGTERM."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            _require_home()
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; give the same command again to go on where it was" if ctx.invoked_subcommand == "run" else ""
            with suppress(OSError):  # of a terminal that is gone
                err.print(f"\n[yellow]stopped[/]{goes_on}")
            raise ended() from None
        except Exception as error:
            ours = unwrap(error)
            # A folder that is not there, or may not be written; a full disk, of which neither Python nor pyarrow name the file; a bucket.
            if isinstance(ours, OSError) and (ours.filename or ours.errno in (None, *_TOLD)):
                ours = LcRayError(os.strerror(ours.errno) if ours.errno else first_line(ours), str(ours.filename or ""))
            if not isinstance(ours, LcRayError):
                raise
            err.print(f"[red]error[/] {type(ours).__name__}: ", end="")
            err.print(str(ours), markup=False)
            raise SystemExit(3 if isinstance(ours, AcceptError) else 1) from None


def _require_home() -> None:
    """Raise LcRayError where there is no home folder, as for a container's user without a name: keys and states are kept there, Ray's too."""
    try:
        Path.home()
    except RuntimeError:
        raise LcRayError("this user has no home folder", fix="set HOME to a folder that can be written") from None


app = typer.Typer(
    cls=_Explained,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"lc_ray {__version__}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")] = False) -> None:
    """From labelled data to a small, fast endpoint, on one Ray cluster, from one job file."""


@app.command()
def run(job: JobFile, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Run a job: fine-tune, prune, search, quantize, evaluate, and serve one question.

    A run that was cut off goes on where it was when the same command is given again.

    Exits with 0 when the model was accepted, 3 when the job's accept gate refused it, 1 for a mistake, 130 on Ctrl-C, 143 on SIGTERM.
    """
    from lc_ray import pipeline

    spec = read_job(job, overrides)
    result = pipeline.run(spec, "quiet" if quiet else "json" if as_json else "bars")
    if as_json:
        print(json.dumps({"artifact": str(result.artifact.path), "report": str(result.report), "metrics": result.metrics, "reused": result.reused}))
        return
    if not quiet:
        if result.reused:
            out.print(f"[bold]{spec.name}[/] was finished before with this very job; nothing to do.")
        print_run(result.record, result.report.parent)
    else:
        print(result.artifact.path)


@app.command()
def check(job: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a job before it runs: the file, the data, whether the model can be pruned and quantized, memory and the cluster. Trains nothing."""
    with err.status("reading the rows, trying the model, asking the cluster for room"):
        from lc_ray import preflight

        report = preflight.check(read_job(job, overrides))
    if as_json:
        print(json.dumps(report))
    else:
        preflight.show(report, out)
    if report["missing"]:
        raise typer.Exit(1)


@app.command()
def serve(
    artifacts: ArtifactPaths,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port; 0 for any that is free")] = 8000,
    grpc_port: Annotated[int | None, typer.Option(help="port of the Open Inference Protocol over gRPC; off if not given", show_default=False)] = None,
    replicas: Annotated[str, typer.Option(help="copies of the models; 1:4 for as many as requests need, 0:4 for none while no request comes")] = "1",
    keys: Annotated[Path | None, typer.Option(help="file of lines NAME:KEY, read again after SIGHUP; a key is made if not given")] = None,
    access_log: Annotated[str | None, typer.Option(help="file to which each request adds a line of JSON; - for standard error")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of a certificate, for HTTPS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="any field of a job's serve: --set batch.max=64")] = None,
) -> None:
    """Serve artifacts over HTTP until Ctrl-C. Requests need an API key; where it is kept is printed."""
    from lc_ray import serving
    from lc_ray.section import override
    from lc_ray.serve.run import serve_forever

    if (tls_cert is None) != (tls_key is None):
        raise SpecError("HTTPS needs both --tls-cert and --tls-key")
    tls = {"certificate": str(tls_cert), "key": str(tls_key)} if tls_cert else None
    fields = {"host": host, "port": port, "grpc_port": grpc_port, "replicas": _replicas(replicas), "access_log": access_log, "tls": tls}
    serve_forever(artifacts, serving.parse(override(fields, values(settings))), keys)


@app.command()
def predict(
    inputs: Annotated[list[str], typer.Argument(help="texts, or JSON objects by column; - reads one per line from stdin", show_default=False)],
    url: Annotated[str | None, typer.Option(help="an endpoint, for example http://127.0.0.1:8000")] = None,
    artifact: Annotated[str | None, typer.Option(help="an artifact, predicted here without an endpoint")] = None,
    key: Annotated[str | None, typer.Option(help="API key; that of LC_RAY_API_KEY or of the key file if not given")] = None,
    model: Annotated[str | None, typer.Option(help="one of the endpoint's models; its first if not given")] = None,
    files: Annotated[bool, typer.Option("--files", help="the inputs are names of image or audio files, for a model with one such column")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for images and audio of the answers: 0.png, 1.png, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict with an endpoint (--url) or an artifact (--artifact)."""
    if (url is None) == (artifact is None):
        raise SpecError("give either --url or --artifact")
    if model is not None and url is None:
        raise SpecError("--model is for an endpoint: give --url")
    piped = inputs == ["-"]  # maybe without end: answers come as soon as some lines are there
    lines = (line.rstrip("\n") for line in sys.stdin or ()) if piped else inputs
    each = ((line, _content(line)) if files else (row := _row(line), row) for line in lines)  # what is shown of a row, and the row
    shown, asked = itertools.tee(each if piped else [*each])  # what is wrong with one of few is told first
    rows = (row for _, row in asked)
    with ExitStack() as stack:
        if url is not None:
            from lc_ray.client import Client

            client, some = stack.enter_context(Client(url, key)), 1 if files else _ASKED
            parts = iter(lambda: list(itertools.islice(rows, some)), [])
            answers: Iterator[Any] = (answer for part in parts for answer in client.predict(part, model))
        else:
            from lc_ray.predictor import load

            answers = load(str(artifact)).stream(rows)
        for number, (answer, (name, _)) in enumerate(zip(answers, shown, strict=True)):
            answer = _saved(answer, output, number) if output else answer
            if as_json:
                print(json.dumps(answer))
            else:
                out.print(f"{short(answer)}  {name if files else plain(name)}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    artifact: ArtifactPath,
    data: Annotated[str, typer.Argument(help="labelled rows: a file, a folder or package:NAME/path", show_default=False)],
    target: Annotated[str, typer.Option(help="column that holds the label")] = "label",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_READING)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an artifact on labelled rows."""
    from lc_ray.evaluate import labelled

    with err.status("reading the rows") as status:
        told = lambda rows: status.update(f"{rows:,} rows")  # noqa: E731
        metrics = labelled.evaluate(artifact, data, target, labelled.parse(values(settings)), told)
    if as_json:
        print(json.dumps(metrics))
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    out.print(table, markup=False)


@app.command()
def report(
    run_folder: Annotated[str, typer.Argument(help="folder of a run, or its URI: storage/name", show_default=False)], as_json: AsJson = False
) -> None:
    """Print a run's table again and rewrite its report.html."""
    from lc_ray.evaluate.report import print_table, write_html
    from lc_ray.runs import RECORD
    from lc_ray.storage import storage_path

    folder = storage_path(run_folder)
    try:
        record = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a run that was cut off as it wrote it
        raise SpecError(f"no finished run here: it has no {RECORD}", run_folder, "give the folder storage/name of a run") from None
    if as_json:
        print(json.dumps(record))
    else:
        print_table(record, out)
    write_html(record, folder / "report.html")  # last: what may only be read can be printed
    if not as_json:
        out.print(f"\n{run_folder.rstrip('/')}/report.html", markup=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file, for editors."""
    from lc_ray.spec import JobSpec

    print(json.dumps(JobSpec.model_json_schema(), indent=2))


@app.command()
def init(
    task: Annotated[str, typer.Argument(help=f"one of {', '.join(templates.names())}")] = "classification",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file to write; printed if not given")] = None,
) -> None:
    """Write a commented job file for a task."""
    text = templates.text(task)
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise SpecError("the file exists already", str(output), "give another name")
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            output.unlink()  # else it would be there, empty, when the command is given again
        raise
    out.print(f"wrote {output}; next: {shlex.join(['lc-ray', 'check', str(output)])}", markup=False, soft_wrap=True)


for _command in (cli_rollout.rollout, cli_rollout.rollback, cli_rollout.endpoints, cli_cluster.submit, cli_deploy.deploy):
    app.command()(_command)
app.add_typer(cli_runs.runs, name="runs")
app.add_typer(cli_cluster.jobs, name="jobs")
app.add_typer(cli_cluster.cluster, name="cluster")


def _replicas(text: str) -> dict[str, int]:
    """"2", or "0:4" from the least to the most."""
    least, several, most = text.partition(":")
    try:
        return {"min": int(least), "max": int(most if several else least)}
    except ValueError:
        raise SpecError(f"expected a number or MIN:MAX, got '{text}'", "--replicas") from None


def _saved(answer: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """An answer with the paths of its pictures and sounds, written as files, in their place."""
    from lc_ray.storage import storage_path

    found = dict(answer)
    for name, value in answer.items():
        if isinstance(value, str) and value.startswith("data:"):
            kind, _, content = value.partition(";base64,")
            file = folder / f"{number}.{kind.rpartition('/')[2]}"
            with storage_path(file).whole() as made:
                made.write(base64.b64decode(content))
            found[name] = str(file)
    return found


def _row(line: str) -> Any:
    """A text, or an object by column."""
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        raise SpecError(f"not JSON: {error}", line[:80], "a text that begins with { is given as a JSON object by column") from None


def _content(file: str) -> str:
    """A file, as requests have it."""
    try:
        return base64.b64encode(Path(file).read_bytes()).decode()
    except OSError as error:
        raise SpecError(f"can't be read: {error.strerror}", file, "with --files, inputs are names of files") from None


@contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is gone, raise KeyboardInterrupt, so that nothing is left; nohup's is ignored."""
    terminal.stopped_by = signal.SIGINT
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: Any) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which both a terminal and its shell send
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends this at once
    terminal.stopped_by = number
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of `lc-ray`."""
    with _stopped_as_by_ctrl_c():
        app()
