"""Features on a GPU equal those on a CPU within the bound, alone and in any batch."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from support.golden_hubert import KINDS, golden, golden_model, voice_of

from speechclip.encoders import load_encoder
from speechclip.encoders.frozen import use_device
from speechclip.encoders.hubert import HubertEncoder, hubert_spec
from speechclip.encoders.transformer import TransformerStates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

# A share of the largest number in each state, because the states of Large grow with depth.
BOUND = 1e-5
LENGTHS = (400, 9_000, 70_000, 16_000, 102_400, 33_333, 70_001, 250_000)


@functools.cache
def encoder(source: str, device: str) -> TransformerStates:
    found = load_encoder(source, "speech", device=device)
    assert isinstance(found, TransformerStates)
    return found


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest number in its state."""
    assert one.shape == other.shape
    return float((np.abs(one - other).max((-2, -1)) / np.abs(other).max((-2, -1))).max())


@pytest.mark.parametrize("kind", KINDS)
def test_all_states_are_those_of_the_official_modules(kind: str) -> None:
    spec = hubert_spec(golden_model(kind), name="golden-untrained", is_trained=False, encoder_name="golden")
    there = HubertEncoder(golden_model(kind).to(use_device("cuda")), spec, "golden")
    try:
        features = there.encode([waveform.numpy() for waveform in golden(kind)["wavs"]])
    finally:
        golden_model(kind).cpu()
    for feature, recorded in zip(features, golden(kind)["hidden_states"], strict=True):
        # The sine waves of the large recording magnify rounding (see test_hubert.py).
        np.testing.assert_allclose(feature, recorded.numpy(), rtol=0, atol={"base": 1e-5, "large": 3e-3}[kind])


@pytest.mark.parametrize(
    "source", ["hubert:untrained-base", "hubert:untrained-large", "wavlm:untrained-tiny", "torchaudio:untrained-base"]
)
def test_a_feature_is_the_same_alone_in_any_batch_and_on_a_cpu(source: str) -> None:
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS)]
    there = encoder(source, "cuda")
    alone = [there.encode([waveform])[0] for waveform in waveforms]
    for batch in (range(8), [7, 3, 1, 5], [2, 6]):
        for position, feature in zip(batch, there.encode([waveforms[position] for position in batch]), strict=True):
            assert difference(feature, alone[position]) < BOUND
    # The same batch gives the same bits. Without that, a job could not reuse the shard of an earlier job.
    again, batch = there.encode(waveforms), there.encode(waveforms)
    assert all(np.array_equal(one, other) for one, other in zip(again, batch, strict=True))
    for position in (0, 1, 2):
        (on_cpu,) = encoder(source, "cpu").encode([waveforms[position]])
        assert difference(alone[position], on_cpu) < BOUND
    padded = zip(there.encode_padded(waveforms[:4]), encoder(source, "cpu").encode_padded(waveforms[:4]), strict=True)
    assert all(difference(one, other) < BOUND for one, other in padded)


def test_rounding_on_the_gpu_is_that_of_numpy() -> None:
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS[:4])]
    there = encoder("hubert:untrained-base", "cuda")
    exact, rounded = there.encode(waveforms), there.encode(waveforms, np.float16)
    for one, other in zip(exact, rounded, strict=True):
        np.testing.assert_array_equal(one.astype(np.float16), other)


@pytest.mark.parametrize(
    ("source", "modality"),
    [("clip:untrained-ViT-B-32", "image"), ("clip:untrained-ViT-B-32", "text"), ("whisper:untrained-tiny", "speech")],
)
def test_other_encoders_give_a_cpus_features_alone_and_in_a_batch(source: str, modality: Any) -> None:
    generator = np.random.default_rng(0)
    inputs: dict[str, list[np.ndarray]] = {
        "image": list(generator.integers(0, 256, (70, 224, 224, 3), dtype=np.uint8)),
        "text": list(generator.integers(1, 49_000, (70, 77), dtype=np.int32)),
        "speech": [voice_of(length, seed) for seed, length in enumerate(LENGTHS)],
    }
    there, here = (load_encoder(source, modality, device=device) for device in ("cuda", "cpu"))
    batch = there.encode(inputs[modality])
    for position in range(5):
        for other in (there, here):
            (alone,) = other.encode([inputs[modality][position]])
            assert np.abs(batch[position] - alone).max() < BOUND * np.abs(alone).max()
