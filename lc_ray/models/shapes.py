"""Shapes of a pruned model as JSON, so that it is rebuilt without pickling its code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Shapes = dict[str, list[int]]
Attributes = dict[str, dict[str, Any]]


def difference(pruned: nn.Module, original: nn.Module) -> tuple[Shapes, Attributes]:
    """Parameters and buffers whose shape changed, and the plain sizes that modules keep of them (`out_features`, `num_attention_heads`)."""
    before = {name: list(t.shape) for name, t in original.state_dict().items()}
    shapes = {name: list(t.shape) for name, t in pruned.state_dict().items() if list(t.shape) != before.get(name)}
    modules, attributes = dict(original.named_modules()), {}
    for name, module in pruned.named_modules():
        known = _sizes(modules[name])
        if changed := {k: v for k, v in _sizes(module).items() if v != known.get(k)}:
            attributes[name] = changed
    return shapes, attributes


def apply(model: nn.Module, shapes: Shapes, attributes: Attributes) -> nn.Module:
    """Give a freshly built model the shapes of a pruned one. Its weights are then empty, to be loaded."""
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, leaf, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for path, values in attributes.items():
        for key, value in values.items():
            setattr(model.get_submodule(path), key, tuple(value) if isinstance(value, list) else value)
    return model


def _sizes(module: nn.Module) -> dict[str, Any]:
    plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and not isinstance(v, bool)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items() if isinstance(v, int) or _is_shape(v)}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, int) for v in value)
