"""Structured pruning: whole attention heads, feed-forward neurons and channels are removed, so that plain dense kernels run faster.

What must go together is found by DepGraph (Fang et al. 2023, arXiv:2301.12900). A unit's importance is the squared first-order
Taylor estimate of what the loss would change by if it were set to zero (Molchanov et al. 2019, arXiv:1906.10771), summed over
batches. Units of all layers compete by importance per parameter, so that the least useful parameters go first wherever they are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

from lc_ray.errors import ModelError

_MULTIPLE = 16  # channels are kept in multiples of what int8 and bf16 kernels handle at once
_HALVINGS = 16  # of an interval; then what is searched is less than one unit away
_ROOTS = [nn.Linear, nn.Conv2d, nn.Conv1d, Conv1D]
_HEADS = ("num_attention_heads", "num_heads")  # how modules call the number of them
_LEAST = 8  # at least this fraction's inverse of every layer is kept


def contribution(parameter: Tensor, dim: int) -> Tensor:
    """Weight times gradient, summed over all but one dimension: the loss's first-order change if each index of `dim` were zero.

    Returns:
        (size of dim,)
    """
    if parameter.grad is None:
        return torch.zeros(parameter.shape[dim])
    product = (parameter.detach() * parameter.grad).transpose(0, dim).flatten(1) if parameter.dim() > 1 else (parameter.detach() * parameter.grad)
    return product.sum(1) if product.dim() > 1 else product


def select(scores: list[Tensor], costs: list[int], steps: list[int], budget: float) -> list[Tensor]:
    """Which units to remove: the least score per parameter first, over all layers, until `budget` parameters are gone.

    Args:
        scores: importance of each unit, one tensor (units,) per layer.
        costs: parameters of one unit, per layer.
        steps: units are removed so many at a time, per layer.
        budget: parameters to remove.

    Returns:
        Indices of the removed units, ascending, per layer.
    """
    ranked = [s.argsort() for s in scores]
    atoms = []
    for layer, (score, order, cost, step) in enumerate(zip(scores, ranked, costs, steps, strict=True)):
        removable = len(score) - max(step, -(-len(score) // _LEAST))
        for start in range(0, removable - step + 1, step):
            total = score[order[start : start + step]].sum().item()
            atoms.append((total / (cost * step), layer, cost * step))
    taken, gone = [0] * len(scores), 0.0
    for _, layer, size in sorted(atoms):
        if gone + size / 2 > budget:
            continue  # a smaller unit elsewhere may still fit
        taken[layer] += steps[layer]
        gone += size
    return [order[:n].sort().values for order, n in zip(ranked, taken, strict=True)]


@dataclass(frozen=True)
class Layer:
    """Units that are removed alike: `size` channels each, along a dimension of several parameters.

    Attributes:
        name: module whose outputs they are.
        group: DepGraph's record of what must go together.
        parts: parameters, the dimension that the channels lie along, and which of its indices they are.
        size: channels per unit: those of a head, or of a group that is normalised together, or 1.
        units: how many there are.
        step: how many are removed at a time.
        attention: the module that counts heads, if they are heads.
        norms: modules that normalise the units as groups.
    """

    name: str
    group: Any
    parts: list[tuple[nn.Parameter, int, list[int]]]
    size: int
    units: int
    step: int
    attention: nn.Module | None
    norms: list[nn.GroupNorm]

    @property
    def cost(self) -> int:
        """Parameters of one unit."""
        return sum(p.numel() // p.shape[dim] for p, dim, _ in self.parts) * self.size

    def score(self) -> Tensor:
        """Squared contribution of each unit (units,)."""
        channels = torch.stack([contribution(p, dim).cpu().double()[indices] for p, dim, indices in self.parts]).sum(0)  # (units × size,)
        return channels.view(self.units, self.size).sum(1).square()


class Pruner:
    """Removes units from a model.

    Args:
        model: its forward takes a batch; so does `followed`, which is called in its place to see the layers if there is one.
        example: a small batch.
        keep: modules that are never touched, such as the head.

    Raises:
        ModelError: nothing in the model can be pruned, or its layers can't be followed.
    """

    def __init__(self, model: nn.Module, example: dict[str, Tensor], keep: list[nn.Module]) -> None:
        self._run: Callable[[], Any] = lambda: getattr(model, "followed", model.forward)(example)
        self.layers = _layers(model, self._run, keep)
        if not self.layers:
            raise ModelError("no layer of this model can be pruned", fix="leave out `prune`")
        self.scores = torch.zeros(sum(layer.units for layer in self.layers), dtype=torch.float64)

    @property
    def parameters(self) -> int:
        """Parameters of the prunable layers, each counted once."""
        return round(self._lost([layer.units for layer in self.layers]))

    def observe(self) -> None:
        """Add the scores of the gradients that a backward pass left."""
        self.scores += torch.cat([layer.score() for layer in self.layers])

    def remove(self, fraction: float) -> dict[str, dict[str, int]]:
        """Remove a fraction of the prunable layers' parameters.

        Returns:
            Per layer, units `before` and `after`, and their `size` in channels.

        Raises:
            ModelError: what is left does not fit together.
        """
        chosen = self._chosen(fraction * self.parameters)
        kept = {}
        for layer, units in zip(self.layers, chosen, strict=True):
            kept[layer.name] = {"before": layer.units, "after": layer.units - len(units), "size": layer.size}
            if len(units) == 0:
                continue
            channels = (units[:, None] * layer.size + torch.arange(layer.size)).flatten().tolist()
            layer.group.prune(channels)
            if layer.attention is not None:
                _count_heads(layer.attention, layer.units - len(units), layer.size)
            for norm in layer.norms:
                norm.num_groups = layer.units - len(units)
        try:
            with torch.no_grad():
                self._run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(f"what pruning leaves of this model does not fit together: {error}", fix="leave out `prune`") from error
        return kept

    def _chosen(self, budget: float) -> list[Tensor]:
        """Indices of the units to remove, per layer, with which as many parameters go as are wanted.

        A parameter between two prunable layers loses rows to one and columns to the other, and what lies on both only once. So the budget of
        `select`, which counts it twice, is searched.
        """
        scores = list(torch.split(self.scores, [layer.units for layer in self.layers]))
        costs, steps = [layer.cost for layer in self.layers], [layer.step for layer in self.layers]
        low, high = 0.0, float(sum(layer.cost * layer.units for layer in self.layers))
        best, nearest = select(scores, costs, steps, 0.0), budget
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            chosen = select(scores, costs, steps, middle)
            lost = self._lost([len(units) for units in chosen])
            if abs(lost - budget) < nearest:
                best, nearest = chosen, abs(lost - budget)
            low, high = (middle, high) if lost < budget else (low, middle)
        return best

    def _lost(self, units: list[int]) -> float:
        """Parameters that go with so many units of each layer."""
        gone: dict[nn.Parameter, dict[int, int]] = {}
        for layer, count in zip(self.layers, units, strict=True):
            for parameter, dim, _ in layer.parts:
                along = gone.setdefault(parameter, {})
                along[dim] = min(parameter.shape[dim], along.get(dim, 0) + count * layer.size)
        kept = (math.prod(1 - n / p.shape[dim] for dim, n in along.items()) for p, along in gone.items())
        return sum(p.numel() * (1 - share) for p, share in zip(gone, kept, strict=True))


def _layers(model: nn.Module, run: Callable[[], Any], keep: list[nn.Module]) -> list[Layer]:
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    model.eval().requires_grad_(True)  # the graph is traced through gradients, frozen layers included
    names = {module: name for name, module in model.named_modules()}
    tangled = {module for module in names if _tangled(module)}
    ignored = [m for top in keep for m in top.modules()] + [m for m, name in names.items() if _owner(name, names) in tangled]
    layers, failure = _followed(model, run, names, ignored)
    if not layers and tangled:  # DepGraph may lose its way in them; without them it does not see what only they have seen, as a decoder the encoder
        hidden = [module.register_forward_hook(_untraced) for module in tangled]
        layers, failure = _followed(model, run, names, ignored)
        for handle in hidden:
            handle.remove()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    model.train(training)
    if failure:
        raise ModelError(f"the layers of this model can't be followed: {failure}", fix="leave out `prune`") from failure
    return layers


def _followed(
    model: nn.Module, run: Callable[[], Any], names: dict[nn.Module, str], ignored: list[nn.Module]
) -> tuple[list[Layer], Exception | None]:
    """Layers as DepGraph finds them, or its error."""
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, None, forward_fn=lambda *_: run(), customized_pruners={Conv1D: _Transposed()}, verbose=False
        )
        for dependency in (dependency for node in graph.module2node.values() for dependency in node.dependencies):
            if _inseparable(dependency.target.module, names.get(dependency.target.module, "")):
                dependency.is_triggered_by = partial(_stop, dependency.trigger)
        groups = [_first_half(graph, group) for group in _groups(graph, set(ignored))]
        return [layer for group in groups if (layer := _layer(group, names)) is not None], None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # DepGraph raises nothing narrower
        return [], error


def _groups(graph: Any, ignored: set[nn.Module]) -> Iterator[Any]:
    """Groups of all outputs of layers, without those that reach what is ignored or inseparable.

    As DepGraph's `get_all_groups`, which gives none at all where it loses its way in one of them, and follows a residual stream to its end: one that
    is split and joined many times, as Swin's, fills the memory.
    """
    seen = set(ignored)
    for module in list(graph.module2node):
        if module in seen or not isinstance(module, tuple(_ROOTS)):
            continue
        pruner = graph.get_pruner_of_module(module)
        try:
            group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module))))
        except (ArithmeticError, LookupError):
            continue
        outputs = {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        seen |= outputs
        if not outputs & ignored:
            yield group


def _stop(trigger: Any, function: Any) -> bool:
    """In place of a dependency's own `is_triggered_by`: a group ends in failure where it would reach what is inseparable."""
    if function == trigger:
        raise LookupError("inseparable")
    return False


