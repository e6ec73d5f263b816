"""Log-mel spectrograms of speech, as SpeechT5 has them, and back to sound."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray
from transformers import SpeechT5FeatureExtractor

_ITERATIONS, _MOMENTUM, _FRAMES = 60, 0.99, 4  # of Griffin-Lim, and how many it takes, at least
_SILENCE, _LOUD = -10, 3


@functools.lru_cache(maxsize=1)
def _extractor() -> Any:
    return SpeechT5FeatureExtractor()


def rate() -> int:
    """Samples per second."""
    return int(_extractor().sampling_rate)


def frames_per_second() -> float:
    """Frames of a spectrogram per second."""
    return float(_extractor().sampling_rate / _extractor().sample_stride)


def bins() -> int:
    """Numbers per frame."""
    return int(_extractor().num_mel_bins)


def spectrogram(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (samples,) → base 10 logarithms of mel amplitudes (frames, bins)."""
    return cast("NDArray[np.float32]", _extractor()._extract_mel_features(samples).astype(np.float32))


def sound(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A spectrogram (frames, bins) → samples, by the fast Griffin-Lim algorithm (Perraudin et al. 2013). The same each time.

    What is too short for it, as a model says that ends at once, is followed by silence.
    """
    extractor = _extractor()
    mel = np.pad(mel, ((0, max(0, _FRAMES - len(mel))), (0, 0)), constant_values=_SILENCE)
    amplitudes = 10.0 ** np.clip(mel.T.astype(np.float64), _SILENCE, _LOUD)  # (bins, frames)
    linear = np.maximum(np.linalg.pinv(extractor.mel_filters.T) @ amplitudes, 0)  # (frequencies, frames)
    window = torch.from_numpy(np.asarray(extractor.window, np.float32))
    found = torchaudio.functional.griffinlim(
        torch.from_numpy(linear).float(),
        window,
        n_fft=extractor.n_fft,
        hop_length=extractor.sample_stride,
        win_length=extractor.sample_size,
        power=1.0,
        n_iter=_ITERATIONS,
        momentum=_MOMENTUM,
        length=None,
        rand_init=False,
    )
    return cast("NDArray[np.float32]", found.numpy())
