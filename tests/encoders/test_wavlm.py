"""WavLM: the states of its library, alone and in any batch. The fingerprint contains the settings of the bias."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden_hubert import golden, voice_of
from transformers import WavLMConfig, WavLMModel

from speechclip.encoders import load_encoder
from speechclip.encoders.hubert import HubertEncoder
from speechclip.encoders.untrained import fill_untrained
from speechclip.heads import ParallelConfig


@pytest.mark.parametrize("is_stable", [False, True])
def test_wavlm_gives_the_states_of_its_own_library(tmp_path, is_stable):
    settings = golden("large" if is_stable else "base")["hf_config"] | {"conv_dim": [32] * 7}
    settings |= {"model_type": "wavlm", "num_buckets": 40, "max_bucket_distance": 60}
    model = fill_untrained(WavLMModel(WavLMConfig(**settings, mask_time_prob=0.0))).eval()
    model.save_pretrained(tmp_path)
    waveform = torch.from_numpy(voice_of(24_000, 0))
    ready = torch.nn.functional.layer_norm(waveform, waveform.shape) if is_stable else waveform
    with torch.inference_mode():
        expected = model(ready[None], output_hidden_states=True)
    (found,) = load_encoder(f"wavlm:{tmp_path}", "speech").encode([waveform.numpy()])
    np.testing.assert_allclose(found[:-1], torch.cat(expected.hidden_states)[:-1], rtol=0, atol=1e-5)
    last = torch.from_numpy(found[-1])
    with torch.inference_mode():
        last = model.encoder.layer_norm(last) if is_stable else last
    np.testing.assert_allclose(last, expected.last_hidden_state[0], rtol=0, atol=1e-5)


@functools.cache
def tiny(name, max_frames=1):
    encoder = load_encoder(f"wavlm:{name}", "speech")
    return HubertEncoder(encoder._model, encoder.spec, encoder.encoder_name, max_frames=max_frames)


@pytest.mark.parametrize("name", ["untrained-tiny", "untrained-tiny-large"])
@settings(max_examples=5, deadline=None)
@given(lengths=st.lists(st.integers(400, 24_000), min_size=2, max_size=5))
def test_a_feature_is_the_same_alone_and_in_any_batch(name, lengths):
    waveforms = [voice_of(length, seed) for seed, length in enumerate(lengths)]
    for feature, waveform in zip(tiny(name, 10_000).encode(waveforms), waveforms, strict=True):
        np.testing.assert_allclose(feature, tiny(name).encode([waveform])[0], rtol=0, atol=1e-5)


def test_the_fingerprint_holds_what_shapes_the_bias():
    spec = tiny("untrained-tiny").spec
    assert (spec.family, spec.name) == ("wavlm", "wavlm-untrained-tiny")
    assert (spec.architecture["num_buckets"], spec.architecture["max_bucket_distance"]) == (320, 800)
    assert "num_buckets" not in load_encoder("hubert:untrained-tiny", "speech").spec.architecture


def test_its_states_depend_on_where_a_frame_stands():
    waveform = voice_of(16_000, 0)
    encoder = tiny("untrained-tiny")
    before = encoder.encode([waveform])[0]
    embedding = encoder._model.encoder.layers[0].attention.rel_attn_embed.weight
    kept = embedding.clone()
    embedding.zero_()
    after = encoder.encode([waveform])[0]
    embedding.copy_(kept)
    np.testing.assert_array_equal(before[0], after[0])
    # The last layer has no bias of its own. It got the first layer's.
    assert np.abs(before[1:] - after[1:]).max(axis=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("source", ["wav2vec2:untrained-tiny", "wavlm:untrained-base", "whisper:untrained-tiny"])
def test_a_head_takes_its_sizes_from_the_specs(source):
    spec = load_encoder(source, "speech").spec
    config = ParallelConfig(
        num_layers=len(spec.layers), width=spec.width, image_width=64, embedding_width=64,
        feed_forward_width=2 * spec.width, num_heads=4,
    )  # fmt: skip
    frames = torch.randn(2, len(spec.layers), 5, spec.width)
    assert config.build().eval()(frames, torch.tensor([5, 3])).embedding.shape == (2, 64)