def _untraced(module: nn.Module, given: Any, made: Any) -> Any:
    """What a module made, without the trace that led to it."""
    return tree_map_only(Tensor, Tensor.detach, made)


def _first_half(graph: Any, group: Any) -> Any:
    """A group; of a layer whose halves multiply each other, that of its first half, with which the other goes."""
    least = min(len(indices) for _, indices in group)
    first = group[0]
    return group if least == len(first.idxs) else graph.get_pruning_group(first.dep.target.module, first.dep.handler, list(range(least)))


def _layer(group: Any, names: dict[nn.Module, str]) -> Layer | None:
    """A group as a layer, or None if its units can't go without changing what the rest computes, or if DepGraph lost its way in it."""
    channels = len(set(group[0].root_idxs))
    parts, attention, size = [], None, 1
    norms = [m for dep, _ in group if isinstance(m := dep.target.module, nn.GroupNorm) and m.num_groups > 1]
    for dep, indices, roots in ((item.dep, item.idxs, item.root_idxs) for item in group):
        module = dep.target.module
        if _inseparable(module, names.get(module, "")):
            return None
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        pieces = [indices[start : start + channels] for start in range(0, len(indices), channels)]  # both halves of the first layer, or one
        if list(roots) != list(range(channels)) * len(pieces) or (len(pieces) > 1 and module is not group[0].dep.target.module):
            return None
        inputs = "in_channels" in dep.handler.__name__ and module.weight.dim() > 1
        columns = 0 if isinstance(module, Conv1D) else 1
        along = [(module.weight, columns)] if inputs else [(module.weight, 1 - columns if module.weight.dim() > 1 else 0), (module.bias, 0)]
        if any(max(indices) >= tensor.shape[dim] for tensor, dim in along if tensor is not None):
            return None
        if not inputs and isinstance(module, tuple(_ROOTS)) and getattr(module, "groups", 1) == 1 and len(indices) < along[0][0].shape[along[0][1]]:
            return None  # the other half are gates of GLU, which DepGraph takes for one that keeps their number
        parts += [(tensor, dim, list(piece)) for tensor, dim in along if tensor is not None for piece in pieces]
        owner = _owner(names[module], names)
        if not inputs and (width := _head_width(owner, channels)):
            attention, size = owner, width
    if norms:  # whole groups, so that those that stay are normalised as before
        if attention is not None or len({norm.num_groups for norm in norms}) > 1 or any(norm.num_channels != channels for norm in norms):
            return None
        size = channels // norms[0].num_groups
    units = channels // size
    step = 1 if size > 1 or units < 4 * _MULTIPLE else _MULTIPLE
    root = names[attention] if attention is not None else names[group[0].dep.target.module]
    return Layer(root, group, parts, size, units, step, attention, norms) if units > 1 else None


