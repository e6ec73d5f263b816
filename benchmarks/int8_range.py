"""What do weights of half a range cost in int8, and what does the whole range cost on CPUs without VNNI?

Without VNNI (AMD before Zen 4, Intel before Cascade Lake) sums of two products of 8 bits are kept in 16, which overflow; weights of 7 bits can't.
Labels and logits of an artifact against those of its fp32 model, as this CPU computes them and in exact arithmetic, which is what others do.
Use: python benchmarks/int8_range.py ARTIFACT FILE --target COLUMN [--rows 800]
ARTIFACT is not quantized and tells rows apart by labels; rows behind the first are those it is calibrated on.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import nncf
import numpy as np
from tqdm import tqdm

import lc_ray
from lc_ray.evaluate import labelled
from lc_ray.models.batches import TARGET, prepare
from lc_ray.predictor import Predictor
from lc_ray.quantize import int8
from lc_ray.quantizer import quantize
from lc_ray.spec import QuantizeSpec, ReadSpec

CALIBRATION = 256
RANGES = {"half": nncf.OverflowFix.ENABLE, "whole": nncf.OverflowFix.DISABLE}
EXACT = {"as this CPU does": {}, "exactly": {"LP_TRANSFORMS_MODE": "NO"}}  # of OpenVINO: what is int8 is rounded so, and computed in fp32


def main() -> None:
    """Print a line for each range and arithmetic."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact", type=Path)
    options.add_argument("file")
    options.add_argument("--target", required=True)
    options.add_argument("--rows", type=int, default=800)
    chosen = options.parse_args()
    dense = lc_ray.load(chosen.artifact)
    rows = labelled.usable(dense, chosen.file, chosen.target, ReadSpec(), Counter())
    clean, labels, encoded = zip(*itertools.islice(rows, chosen.rows + CALIBRATION), strict=True)
    prepared = prepare({name: [row[name] for row in clean] for name in dense.columns}, dense.columns)
    asked, truth = {name: values[: chosen.rows] for name, values in prepared.items()}, np.array(encoded[: chosen.rows])
    calibration = {name: values[chosen.rows :] for name, values in prepared.items()} | {TARGET: list(labels[chosen.rows :])}
    expected = np.stack(dense.outputs(asked))
    print(f"fp32: {np.mean(expected.argmax(1) == truth):.2%} right of {len(truth)}")
    original, compiled = nncf.quantize, int8.Run._compile
    with tempfile.TemporaryDirectory() as folder:
        for name, fix in tqdm(RANGES.items()):

            def quantized(*given: Any, fix: Any = fix, **settings: Any) -> Any:
                settings["advanced_parameters"].overflow_fix = fix
                return original(*given, **settings)

            nncf.quantize = quantized
            made = quantize(dense.artifact, QuantizeSpec(calibration=CALIBRATION), calibration, Path(folder, name), "int8")
            for how, more in EXACT.items():

                def compile_so(run: int8.Run, more: Any = more) -> Any:
                    run._options |= more
                    return compiled(run)

                int8.Run._compile = compile_so  # type: ignore[method-assign]
                found = np.stack(Predictor(made).outputs(asked))
                apart = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
                right, same = np.mean(found.argmax(1) == truth), np.mean(found.argmax(1) == expected.argmax(1))
                tqdm.write(f"{name} range, {how}: {right:.2%} right, {same:.2%} as in fp32, logits {apart:.1%} of their deviation apart")


if __name__ == "__main__":
    main()
