import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechclip.encoders import load_encoder, prepare
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.whisper import UNTRAINED_TINY, WhisperStates, build_model
from speechclip.errors import InvalidInput, TooLong

BOUND = 1e-5


@functools.cache
def tiny(max_seconds=1):
    encoder = load_encoder("whisper:untrained-tiny", "speech")
    return WhisperStates(encoder._model, encoder.spec, encoder.encoder_name, max_seconds=max_seconds)


@pytest.mark.parametrize(("num_samples", "seconds"), [(480_000, 30), (20_000, 2), (16_000, 1), (300, 1)])
def test_states_are_those_of_a_transformers_encoder_built_for_that_window(voice, num_samples, seconds):
    model = tiny()._model
    reference = build_model(UNTRAINED_TINY | {"max_source_positions": 50 * seconds}).eval()
    weights = model.state_dict()
    weights["embed_positions.weight"] = weights["embed_positions.weight"][: 50 * seconds]
    reference.load_state_dict(weights)
    waveform = voice(num_samples)
    mel = WhisperFeatureExtractor()(
        waveform, sampling_rate=16_000, max_length=16_000 * seconds, return_tensors="pt"
    ).input_features
    states = []
    reference.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    for layer in reference.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.inference_mode():
        reference(mel)
    expected = torch.cat(states)[:, : -(-num_samples // 320)]
    np.testing.assert_allclose(tiny().encode([waveform])[0], expected, rtol=0, atol=BOUND)


def test_the_log_mel_is_transformers_own_on_the_window(voice):
    waveform = voice(20_000)
    extractor = WhisperFeatureExtractor()
    theirs = extractor(waveform, sampling_rate=16_000, max_length=32_000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(tiny()._log_mel(waveform, 2), theirs, rtol=0, atol=BOUND)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 50_000), min_size=1, max_size=6), max_seconds=st.sampled_from([1, 4, 100]))
def test_a_whisper_feature_is_the_same_alone_and_in_any_batch(voice, lengths, max_seconds):
    waveforms = [voice(length, seed=seed) for seed, length in enumerate(lengths)]
    together = tiny(max_seconds).encode(waveforms)
    for feature, waveform in zip(together, waveforms, strict=True):
        assert feature.shape == (4, -(-len(waveform) // 320), 96)
        np.testing.assert_allclose(feature, tiny().encode([waveform])[0], rtol=0, atol=BOUND)


def test_more_than_thirty_seconds_are_too_long(voice):
    check = prepare(tiny().spec)
    check(voice(480_000))
    with pytest.raises(TooLong, match=r"30\.0 s of speech.*30 s at most"):
        check(voice(480_001))


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_folder_may_have_the_whole_model_or_its_encoder_alone(tmp_path, voice, is_whole):
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32, "vocab_size": 60_000}
    model = fill_untrained(WhisperModel(WhisperConfig(**UNTRAINED_TINY, **sizes)))
    (model if is_whole else model.encoder).save_pretrained(tmp_path)
    encoder = load_encoder(f"whisper:{tmp_path}", "speech", layers=[3])
    assert encoder.spec.rules["window"] == "whisper-ceil-1s/1"
    assert encoder.spec.is_trained
    expected = WhisperStates(model.encoder, encoder.spec, "expected").encode([voice(9_000)])
    np.testing.assert_array_equal(encoder.encode([voice(9_000)]), expected)


def test_another_untrained_whisper_is_refused():
    with pytest.raises(InvalidInput, match="whisper:untrained-tiny"):
        load_encoder("whisper:untrained-base", "speech")
