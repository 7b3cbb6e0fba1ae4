from collections.abc import Callable

import numpy as np
import pytest

Waveform = np.ndarray


@pytest.fixture(scope="session")
def voice() -> Callable[..., Waveform]:
    """A function that makes a waveform whose loudness and spectrum change like those of speech."""

    def make(num_samples: int, *, seed: int = 0, rms: float = 0.03) -> Waveform:
        noise = np.random.default_rng(seed).standard_normal(num_samples + 64)
        coloured = np.convolve(noise, np.exp(-np.arange(64) / 8), mode="same")[:num_samples]
        syllables = 0.1 + np.sin(np.arange(num_samples) / (1500 + 100 * (seed % 7))) ** 2
        waveform = coloured * syllables
        return (waveform * rms / np.sqrt(np.mean(waveform**2))).astype(np.float32)

    return make
