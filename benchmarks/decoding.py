"""What a further token takes, by how many sequences run together and how long they are, beside transformers with its own cache.

    python benchmarks/decoding.py FOLDER       a causal model of Hugging Face with a chat template, for example SmolLM2-135M-Instruct
    python benchmarks/decoding.py --whisper small     a Whisper of that size, with random weights: they say as much in as many seconds

In PyTorch and in int8; medians, in milliseconds, of one process and 2 threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generation
import psutil
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lc_ray.quantize import int8, none
from lc_ray.tasks._past import Kept
from lc_ray.tasks._seq2seq import Model

THREADS, STEPS, WARM = 2, 24, 4
SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}  # width, layers, heads
START = 50258  # Whisper's <|startoftranscript|>


def took(step: Callable[[], Any], times: int = STEPS) -> float:
    """Median milliseconds of a step."""
    found = []
    for _ in range(times + WARM):
        start = time.perf_counter()
        step()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found[WARM:])


def resident() -> str:
    return f"{psutil.Process().memory_info().rss / 1e6:.0f} MB resident"


def language(base: str, folder: Path) -> None:
    """Print what a step takes for answers that run beside each other, after so many tokens."""
    dense = generation.artifact(base, folder, THREADS)
    for name, predictor in {"PyTorch": dense, "int8": generation.quantized(dense, folder, THREADS)}.items():
        for rows in (1, 8):
            for before in (32, 256, 1000):
                decoder = predictor.task.decoder(predictor.engine)
                for row in range(rows):
                    prompt = decoder.begin([100 + (7 * i + row) % 40000 for i in range(before - row % 4)])
                    while decoder.read([prompt])[0] is None:
                        pass
                    decoder.join(prompt)
                print(f"{name}, {rows} answers after {before} tokens: {took(lambda: decoder.step([100] * rows)):.1f} ms, {resident()}", flush=True)  # noqa: B023


def listening(size: str, folder: Path) -> None:
    """Print what hearing 30 s takes, and saying a token of it."""
    width, layers, heads = SIZES[size]
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", layers), ("attention_heads", heads))}
    config = WhisperConfig(d_model=width, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, **sides)
    whole = WhisperForConditionalGeneration(config).eval()
    model = Model(whole, "clip").eval()
    features = torch.randn(8, 80, 3000)
    told = {"clip.tokens": torch.full((1, 12), START), "clip.asked": torch.arange(12)[None]}
    int8.build(model, [{"clip.input_features": one[None], **told} for one in features[:3]], folder)  # type: ignore[arg-type]
    for rows in (1, 4):
        given = features[:rows]
        for name, engine in {"PyTorch": none.Run(model, THREADS), "int8": int8.Run(folder, THREADS)}.items():
            hearing = took(lambda: engine({"clip.input_features": given}), 2)  # noqa: B023
            states = torch.from_numpy(engine({"clip.input_features": given}))
            kept = Kept(engine, {"clip.states": states})
            step = {"clip.tokens": torch.full((rows, 1), START), "clip.asked": torch.zeros(rows, 1, dtype=torch.int64)}
            print(f"{name}, {rows} recordings: heard in {hearing:.0f} ms, {took(lambda: kept(step)):.1f} ms a token, {resident()}", flush=True)  # noqa: B023
        with torch.no_grad():
            hearing = took(lambda: whole.model.encoder(given), 2)  # noqa: B023
            peer = Peer(whole, whole.model.encoder(given).last_hidden_state)
            print(f"transformers, {rows} recordings: heard in {hearing:.0f} ms, {took(peer):.1f} ms a token, {resident()}", flush=True)


class Peer:
    """transformers' own decoding.

    Args:
        model: a Whisper.
        states: of its encoder, (rows, positions, width).
    """

    def __init__(self, model: Any, states: torch.Tensor) -> None:
        self.model, self.states, self.cache = model, states, None

    def __call__(self) -> None:
        """Say a token."""
        ids = torch.full((len(self.states), 1), START)
        found = self.model.model.decoder(input_ids=ids, encoder_hidden_states=self.states, past_key_values=self.cache, use_cache=True)
        self.cache = found.past_key_values
        self.model.proj_out(found.last_hidden_state)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--whisper", choices=SIZES)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if given.folder:
            language(given.folder, Path(folder))
        if given.whisper:
            listening(given.whisper, Path(folder) / "whisper")


if __name__ == "__main__":
    main()
