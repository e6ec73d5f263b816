"""How likely VITS's stochastic predictor finds durations (Kim et al. 2021, arXiv:2106.06103, section 2.2.2).

Of transformers' predictor only the inverse is used elsewhere, which draws durations. Its forward is no inverse of that: it exchanges both halves of
what is latent after the first flow too. What it says is put together here in the order of the inverse, that of published weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_log_likelihood(predictor: Any, hidden: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """A variational bound of the negative log-likelihood of durations, by one draw.

    A whole number less a part of one, and one number beside it, both drawn given the durations, are what the flows move to a normal distribution.

    Args:
        predictor: `VitsStochasticDurationPredictor`.
        hidden: of the text, which learns nothing by this: (batch, width, tokens).
        mask: (batch, 1, tokens).
        counts: frames of each token, at least 1 where the mask is: (batch, 1, tokens).

    Returns:
        (batch,), sums over the tokens.
    """
    text: Tensor = predictor.conv_proj(predictor.conv_dds(predictor.conv_pre(hidden.detach()), mask)) * mask
    known = predictor.post_conv_proj(predictor.post_conv_dds(predictor.post_conv_pre(counts), mask)) * mask
    noise = torch.randn(len(counts), 2, counts.shape[2], device=counts.device) * mask
    drawn, volume = through(predictor.post_flows, noise, mask, text + known)
    part, beside = drawn.chunk(2, 1)
    posterior = _normal(noise, mask) - volume - ((F.logsigmoid(part) + F.logsigmoid(-part)) * mask).sum((1, 2))
    rest: Tensor = (counts - part.sigmoid()).clamp(min=1e-5).log() * mask
    moved, volume = through(predictor.flows, torch.cat([rest, beside], 1), mask, text)
    return posterior - (_normal(moved, mask) + volume - rest.sum((1, 2)))


def through(flows: Any, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (batch, 2, tokens) moved by all flows, and the logarithm of the change of volume (batch,)."""
    latents, volume = flows[0](latents, mask)
    for flow in flows[1:]:
        latents, more = flow(latents, mask, condition)
        latents, volume = latents.flip(1), volume + more
    return latents, volume


def _normal(values: Tensor, mask: Tensor) -> Tensor:
    """Log density under the standard normal distribution (batch,)."""
    return -(0.5 * (math.log(2 * math.pi) + values.square()) * mask).sum((1, 2))
