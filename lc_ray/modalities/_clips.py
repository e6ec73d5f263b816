"""Speech models that hear clips of any length, each as if it were alone: what they make of it does not depend on its neighbours in a batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lc_ray.errors import ModelError

_OTHERS = "use a model such as wav2vec2, HuBERT, WavLM, AST or Whisper"
_NEAR = 1e-3  # of the standard deviation of hidden states
_STEPS = {True: (6_400, 6_720), False: (19, 20)}  # of a clip that is probed, of samples or frames: some models drop an odd frame


def hear(model: Any, clips: Tensor, lengths: Tensor) -> Any:
    """A model's outputs for clips (batch, steps, ...) that are padded with zeros, of so many steps each (batch,).

    Where padding changes what a model makes of a clip, as it convolves past the clip's end, all batches are padded alike.
    """
    if to := getattr(model.config, "padded_to", 0):
        more = torch.zeros(clips.shape[0], to, *clips.shape[2:], dtype=clips.dtype, device=clips.device)
        clips = torch.cat([clips, more], 1)[:, :to]
    own = torch.arange(clips.shape[1], device=lengths.device)[None] < lengths[:, None]
    if any(isinstance(part, _FirstLayer) for part in model.modules()):
        clips = torch.stack([clips, own.to(clips.dtype)], -1)
    return model(clips, attention_mask=own.long())


def heard(model: Any, positions: int, lengths: Tensor) -> Tensor:
    """Which of a model's positions are of the clips, not of padding: (batch, positions)."""
    return cast(Tensor, torch.arange(positions, device=lengths.device)[None] < model._get_feat_extract_output_lengths(lengths)[:, None])


def alone(model: Any) -> None:
    """Have a model that normalises over time, as wav2vec2 may, leave out what is padding."""
    first = next(iter(getattr(getattr(model, "feature_extractor", None), "conv_layers", [])), None)
    norm = getattr(first, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels:
        model.feature_extractor.conv_layers[0] = _FirstLayer(first)


def settle(model: Any, longest: int, source: str) -> None:
    """Find out whether padding changes what a model makes of a clip, and let its configuration say so.

    Args:
        model: as `alone` leaves it.
        longest: steps of the longest clip.
        source: folder or hub id.

    Raises:
        ModelError: the model does not take clips alone.
    """
    training = model.training
    try:
        with torch.no_grad():
            # Of zeros batch normalisation makes other numbers, but only once it has seen batches.
            if any(isinstance(part, nn.BatchNorm1d) for part in model.modules()) or not _ignores_padding(model.eval()):
                model.config.padded_to = longest
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        raise ModelError(f"this model does not encode sounds alone: {model.config.model_type}", source, _OTHERS) from None
    model.train(training)


def _ignores_padding(model: Any) -> bool:
    raw = model.main_input_name == "input_values"
    for steps in _STEPS[raw]:
        lengths = torch.tensor([steps])
        noise = torch.randn(1, steps, *([] if raw else [model.config.feature_projection_input_dim]), generator=torch.Generator().manual_seed(0))
        whole, padded = (hear(model, clips, lengths).last_hidden_state for clips in (noise, torch.cat([noise, torch.zeros_like(noise)], 1)))
        if (whole - padded[:, : whole.shape[1]])[heard(model, whole.shape[1], lengths)].abs().max() > _NEAR * whole.std():
            return False
    return True


class _FirstLayer(nn.Module):
    """The layer of wav2vec2 and its like that normalises each channel over time."""

    exact = True  # not quantized: OpenVINO 2026.4 would compute it wrongly, and quiet clips would be lost in the range of loud ones

    def __init__(self, layer: Any) -> None:
        super().__init__()
        norm = layer.layer_norm
        self.conv, self.activation = layer.conv, layer.activation
        self.layer_norm = _OwnNorm(norm.num_groups, norm.num_channels, norm.eps)
        self.layer_norm.load_state_dict(norm.state_dict())

    def forward(self, clips: Tensor) -> Tensor:
        """(batch, 1, samples, 2), each sample with whether it is the clip's → (batch, channels, frames)."""
        samples, own = clips.unbind(-1)
        size, step = self.conv.kernel_size[0], self.conv.stride[0]
        return cast(Tensor, self.activation(self.layer_norm(self.conv(samples), own[..., size - 1 :: step])))


class _OwnNorm(nn.GroupNorm):
    """Normalises each channel by the frames that are the clip's own."""

    def forward(self, hidden: Tensor, own: Tensor) -> Tensor:  # type: ignore[override]
        """Hidden (batch, channels, frames), own (batch, 1, frames) → (batch, channels, frames)."""
        values, own = hidden.float(), own.float()
        count = own.sum(-1, keepdim=True)
        centred = (values - (values * own).sum(-1, keepdim=True) / count) * own
        normal = centred * (centred.square().sum(-1, keepdim=True) / count + self.eps).rsqrt()
        return normal.to(hidden.dtype) * self.weight[:, None] + self.bias[:, None]
