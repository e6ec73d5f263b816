"""What a run tells while it works: events posted from any process of the cluster, shown in the terminal and kept in events.jsonl."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lc_ray import runs, runtime

_METRICS = 3  # of a segment, shown on one line
_EVERY = 60.0  # seconds between two lines of a member's steps where there are no bars, as in a log file
Mode = Literal["bars", "json", "quiet"]


class Board:
    """Holds events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def post(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events


def board() -> Any:
    """Start a board on the connected Ray."""
    return ray.remote(**runtime.beside())(Board).remote()


@dataclass(frozen=True)
class Post:
    """Sends events to a board. Can be given to tasks and actors; a lost event never stops the work."""

    board: Any

    def __call__(self, event: dict[str, Any]) -> None:
        """Send an event."""
        self.board.post.remote({"time": time.time(), **event})


class Display:
    """Shows events and keeps them.

    Args:
        folder: of the run; `events.jsonl` is appended to. None keeps nothing.
        mode: bars for people, json for programs (one event per line on stdout), or quiet.
    """

    def __init__(self, folder: Path | None, mode: Mode) -> None:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self._log = open(folder / runs.EVENTS, "a", encoding="utf-8") if folder else None  # noqa: SIM115
        self.mode, self.stages = mode, list[dict[str, Any]]()
        self.console = Console(stderr=mode == "json", quiet=mode != "bars", highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self._bars, self._tasks = Progress(*columns, console=self.console, transient=True), dict[str, TaskID]()
        self._told = dict[str, float]()

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[dict[str, Any]]:
        """Time a stage. Set `reused` in the yielded dict if there was nothing to do."""
        record: dict[str, Any] = {"name": name, "seconds": 0.0, "reused": False}
        self.show({"event": "stage", "name": name, "title": title, "time": time.time()})
        start = time.perf_counter()
        yield record
        record["seconds"] = time.perf_counter() - start
        self.stages.append(record)
        state = "reused" if record["reused"] else f"{record['seconds']:.1f} s"
        self.show({"event": "stage_end", **record, "title": f"{name}: {state}", "time": time.time()})

    @contextmanager
    def following(self, board: Any) -> Iterator[None]:
        """Show a board's events while the block runs."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(0.25):
                self._drain(board)

        thread = threading.Thread(target=follow, daemon=True)
        with self.bars():
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
                if ray.is_initialized():
                    self._drain(board)

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Keep a bar per member below what is printed while the block runs."""
        with self._bars if self.mode == "bars" and self.console.is_terminal else nullcontext():
            yield

    def _drain(self, board: Any) -> None:
        try:
            events = ray.get(board.take.remote())
        except ray.exceptions.RayError:
            return
        for event in events:
            self.show(event)

    def show(self, event: dict[str, Any]) -> None:
        """Show one event and keep it."""
        if self._log:
            with suppress(OSError):  # a full disk; what could not be written goes with a later event, if there is room by then
                self._log.write(json.dumps(event) + "\n")
                self._log.flush()
        if self.mode == "json":
            print(json.dumps(event), flush=True)
        elif self.mode == "bars":
            self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "stage":
                self.console.print(f"[bold]▸ {event['title']}[/]")
            case "stage_end":
                self.console.print(f"  [green]✓[/] {event['title']}")
            case "note":
                self.console.print(f"  {event['text']}", markup=False)
            case "submitted":
                self.console.print(f"  job [bold]{event['job']}[/]")
            case "worker":
                self._advance(event, note="workers started")
            case "step":
                self._advance(event, completed=event["step"], note=f"step {event['step']}/{event['steps']} loss {event['loss']:.3f}")
            case "pruned":
                before, after = (sum(k[w] * k["size"] for k in event["kept"].values()) for w in ("before", "after"))
                self.console.print(f"  member {event['member']}: pruned from {before} to {after} channels")
            case "exploit":
                moved = ", ".join(f"{k} {_number(event['before'][k])} → {_number(v)}" for k, v in event["genes"].items())
                self.console.print(f"  member {event['member']}: goes on from member {event['donor']}'s weights with {moved}")
            case "restart":
                self.console.print(f"  member {event['member']}: goes on from its last checkpoint: {escape(event['reason'])}")
            case "failed":
                self.console.print(f"  member {event['member']}: failed: {escape(event['error'])}")
            case "lost":
                self.console.print(f"  member {event['member']}: is lost, the others go on")
            case "segment" | "reused":
                again = " (finished before)" if event["event"] == "reused" else ""
                metrics = "  ".join(f"{k} {v:.3f}" for k, v in [*event["metrics"].items()][:_METRICS])
                self.console.print(f"  member {event['member']}: {metrics}{again}")

    def _advance(self, event: dict[str, Any], **changes: Any) -> None:
        name = f"  member {event['member']}"
        now = time.monotonic()
        if now - self._told.setdefault(name, now) >= _EVERY and event["event"] == "step" and not self.console.is_terminal:
            self._told[name] = now
            self.console.print(f"{name}: {changes['note']}")
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, note="")
        self._bars.update(self._tasks[name], total=event["steps"], **changes)

    def close(self) -> None:
        """Close the log."""
        if self._log:
            with suppress(OSError):
                self._log.close()


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
