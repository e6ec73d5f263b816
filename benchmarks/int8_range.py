"""What do weights of half a range cost in int8, and what does the whole range cost on CPUs without VNNI?

Without VNNI (AMD before Zen 4, Intel before Cascade Lake) sums of two products of 8 bits are kept in 16, which overflow; weights of 7 bits can't.
Labels and logits of an artifact against those of its fp32 model, as this CPU computes them and in exact arithmetic, which is what others do.
Use: python benchmarks/int8_range.py ARTIFACT FILE --target COLUMN [--rows 800]
ARTIFACT is not quantized and tells rows apart by labels; rows behind the first are those it is calibrated on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy as np
from tqdm import tqdm

import lc_ray
from lc_ray.data.files import files
from lc_ray.data.read import Reader
from lc_ray.errors import DataError
from lc_ray.models.batches import TARGET, prepare
from lc_ray.predictor import Predictor
from lc_ray.quantize import int8
from lc_ray.quantizer import quantize
from lc_ray.spec import QuantizeSpec

CALIBRATION = 256
RANGES = {"half": nncf.OverflowFix.ENABLE, "whole": nncf.OverflowFix.DISABLE}
EXACT = {"as this CPU does": {}, "exactly": {"LP_TRANSFORMS_MODE": "NO"}}  # of OpenVINO: what is int8 is rounded so, and computed in fp32


def usable(predictor: Predictor, source: str, target: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Clean values by column, and the label, of each row that has them."""
    names = list(predictor.columns)
    for file in files(source):
        for row in itertools.chain.from_iterable(Reader(file, {}).rows([*names, target])):
            with contextlib.suppress(DataError):
                decoded = predictor.decode({name: row[name] for name in names}, file.folder)
                yield decoded, predictor.task.read(row[target], file.folder, predictor.task)


def main() -> None:
    """Print a line for each range and arithmetic."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact", type=Path)
    options.add_argument("file")
    options.add_argument("--target", required=True)
    options.add_argument("--rows", type=int, default=800)
    chosen = options.parse_args()
    dense = lc_ray.load(chosen.artifact)
    clean, labels = zip(*itertools.islice(usable(dense, chosen.file, chosen.target), chosen.rows + CALIBRATION), strict=True)
    prepared = prepare({name: [row[name] for row in clean] for name in dense.columns}, dense.columns)
    asked, known = {name: values[: chosen.rows] for name, values in prepared.items()}, labels[: chosen.rows]
    calibration = {name: values[chosen.rows :] for name, values in prepared.items()} | {TARGET: list(labels[chosen.rows :])}
    truth = np.array([dense.task.labels.index(label) for label in known])
    expected = np.stack(dense.outputs(asked))
    print(f"fp32: {np.mean(expected.argmax(1) == truth):.2%} right of {len(known)}")
    original, compiled = nncf.quantize, int8.Run._compile
    with tempfile.TemporaryDirectory() as folder:
        for (name, fix), (how, more) in tqdm(list(itertools.product(RANGES.items(), EXACT.items()))):

            def quantized(*given: Any, fix: Any = fix, **settings: Any) -> Any:
                settings["advanced_parameters"].overflow_fix = fix
                return original(*given, **settings)

            def compile_so(run: int8.Run, more: Any = more) -> Any:
                run._options |= more
                return compiled(run)

            nncf.quantize, int8.Run._compile = quantized, compile_so  # type: ignore[method-assign,assignment]
            made = quantize(dense.artifact, QuantizeSpec(calibration=CALIBRATION), calibration, Path(folder, f"{name} {how}"), "int8")
            found = np.stack(Predictor(made).outputs(asked))
            apart = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
            right, same = np.mean(found.argmax(1) == truth), np.mean(found.argmax(1) == expected.argmax(1))
            tqdm.write(f"{name} range, {how}: {right:.2%} right, {same:.2%} as in fp32, logits {apart:.1%} of their deviation apart")


if __name__ == "__main__":
    main()
