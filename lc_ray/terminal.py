"""What commands share: their consoles and arguments, and how a run's result is printed."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from lc_ray.errors import SpecError
from lc_ray.units import size_text

if TYPE_CHECKING:
    from lc_ray.spec import JobSpec

out, err = Console(highlight=False, emoji=False), Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

stopped_by: int = signal.SIGINT  # what a KeyboardInterrupt stands for: one that Ray raises, as it waits, says nothing of it
_WIDEST = 10_000  # columns, more than a table has
_ARTIFACT = "the folder that [bold]lc-ray run[/] printed, or one in a bucket (s3://, gs://)"
ArtifactPath = Annotated[str, typer.Argument(help=f"an artifact: {_ARTIFACT}", show_default=False)]
ArtifactPaths = Annotated[list[str], typer.Argument(help=f"artifacts: {_ARTIFACT}", show_default=False)]
JobFile = Annotated[Path, typer.Argument(help="a job file, see [bold]lc-ray init[/]", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="replace a field: --set train.epochs=5")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print only the result")]


def ended() -> SystemExit:
    """The end of a command that was stopped: 130 for Ctrl-C, 128 and its number for another signal."""
    return SystemExit(128 + stopped_by)


def read_job(path: Path, overrides: list[str] | None) -> JobSpec:
    """A job file with the fields that `--set` replaces."""
    from lc_ray import spec

    return spec.read(path, values(overrides))


def values(items: list[str] | None) -> dict[str, Any]:
    """What `--set PATH=VALUE` says, each value as YAML has it.

    Raises:
        SpecError: one without a value, or whose value is no YAML.
    """
    found = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not all(name.split(".")):
            raise SpecError(f"--set needs PATH=VALUE, got '{item}'")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # the latter for dates that are none
            raise SpecError(f"not YAML: {getattr(error, 'problem', error)}", f"--set {item}", "put a text between quotes: NAME='\"...\"'") from None
    return found


def print_run(record: dict[str, Any], folder: Path) -> None:
    """Print a finished run: its table, the question it was asked, and where things are."""
    from lc_ray.evaluate.report import print_table

    print_table(record, out)
    if asked := record["answer"]:
        say("asked", plain(asked["question"]))
        over = f" ({asked['milliseconds']:.1f} ms over HTTP)" if asked["milliseconds"] else ""
        say("answered", f"{short(asked['answer'])}{over}")
    say("report", near(folder / "report.html"))
    if record["artifact"]:
        say("artifact", near(folder / "model"))
        say("serve it", shlex.join(["lc-ray", "serve", str(near(folder / "model"))]))


def say(name: str, value: Any) -> None:
    """Print a name and what it is."""
    out.print(f"{name:<9}{value}", markup=False, soft_wrap=True)


def list_out(table: Table) -> None:
    """Print a table of names that are typed again: none is cut, however narrow the terminal is."""
    Console(emoji=False, highlight=False, width=_WIDEST).print(table, markup=False)


def near(path: Path) -> Path:
    """The path as it would be typed here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def short(answer: dict[str, Any]) -> str:
    """An answer on one line: the label or labels, and the probability of each, or of the likeliest where there are many."""
    from lc_ray.evaluate.plots import likeliest

    shown = likeliest(known := answer.get("probabilities", {}))
    odds = ", ".join([*(f"{name} {p:.2f}" for name, p in shown.items()), *["..."] * (len(shown) < len(known))])
    if not odds:
        return str(plain(answer))
    return f"{answer['label'] if 'label' in answer else ', '.join(answer['labels']) or 'no label'} ({odds})"


def plain(value: Any) -> Any:
    """A question or answer with what its pictures and sounds are in their place."""
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if not (isinstance(value, str) and value.startswith("data:")):
        return value
    kind, _, content = value.partition(";base64,")
    return f"<{kind.removeprefix('data:')}, {size_text(len(content) * 3 // 4)}>"
