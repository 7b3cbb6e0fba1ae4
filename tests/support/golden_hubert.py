"""The recorded HuBERTs of the official modules, and waveforms for them; weights by a formula."""

import functools
from pathlib import Path

import numpy as np
import torch

from speechclip.encoders.hubert import HubertEncoder, build_model, hubert_spec

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
KINDS = ("base", "large")


@functools.cache
def golden(kind):
    return torch.load(GOLDEN / f"hubert_{kind}_like.pt", weights_only=True)


def golden_weight(name, shape):
    """The formula of the recordings' README."""
    size = int(np.prod(shape))
    values = np.sin(0.7390851 * np.arange(size, dtype=np.float64) + 1.1 * len(name)).reshape(shape)
    if len(shape) <= 1:
        values = float(name.endswith("weight")) + 0.05 * values
    elif name.endswith("original0"):
        values = 1 + 0.1 * values
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@functools.cache
def golden_model(kind):
    model = build_model("hubert", golden(kind)["hf_config"])
    model.load_state_dict({name: golden_weight(name, value.shape) for name, value in model.state_dict().items()})
    return model


@functools.cache
def golden_encoder(kind, max_frames=1):
    model = golden_model(kind)
    spec = hubert_spec(model, name=f"golden-{kind}-untrained", is_trained=False, encoder_name="golden")
    return HubertEncoder(model, spec, "golden", max_frames=max_frames)


@functools.cache
def voice_of(num_samples, seed):
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.03 * noise * np.sin(np.arange(num_samples) / 1500) ** 2).astype(np.float32)
