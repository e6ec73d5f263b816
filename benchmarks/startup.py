"""How long do `lc-ray serve`, `rollout` and `rollback` take, and are they faster than those of another checkout?

The endpoint is up once /healthz answers 200. Both versions run in this environment and take turns.
Use: python benchmarks/startup.py ARTIFACT OTHER_ARTIFACT [--against CHECKOUT] [--turns 4]
     The artifacts are two versions of a model of one name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from lc_ray import artifact

_PORT = 8123
_REST = 3.0  # seconds in which the processes of what ended go away


def turn(checkout: Path, first: Path, second: Path) -> dict[str, float]:
    """Seconds of each command, once."""
    name = artifact.read(first).manifest.name
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_STATE_HOME": home, "XDG_CONFIG_HOME": home}
        how: dict[str, Any] = {"cwd": checkout, "env": environment, "stdout": subprocess.DEVNULL}  # -m looks in the working folder first
        command, port = [sys.executable, "-m", "lc_ray"], ["--port", str(_PORT)]
        start, took = time.monotonic(), {}
        with subprocess.Popen([*command, "serve", str(first), *port], **how) as server:
            while not _answers():
                if server.poll() is not None:
                    raise SystemExit("the endpoint did not start")
                time.sleep(0.05)
            took["serve"] = time.monotonic() - start
            for what in (["rollout", str(second)], ["rollback", name]):
                time.sleep(_REST)
                start = time.monotonic()
                subprocess.run([*command, *what, *port], **how, check=True)
                took[what[0]] = time.monotonic() - start
            server.send_signal(signal.SIGINT)
    time.sleep(_REST)
    return took


def _answers() -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{_PORT}/healthz").status_code == 200
    return False


def main() -> None:
    """Print medians and all times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs=2, type=Path)
    parser.add_argument("--against", type=lambda name: Path(name).resolve())
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args()
    checkouts = {"this": Path(__file__).resolve().parents[1]} | ({"against": given.against} if given.against else {})
    first, second = (path.resolve() for path in given.artifacts)
    took = [{name: turn(checkout, first, second) for name, checkout in checkouts.items()} for _ in range(given.turns)]
    for what in ("serve", "rollout", "rollback"):
        for name in checkouts:
            every = [one[name][what] for one in took]
            print(f"{what:9}{name:9}{statistics.median(every):6.1f} s  ({', '.join(f'{x:.1f}' for x in every)})")


if __name__ == "__main__":
    main()
