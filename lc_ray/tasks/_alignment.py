"""Which token each frame of a recording belongs to: monotonic alignment search (Kim et al. 2020, arXiv:2005.11129).

Every token has some frames, at least one, in the order of the text; an alignment is how many frames each token has.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def likelihood(latents: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log density of each frame under each token's normal distribution.

    Args:
        latents: (batch, frames, width).
        mean: (batch, tokens, width).
        log_deviation: (batch, tokens, width).

    Returns:
        (batch, frames, tokens)
    """
    precision = torch.exp(-2 * log_deviation)
    constant = (log_deviation + 0.5 * math.log(2 * math.pi) + 0.5 * mean.square() * precision).sum(-1)
    return latents @ (mean * precision).mT - 0.5 * latents.square() @ precision.mT - constant[:, None]


def durations(fit: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
    """Frames of each token in the alignment that fits best. Where there are fewer frames than tokens, the last tokens have none.

    Args:
        fit: (batch, frames, tokens), what `likelihood` gives.
        frames: (batch,), how many of them are real, at least 1.
        tokens: (batch,), likewise.

    Returns:
        (batch, tokens), of which each row's sum is its number of real frames.
    """
    best = torch.full_like(fit[:, 0], -math.inf)  # (batch, tokens): of all alignments up to a frame that give it to this token
    best[:, 0] = fit[:, 0, 0]
    moved = torch.zeros_like(fit, dtype=torch.bool)  # whether the frame before belongs to the token before
    for frame in range(1, fit.shape[1]):
        other = F.pad(best[:, :-1], (1, 0), value=-math.inf)
        moved[:, frame] = other > best
        best = torch.maximum(best, other) + fit[:, frame]
    found = torch.zeros_like(best)
    token = (torch.minimum(tokens, frames) - 1).clamp(min=0)[:, None]  # (batch, 1)
    for frame in reversed(range(fit.shape[1])):
        real = (frame < frames)[:, None]
        found.scatter_add_(1, token, real.to(found.dtype))
        token = token - (moved[:, frame].gather(1, token) & real).long()
    return found


def spread(values: Tensor, counts: Tensor, frames: int) -> Tensor:
    """Each token's numbers, as often as it has frames.

    Args:
        values: (batch, tokens, width).
        counts: (batch, tokens), whole numbers.
        frames: of the longest row.

    Returns:
        (batch, frames, width), 0 behind a row's last frame.
    """
    ends = counts.cumsum(1)[:, None]  # (batch, 1, tokens)
    place = torch.arange(frames, device=values.device)[None, :, None]
    return ((place < ends) & (place >= ends - counts[:, None])).to(values.dtype) @ values
