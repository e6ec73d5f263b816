"""A GPU that is pretended, so that tests on CPUs find what would not be where the model is.

All is computed on the CPU as ever. What would be on the GPU is marked, and so is all that is made of it. What mixes it with what is not, raises as
PyTorch does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lc_ray.models.batches import collate, feed
from lc_ray.quantize.none import Run

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_MOVES = ("to", "cuda", "cpu")
# Places may be told on the CPU, a copy goes from anywhere to anywhere, and the others compute nothing.
_MIX = ("__getitem__", "__setitem__", "copy_", "__set__", "_has_compatible_shallow_copy_type")


def mark(value: Any, marked: bool = True) -> Any:
    """Have tensors be on the GPU, or no more."""

    def one(tensor: Tensor) -> Tensor:
        tensor.pretended = marked  # type: ignore[attr-defined]
        return tensor

    return tree_map_only(Tensor, one, value)


def _marked(tensor: Tensor) -> bool:
    return getattr(tensor, "pretended", False)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class Pretended(TorchFunctionMode):
    """As if there were a GPU while it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        given = list(_tensors([args, kwargs]))
        if func == Tensor.device.__get__:
            return CUDA if _marked(args[0]) else func(*args, **kwargs)
        if func == Tensor.is_cuda.__get__:
            return _marked(args[0])
        if name in _MOVES and given and isinstance(args[0], Tensor):
            return self._moved(func, name, args, kwargs)
        if name in ("numpy", "__array__") and _marked(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = CPU
        held = {_marked(tensor) for tensor in given if tensor.dim()}
        if len(held) > 1 and not (name in _MIX and (name != "__getitem__" or _marked(args[0]))):
            told = ", ".join(f"{'cuda' if _marked(tensor) else 'cpu'} {tuple(tensor.shape)}" for tensor in given)
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {told}")
        if name == "__set__" and len(args) > 1 and isinstance(args[1], Tensor):  # of `data`, or `grad`
            mark(args[0], _marked(args[0]) if func == Tensor.grad.__set__ else _marked(args[1]))
        found = func(*args, **kwargs)
        there = torch.device(wanted).type == "cuda" if wanted is not None else any(map(_marked, given))
        return mark(found) if there else found

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        places = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device | str | Tensor)]
        there = name == "cuda" or (_marked(args[0]) if name == "to" else False)
        for place in places:
            there = _marked(place) if isinstance(place, Tensor) else torch.device(place).type == "cuda"
        plain = [CPU if isinstance(x, torch.device | str) else x for x in args[1:]]
        named = {k: CPU if isinstance(x, torch.device | str) else x for k, x in kwargs.items()}
        found = args[0] if name == "cuda" else func(args[0], *plain, **named)
        if found is args[0] and there != _marked(found) and not isinstance(found, torch.nn.Parameter):
            found = found.clone()
        return mark(found, there)


def on_a_gpu(model: Any, task: Any, rows: dict[str, list[Any]], columns: dict[str, Any]) -> None:
    """What is done with a model on a GPU: a training step with distillation, an evaluation by a worker, and one, and answers, by the engine."""
    model = copy.deepcopy(model)
    with Pretended():
        model.cuda()

        def run(batch: dict[str, Tensor]) -> Any:
            with torch.no_grad():
                return model({name: tensor.to(CUDA) for name, tensor in batch.items()}).float().cpu().numpy()

        batch, targets = mark(feed(rows, columns, task, torch.Generator().manual_seed(0), True, 0.5))
        with torch.no_grad():
            soft = model.eval()(batch)
        outputs = model.train()(batch)
        loss = task.loss(outputs, targets) + task.distill(outputs, soft, targets, 2.0)
        assert loss.device == CUDA
        assert (items := task.items(targets)) is None or items.device == CUDA
        loss.backward()
        model.eval()
        batch, targets = feed(rows, columns, task)
        engine = Run(model, 1)
        scores = [task.score(run, mark(dict(batch)), mark(targets)), task.score(engine, mark(batch, False), mark(targets, False))]
        assert [len(one) for one in scores] == [len(next(iter(rows.values())))] * 2
        task.answer(engine, collate(rows, columns))
