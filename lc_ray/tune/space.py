"""Genes: dotted fields of the job, drawn at the start and perturbed when inherited. All of it depends on seeds alone."""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import numpy as np

from lc_ray.errors import SpecError
from lc_ray.spec import JobSpec, SearchSpec
from lc_ray.units import fraction

Genes = dict[str, Any]
_FACTOR = 1.2  # by which an inherited number is multiplied or divided (Jaderberg et al. 2017)
_RESAMPLE = 0.25  # probability that an inherited gene is drawn anew
_GENES = ("train.", "prune.", "model.dropout", "model.dtype", "model.fusion.drop")  # fields that members, and an heir and its donor, may differ in
_SHARED = ("train.segments", "train.workers", "train.zero")
_MIXES = 256  # of other genes' values, beside which one is tried


def require(job: JobSpec) -> None:
    """Check that each gene can have its values, before anything starts.

    Raises:
        SpecError: a field that is the same for all members, or a value that it can't have, whatever the others have.
    """
    plain, genes = job.model_copy(update={"search": None}), job.search.genes if job.search else {}
    ends = {path: [*(how.get("choice") or map(fraction, *how.values()))] for path, how in genes.items()}
    for path, how in genes.items():
        where = f"search.genes: {path}"
        if not path.startswith(_GENES) or path.startswith(_SHARED):
            fix = "search fields of train or prune, model.dropout, model.dtype or model.fusion.drop"
            raise SpecError("is the same for all members", where, fix)
        if "choice" not in how and isinstance(plain.get(path), int):
            raise SpecError("is a whole number", where, "give {choice: [...]}")
        for value in ends[path]:
            beside = itertools.product(*(of if other != path else [value] for other, of in ends.items()))
            mixes = (dict(zip(ends, mix, strict=True)) for mix in itertools.islice(beside, _MIXES))
            if (alone := _problem(plain, {path: value})) and all(_problem(plain, mix) for mix in mixes):
                raise SpecError(f"{value} can't be: {alone}", where)


def _problem(job: JobSpec, genes: Genes) -> str:
    """Why a job can't have these genes; nothing if it can."""
    try:
        job.set(genes)
    except SpecError as error:
        return error.what
    return ""


def draw(search: SearchSpec, member: int, seed: int) -> Genes:
    """A member's first genes.

    A Latin hypercube (McKay et al. 1979): each gene's range is cut into as many strips as there are members, and each takes one,
    so that few members still cover the range.
    """
    genes: Genes = {}
    for path, how in search.genes.items():
        random = np.random.default_rng([seed, zlib.crc32(path.encode())])
        strip = random.permutation(search.population)[member]
        genes[path] = _at(how, (strip + random.random(search.population)[member]) / search.population)
    return genes


def perturb(search: SearchSpec, genes: Genes, member: int, segment: int, seed: int) -> Genes:
    """Genes of a member that inherits from another: each a step up or down, or, one time in four, drawn anew."""
    changed: Genes = {}
    for path, how in search.genes.items():
        random = np.random.default_rng([seed, member, segment, zlib.crc32(path.encode())])
        up = random.random() < 0.5
        if random.random() < _RESAMPLE:
            changed[path] = _at(how, random.random())
        elif "choice" in how:
            options = list(how["choice"])
            place = options.index(genes[path]) if genes[path] in options else 0
            changed[path] = options[max(0, min(len(options) - 1, place + (1 if up else -1)))]
        else:
            low, high = (fraction(v) for v in next(iter(how.values())))
            changed[path] = max(low, min(high, genes[path] * (_FACTOR if up else 1 / _FACTOR)))
    return changed


def _at(how: dict[str, tuple[Any, ...]], quantile: float) -> Any:
    """Value of a distribution at a quantile in [0, 1)."""
    (kind, values), *_ = how.items()
    if kind == "choice":
        return values[min(len(values) - 1, int(quantile * len(values)))]
    low, high = (fraction(v) for v in values)
    if kind == "log_uniform":
        return math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
    return low + quantile * (high - low)
