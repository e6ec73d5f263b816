"""How long from `lc-ray run` to the first training step, and what is it made of?

Runs the demo job cold (no prepared data) and warm, and reads the run's own events.
Use: python benchmarks/first_step.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def first_step(storage: str, name: str) -> dict[str, float]:
    """Seconds from the command to each mark, until the first step's event; the run is then stopped."""
    command = [sys.executable, "-m", "lc_ray", "run", "jobs/sentiment_demo.yaml", "--json", "--set", f"storage={storage}", "--set", f"name={name}"]
    start, marks = time.time(), {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            mark = {"stage": f"{event.get('name')} starts", "worker": "worker runs", "model": "model built", "step": "first step"}.get(event["event"])
            if mark and mark not in marks:
                marks[mark] = event["time"] - start
            if mark == "first step":
                process.terminate()
                break
    return marks


def main() -> None:
    """Print the marks of a cold and a warm run."""
    with tempfile.TemporaryDirectory() as storage:
        for name in ("cold", "warm"):
            marks = first_step(storage, name)
            print(f"{name}: first step after {marks['first step']:.1f} s")
            before = 0.0
            for mark, seconds in marks.items():
                print(f"  {seconds - before:6.1f} s until {mark}")
                before = seconds
            time.sleep(5)  # the stopped run's Ray goes away
    assert Path("jobs").exists()


if __name__ == "__main__":
    main()
