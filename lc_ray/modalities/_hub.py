"""Models of transformers, from a folder or by their hub id.

Code that comes with a model is never run. Unless it is told so, transformers asks whether it is to, and takes a row on standard input for the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from lc_ray.errors import LcRayError, ModelError, first_line

_FILES = "the folder needs its files, as tokenizer.save_pretrained(folder) writes them"


@contextmanager
def loading(what: str, source: str) -> Iterator[None]:
    """Raise as ModelError what transformers raises where a model can't be loaded.

    Args:
        what: should be loaded, such as "Whisper".
        source: folder or hub id.
    """
    try:
        yield
    except LcRayError:  # which says more
        raise
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no {what} can be loaded: {first_line(error).rstrip(': ')}", source) from None


def tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ModelError: there is none. Where a folder has no file of one, transformers may make one up that knows no word.
    """
    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        raise ModelError(f"no tokenizer can be loaded: {first_line(error).rstrip(': ')}", source, _FILES) from None
    if len(found) < len(set(found.all_special_ids)) + 2:
        raise ModelError("there is no tokenizer", source, _FILES)
    return found


def headless(model: Any, *heads: str) -> Any:
    """A model whose `heads` do nothing: layers without a use would break the gradient's all-reduce. Some models call theirs unasked."""
    for name in heads:
        head = getattr(model, name, None)
        if head is not None and any(True for _ in head.parameters()):
            setattr(model, name, nn.Identity())
    return model


def model(kind: Any, config: Any, source: str, weights: str | None, /, **options: Any) -> Any:
    """A model of a class of transformers: with the source's weights, or random ones.

    Args:
        kind: the class, or one that chooses it by the configuration.
        config: of random weights.
        source: folder or hub id.
        weights: "random", or else those of the source, which are read from safetensors alone.
        options: of `from_pretrained`.
    """
    if weights == "random":
        return kind.from_config(config, trust_remote_code=False) if hasattr(kind, "from_config") else kind(config)
    return kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options)
