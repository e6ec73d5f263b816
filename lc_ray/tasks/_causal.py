"""Causal language models of transformers: what their tokens see, and what they go on with."""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lc_ray.errors import ModelError
from lc_ray.modalities import _hub
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks import _language, _task
from lc_ray.tasks._past import Past, begun, beside
from lc_ray.tasks._task import Batch

_CAUSAL = "use one of the GPT, Llama, Qwen or Gemma families"
_NEAR = 0.01  # of the standard deviation of logits
_ODD = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)  # what models raise that do not take what they are given
_FIRST, _SECOND, _PADDING = torch.tensor([[2, 3, 4, 5]]), torch.tensor([[6, 7]]), torch.tensor([[0]])  # texts
_log = logging.getLogger(__name__)


class Model(_language.Model):
    """One that reads texts beside each other, and goes on with keys and values. See `_language.Model`."""

    AUTO = AutoModelForCausalLM

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(model, column)
        config = model.config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        self.windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
        self.adds = config._attn_implementation != "sdpa"  # its mask to the scores, or takes what is seen as it is
        # Whether attention is its own, and takes keys and values as one tensor each: so does that which keeps them compressed (DeepSeek).
        self.joins = self.adds or not getattr(model, "_supports_attention_backend", False) or hasattr(config, "kv_lora_rank")
        _count_in_masks(sys.modules[type(model.base_model).__module__])

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Any) -> Any:
        """See `_language.Model`; an `Alone`, where texts can't be read beside each other.

        Raises:
            ModelError: it has an encoder, which would be left out; what it says depends on later tokens or padding, or the task packs texts that
                would see each other.
        """
        source = sources[inputs[0].column]
        with _hub.loading("language model", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ModelError(f"this model reads with an encoder, and is no causal language model: {config.model_type}", source, _CAUSAL)
        found = super().pretrained(spec, inputs, sources, task).eval()
        config = found.model.config
        # GPT-Neo counts its window by itself, wrongly of sequences of several lengths.
        short = "local" in getattr(config, "attention_layers", []) and config.window_size < task.positions
        if not short and found._separates():
            return found.train()
        alone = Alone(found.model, found.column).eval()
        if not alone._pads():
            raise ModelError("what this model says depends on later tokens, or padding", source, _CAUSAL)
        if task.packing:
            raise ModelError("texts of this model would see each other in one sequence", source, "set task.packing to false")
        _log.warning("%s: nothing of this model can be kept between tokens, so for each token of an answer all before it is read again", source)
        return alone.train()

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Any:
        """See `_language.Model`."""
        return Alone.rebuild(config, task) if config.get("alone") else super().rebuild(config, task)

    def _separates(self) -> bool:
        """Whether tokens see, and count, those alone that they are told to: of texts beside each other, and beside a gap in what is kept.

        Models whose memory is a state, or whose positions can't be told, do not.
        """
        try:
            with torch.no_grad():
                expected = [self.model(input_ids=text).logits[0, -1] for text in (_FIRST, _SECOND)]
                together = self(self._batch(torch.cat([_FIRST, _SECOND, _PADDING], 1), 1, 1, 1, 1, 2, 2, 0))[0]
                _, kept = self.remember(self._batch(_FIRST[:, :2], 1, 1), [])
                gap = [nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in kept]
                later, _ = self.remember(self._batch(_FIRST[:, 2:], 1, 1, 0, 1, 1), gap)
        except _ODD:
            return False
        return _near(together[3], expected[0]) and _near(together[5], expected[1]) and _near(later[0, -1], expected[0])

    def _batch(self, ids: Tensor, *mask: int) -> Batch:
        return {f"{self.column}.input_ids": ids, f"{self.column}.attention_mask": torch.tensor([mask])}

    def arguments(self, tensors: Batch) -> dict[str, Any]:
        """A token sees those before it with the same number in the mask, and its position is how many they are.

        The mask may begin with tokens that a cache holds.
        """
        numbers, new = tensors["attention_mask"], tensors["input_ids"].shape[1]
        index = torch.arange(numbers.shape[1], device=numbers.device)
        # (rows, new positions, positions)
        seen = (numbers[:, -new:, None] == numbers[:, None, :]) & (index[-new:, None] >= index)
        # Counted in floats: OpenVINO 2026.4 sums whole numbers wrongly where there are more rows than positions.
        positions = seen.float().sum(-1).long() - 1
        places = (numbers > 0).float().cumsum(-1)
        masks = self._masks(seen[:, None], places[:, -new:], places)
        return {"input_ids": tensors["input_ids"], "attention_mask": masks, "position_ids": positions, "use_cache": False}

    def _masks(self, seen: Tensor, queries: Tensor, keys: Tensor) -> Any:
        """What attention takes as its mask; by kind of layer, if there are several.

        Args:
            seen: which of all tokens each new one sees, (rows, 1, tokens, all).
            queries: places of the new tokens, (rows, tokens), which windows count from.
            keys: places of all tokens, (rows, all).
        """
        masks = {}
        for kind, window in self.windows.items():
            near = seen if window is None else seen & (queries[:, None, :, None] - keys[:, None, None] < window)
            dtype = self.model.dtype
            masks[kind] = torch.zeros((), dtype=dtype, device=near.device).masked_fill(~near, torch.finfo(dtype).min) if self.adds else near
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def stages(self, batch: Batch) -> list[Batch]:
        """The one that there is: a batch, after no tokens."""
        ids = batch[f"{self.column}.input_ids"][:, :1]
        with torch.no_grad():
            _, new = self.remember({f"{self.column}.input_ids": ids, f"{self.column}.attention_mask": torch.ones_like(ids)}, [])
        return [batch | begun([], new)]

    def remember(self, batch: Batch, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, after tokens that were given before: for engines that have no cache of transformers.

        Args:
            batch: as for `forward`; the mask has the tokens before too.
            past: keys and values of each layer, (rows, heads, tokens before, width).

        Returns:
            The logits, and the new tokens' keys and values as in `past`.
        """
        cache = Past(past, self.joins)
        own = _task.named(batch, self.column)
        with nullcontext() if self.joins else beside(self.model), _language.only(own.get("asked")):
            logits = self.model(**self.arguments(own) | {"past_key_values": cache, "use_cache": True}).logits
        return logits, cache.new

    def extend(self, ids: Tensor, positions: Tensor, asked: Tensor, cache: Any, seen: Tensor | None = None) -> Tensor:
        """Logits (rows, asked, vocabulary) after further tokens, whose keys and values the cache takes.

        Args:
            ids: (rows, tokens).
            positions: of those tokens, (rows, tokens).
            asked: of each row's tokens those that logits are given after, (rows, asked).
            cache: of transformers; holds the tokens before.
            seen: which of all cached tokens each one sees, (rows, 1, tokens, cached); all that are not after it if not given.
        """
        every = torch.arange(cache.get_mask_sizes(ids.shape[1], 0)[0], device=ids.device)[None]
        if seen is None and (self.adds or any(self.windows.values())):
            seen = (every <= positions[..., None])[:, None]
        masks = None if seen is None else self._masks(seen, positions, every)
        with _language.only(asked):
            found = self.model(input_ids=ids, position_ids=positions, attention_mask=masks, past_key_values=cache, use_cache=True)
        return cast(Tensor, found.logits)


class Alone(_language.Model):
    """One that has texts padded on their right, each in a sequence of its own, and keeps nothing between tokens. See `_language.Model`."""

    AUTO = AutoModelForCausalLM

    @property
    def config(self) -> dict[str, Any]:
        """What `Model.rebuild` needs, as JSON."""
        return super().config | {"alone": True}

    def arguments(self, tensors: Batch) -> dict[str, Any]:
        """Tokens and mask."""
        return {"input_ids": tensors["input_ids"], "attention_mask": (tensors["attention_mask"] > 0).long(), "use_cache": False}

    def _pads(self) -> bool:
        """Whether neither padding nor later tokens change what is said."""
        try:
            with torch.no_grad():
                expected = self.model(input_ids=_FIRST).logits[0, -1]
                ids, mask = torch.cat([_FIRST, _SECOND, _PADDING], 1), torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
                found = self({f"{self.column}.input_ids": ids, f"{self.column}.attention_mask": mask})[0, 3]
        except _ODD:
            return False
        return _near(found, expected)


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _NEAR * expected.std())


def _count_in_masks(module: Any) -> None:
    """Have a module of transformers count ALiBi's distances in masks that have what each token sees, too: not in tokens that none does."""
    if not (build := getattr(module, "build_alibi_tensor", None)) or hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def counted(mask: Tensor, *others: Any, **named: Any) -> Tensor:
        if mask.dim() == 4:
            mask = (mask if mask.dtype == torch.bool else mask == 0).any(2)[:, 0].long()
        return cast(Tensor, build(mask, *others, **named))

    module.build_alibi_tensor = counted
