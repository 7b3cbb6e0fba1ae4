"""Padded batches as fairseq computes them.

They equal transformers' under fairseq's mask. One utterance alone gives its stored feature, and a batch does not.
"""

import functools

import numpy as np
import pytest
import torch
from support.golden_hubert import KINDS, golden_encoder, golden_model, voice_of

from speechclip.encoders import load_encoder
from speechclip.encoders.padded import frame_padding, official_length, pad
from speechclip.encoders.transformer import normalise_waveform

LENGTHS = (16_000, 9_100, 5_050)


@functools.cache
def tiny(kind):
    return load_encoder("hubert:untrained-tiny" if kind == "base" else "hubert:untrained-tiny-large", "speech")


def valid_frames(num_samples, longest, num_frames):
    """fairseq's rule, written in another way: the parts of the padded batch with at least one real sample."""
    part = (longest - longest % num_frames) // num_frames
    return sum(number * part < num_samples for number in range(num_frames))


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_what_transformers_makes_of_it_under_fairseqs_mask(kind):
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS)]
    encoder, model = golden_encoder(kind), golden_model(kind)
    num_frames = encoder.spec.num_frames(max(LENGTHS))
    ready = [torch.from_numpy(waveform) for waveform in waveforms]
    if kind == "large":
        # Our own normalisation, to the last bit: another last bit of a near-silent sample moves a state by 1e-4.
        ready = [normalise_waveform(one) for one in ready]
    # With these lengths, transformers counts as many frames as fairseq.
    counts = [400 + 320 * (valid_frames(length, max(LENGTHS), num_frames) - 1) for length in LENGTHS]
    mask = torch.tensor([[1] * count + [0] * (max(LENGTHS) - count) for count in counts])
    padded = torch.nn.utils.rnn.pad_sequence(ready, batch_first=True)
    with torch.inference_mode():
        expected = model.eval()(padded, attention_mask=mask, output_hidden_states=True).hidden_states
    found = encoder.encode_padded(waveforms)
    for row, (feature, length) in enumerate(zip(found, LENGTHS, strict=True)):
        assert feature.shape[1] == min(round(length / 320), num_frames)
        for state, whole in enumerate(expected):
            np.testing.assert_allclose(feature[state], whole[row, : feature.shape[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [400, 719, 5_000, 16_000])
def test_one_utterance_alone_gives_its_stored_feature(kind, num_samples):
    waveform = voice_of(num_samples, 3)
    (padded,) = tiny(kind).encode_padded([waveform])
    np.testing.assert_allclose(padded, tiny(kind).encode([waveform])[0], rtol=0, atol=1e-5)


def test_utterances_of_equal_length_give_their_stored_features():
    waveforms = [voice_of(8_000, seed) for seed in range(3)]
    for padded, stored in zip(tiny("base").encode_padded(waveforms), tiny("base").encode(waveforms), strict=True):
        np.testing.assert_allclose(padded, stored, rtol=0, atol=1e-5)


def test_in_a_padded_base_batch_every_shorter_utterance_differs_and_the_longest_does_not():
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS)]
    found, stored = tiny("base").encode_padded(waveforms), tiny("base").encode(waveforms)
    np.testing.assert_allclose(found[0], stored[0], rtol=0, atol=1e-5)
    for padded, alone in zip(found[1:], stored[1:], strict=True):
        assert np.abs(padded[:, : alone.shape[1]] - alone).max(axis=(1, 2)).min() > 1e-3


def test_the_batch_decides_a_base_feature():
    short, long, longer = voice_of(5_000, 0), voice_of(9_000, 1), voice_of(16_000, 2)
    with_long, with_longer = (tiny("base").encode_padded([short, other])[0] for other in (long, longer))
    assert np.abs(with_long - with_longer).max() > 1e-3


def test_large_differs_at_the_end_and_the_front_end_not_at_all():
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS)]
    encoder = load_encoder("hubert:untrained-tiny-large", "speech", layers=[0])
    found, stored = encoder.encode_padded(waveforms)[2][0], encoder.encode(waveforms)[2][0]
    assert len(found) == len(stored) + 1
    # By the position convolution, state 0 sees 64 frames to either side. All padding that it sees is zero, except one.
    difference = np.abs(found[: len(stored)] - stored).max(axis=1)
    assert difference[-1] > 1e-3
    assert difference[0] < difference[-1]


def test_the_frame_mask_lets_in_one_or_two_frames_of_padding():
    """docs/model.md, "Traps", 4: T + 1 frames for about three quarters of lengths, T + 2 for a fifth."""
    generator, surplus = np.random.default_rng(0), []
    for _ in range(400):
        longest = int(generator.integers(60_000, 100_000))
        length = int(generator.integers(16_000, 50_000))
        frames, longest_frames = ((samples - 400) // 320 + 1 for samples in (length, longest))
        _, is_padding = pad([torch.zeros(longest), torch.zeros(length)])
        mask = frame_padding(is_padding, longest_frames)[1]
        surplus.append(int((~mask).sum()) - frames)
        assert int((~mask).sum()) == valid_frames(length, longest, longest_frames)
        assert not mask[: frames + surplus[-1]].any()
    shares = {extra: surplus.count(extra) / 400 for extra in set(surplus)}
    assert 0.6 < shares[1] < 0.9
    assert shares[1] + shares[2] > 0.9


def test_the_official_length_rounds_half_to_even_and_ends_with_the_batch():
    assert [official_length(samples, 99) for samples in (800, 1_120, 16_000, 16_160)] == [2, 4, 50, 50]
    assert official_length(16_000, 49) == 49