def _head_width(owner: nn.Module | None, channels: int) -> int:
    """Channels of each head, if these are an attention's; 0 for others, such as those of a feed-forward network in the same module."""
    width = int(getattr(owner, "attention_head_size", None) or getattr(owner, "head_dim", None) or 0)
    heads = next((count for name in _HEADS if (count := getattr(owner, name, None))), None)
    return width if heads is None or heads * width == channels else 0


def _inseparable(module: nn.Module, name: str) -> bool:
    """Whether channels can't go one by one without changing what the others do: of a normalisation over all, or a convolution in groups.

    What reaches an embedding is the residual stream of the whole model.
    What joins columns normalises each one's vector, once and last: recovery makes up for that, and most of a ResNet is in the layers before it.
    """
    if name.startswith("join."):
        return False
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return 1 < module.groups < module.out_channels
    return isinstance(module, nn.Embedding | nn.Parameter | nn.LayerNorm) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1)


def _owner(name: str, names: dict[nn.Module, str]) -> nn.Module | None:
    parent = name.rpartition(".")[0]
    return next((m for m, n in names.items() if n == parent), None)


def _tangled(owner: nn.Module) -> bool:
    """Whether a module is an attention whose heads can't be removed one by one.

    Several query heads share a key; one layer makes queries, keys and values; or rotary positions mix the halves of each head, in which
    DepGraph loses its way.
    """
    if not any(isinstance(part, tuple(_ROOTS)) for part in owner.children()):
        return False  # but has parts that may be
    shared = getattr(owner, "num_key_value_groups", 1) > 1
    fused = any(hasattr(owner, name) for name in _HEADS) and any(len(w) == 3 * w[0].numel() for w in _weights(owner))
    return shared or fused or "position_embeddings" in inspect.signature(owner.forward).parameters


def _weights(owner: nn.Module) -> list[Tensor]:
    """Weights (outputs, inputs) of its own layers."""
    layers = [part for part in owner.children() if isinstance(part, tuple(_ROOTS))]
    return [cast(Tensor, layer.weight.T if isinstance(layer, Conv1D) else layer.weight) for layer in layers]


class _Transposed(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """GPT-2's linear layers, whose weights are (inputs, outputs)."""

    TARGET_MODULES = Conv1D

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        kept = sorted(set(range(layer.nf)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        layer.nf = len(kept)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        kept = sorted(set(range(layer.nx)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        layer.nx = len(kept)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.nf)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.nx)


def _count_heads(attention: nn.Module, heads: int, size: int) -> None:
    for name, value in {"num_attention_heads": heads, "num_heads": heads, "all_head_size": heads * size, "embed_dim": heads * size}.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
