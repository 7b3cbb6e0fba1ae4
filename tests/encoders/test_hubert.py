import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.golden_hubert import KINDS, golden, golden_encoder, golden_model, voice_of
from transformers import HubertForCTC, HubertModel, Wav2Vec2Config, Wav2Vec2Model

from speechclip.encoders import load_encoder
from speechclip.encoders.hubert import HubertEncoder, build_model
from speechclip.encoders.transformer import normalise_waveform
from speechclip.encoders.untrained import fill_untrained
from speechclip.errors import InvalidInput
from speechclip.store.codec import stored_bytes

BOUND = 1e-5
# The sine waves of the large recording magnify rounding. In double precision the same model is 1e-3 away from what one
# CPU recorded in fp32, and fp32 on another CPU is as far away.
BOUND_OF_RECORDED = {"base": BOUND, "large": 3e-3}
LENGTHS = st.lists(st.integers(400, 24_000), min_size=1, max_size=6)


@pytest.mark.parametrize("max_frames", [1, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_all_states_are_those_of_the_official_modules(kind, max_frames):
    waveforms = [waveform.numpy() for waveform in golden(kind)["wavs"]]
    features = golden_encoder(kind, max_frames).encode(waveforms)
    for feature, recorded in zip(features, golden(kind)["hidden_states"], strict=True):
        assert feature.dtype == np.float32
        np.testing.assert_allclose(feature, recorded.numpy(), rtol=0, atol=BOUND_OF_RECORDED[kind])


def test_the_spec_says_which_waveform_rule_the_recordings_follow():
    assert [golden(kind)["normalize_waveform"] for kind in KINDS] == [False, True]
    rules = [golden_encoder(kind).spec.rules["waveform"] for kind in KINDS]
    assert rules == ["raw/1", "zero-mean-unit-var-eps1e-5/1"]


# Random weights, because the recorded sine waves hardly react to padding: by 7e-4, where these change by 1.2.
@functools.cache
def random_encoder(kind, max_frames=1):
    encoder = load_encoder("hubert:untrained-tiny" if kind == "base" else "hubert:untrained-tiny-large", "speech")
    return HubertEncoder(encoder._model, encoder.spec, encoder.encoder_name, max_frames=max_frames)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, max_frames=st.sampled_from([100, 400, 10_000]))
def test_a_feature_is_the_same_alone_and_in_any_batch(kind, lengths, max_frames):
    waveforms = [voice_of(length, seed) for seed, length in enumerate(lengths)]
    together = random_encoder(kind, max_frames).encode(waveforms)
    for feature, waveform in zip(together, waveforms, strict=True):
        np.testing.assert_allclose(feature, random_encoder(kind).encode([waveform])[0], rtol=0, atol=BOUND)


def test_naive_padding_breaks_the_bound_that_we_keep():
    waveforms = [voice_of(16_000, 0), voice_of(8_000, 1)]
    padded = torch.from_numpy(np.stack([np.pad(waveform, (0, 16_000 - len(waveform))) for waveform in waveforms]))
    mask = torch.tensor([[1] * len(waveform) + [0] * (16_000 - len(waveform)) for waveform in waveforms])
    with torch.inference_mode():
        naive = random_encoder("base")._model(padded, attention_mask=mask).last_hidden_state[1].numpy()
    alone, ours = (random_encoder("base", frames).encode(waveforms)[1][-1] for frames in (1, 10_000))
    assert np.abs(ours - alone).max() < BOUND
    assert np.abs(naive[: len(alone)] - alone).max() > 0.1


def test_a_batch_that_is_encoded_one_by_one_changes_no_bit():
    waveforms = [voice_of(length, seed) for seed, length in enumerate([9_000, 4_000, 16_000])]
    together = random_encoder("base").encode(waveforms)
    for feature, waveform in zip(together, waveforms, strict=True):
        np.testing.assert_array_equal(feature, random_encoder("base").encode([waveform])[0])


def test_the_last_large_state_is_before_the_final_layer_norm():
    model, waveform = golden_model("large"), golden("large")["wavs"][0]
    last = golden_encoder("large").encode([waveform.numpy()])[0][-1]
    normalised = torch.nn.functional.layer_norm(waveform, waveform.shape)
    with torch.inference_mode():
        after = model(normalised[None]).last_hidden_state[0]
        np.testing.assert_allclose(model.encoder.layer_norm(torch.from_numpy(last)), after, rtol=0, atol=BOUND)
    assert np.abs(last - after.numpy()).max() > 0.1


# It compares waveforms and not states, because the last bit of a near-silent sample moves a state by up to 7e-4.
@pytest.mark.parametrize("rms", [0.03, 0.003, 0.0003])
def test_waveforms_are_normalised_by_fairseqs_epsilon(rms):
    waveform = voice_of(8_000, 3)
    waveform = (waveform * (rms / np.sqrt(np.mean(waveform**2)))).astype(np.float32)
    exact = waveform.astype(np.float64)
    fairseq, transformers = ((exact - exact.mean()) / np.sqrt(exact.var() + epsilon) for epsilon in (1e-5, 1e-7))
    found = normalise_waveform(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(found, fairseq, rtol=0, atol=1e-6)
    assert np.abs(found - transformers).max() > 1e-3


def test_loudness_reaches_the_states_only_as_the_rule_lets_it():
    waveform = voice_of(8_000, 3)
    loud, quiet = golden_encoder("large").encode([waveform, waveform / 100])
    assert np.abs(loud - quiet).max() > 0.1


@settings(max_examples=15, deadline=None)
@given(num_samples=st.integers(400, 4_000))
def test_the_frame_count_is_the_specs(num_samples):
    encoder = golden_encoder("base")
    assert encoder.encode([voice_of(num_samples, 0)])[0].shape == (4, encoder.spec.num_frames(num_samples), 48)


def test_chosen_layers_are_those_rows_of_all_states():
    waveform = voice_of(6_000, 0)
    all_states = load_encoder("hubert:untrained-tiny", "speech").encode([waveform])[0]
    chosen = load_encoder("hubert:untrained-tiny", "speech", layers=[3, 0])
    assert chosen.spec.layers == (0, 3)
    np.testing.assert_array_equal(chosen.encode([waveform])[0], all_states[[0, 3]])


@pytest.mark.parametrize("layers", [[5], [-1], [1, 1], []])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(InvalidInput, match="states 0 to 4"):
        load_encoder("hubert:untrained-tiny", "speech", layers=layers)


def test_untrained_weights_are_the_same_on_every_machine():
    spec = load_encoder("hubert:untrained-tiny", "speech").spec
    assert spec.weights == "31b4ca2930b0540dd9cb9534984be33d81821286947e903aa77d4053a8f6ac3d"
    assert not spec.is_trained


@pytest.mark.parametrize("name", ["untrained-tiny", "untrained-tiny-large"])
def test_untrained_states_tell_frames_and_utterances_apart(name):
    encoder = load_encoder(f"hubert:{name}", "speech")
    first, second = encoder.encode([voice_of(16_000, 1), voice_of(16_000, 2)])
    assert (first.std(axis=1).mean(axis=1) > 0.1).all()
    assert (np.abs(first - second).mean(axis=(1, 2)) > 0.05).all()


def test_untrained_base_is_the_architecture_of_hubert_base_ls960():
    spec = load_encoder("hubert:untrained-base", "speech").spec
    assert (spec.width, len(spec.layers), spec.hop_samples, spec.window_samples) == (768, 13, 320, 400)
    assert stored_bytes(spec, 1.0) == 49 * 13 * 768 * 2
    assert spec.architecture["conv_dim"] == [512] * 7
    assert spec.rules["states"] == "pre-final-ln/1"


@pytest.fixture
def tiny_folder(tmp_path):
    """A folder like a published HuBERT's: config.json and model.safetensors by transformers itself."""
    model = fill_untrained(build_model("hubert", golden("base")["hf_config"] | {"conv_dim": [32] * 7}))
    model.save_pretrained(tmp_path / "My Hubert_v1.0")
    return tmp_path / "My Hubert_v1.0", model


def test_a_folder_gives_the_states_of_the_model_that_was_saved_there(tiny_folder):
    folder, model = tiny_folder
    encoder = load_encoder(f"hubert:{folder}", "speech")
    waveform = voice_of(8_000, 0)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(waveform)[None], output_hidden_states=True).hidden_states
    np.testing.assert_allclose(encoder.encode([waveform])[0], torch.cat(expected), rtol=0, atol=BOUND)
    assert encoder.spec.fingerprint.startswith("my-hubert-v1.0-")
    assert encoder.spec.is_trained
    assert str(folder) not in encoder.spec.fingerprint + str(encoder.spec)


def test_other_packings_of_the_same_weights_give_the_same_fingerprint(tiny_folder, tmp_path):
    folder, model = tiny_folder
    fingerprint = load_encoder(f"hubert:{folder}", "speech").spec.fingerprint

    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in model.state_dict().items()
    }
    (folder / "model.safetensors").unlink()
    torch.save(old, folder / "pytorch_model.bin")
    assert load_encoder(f"hubert:{folder}", "speech").spec.fingerprint == fingerprint

    tuned = HubertForCTC(model.config)
    tuned.hubert.load_state_dict(model.state_dict())
    tuned.save_pretrained(folder)
    assert load_encoder(f"hubert:{folder}", "speech").spec.fingerprint == fingerprint


def test_a_missing_weight_is_refused_and_not_started_at_random(tiny_folder):
    folder, model = tiny_folder
    weights = dict(model.state_dict())
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InvalidInput, match=r"encoder\.layers\.1\.attention\.k_proj\.weight is missing"):
        load_encoder(f"hubert:{folder}", "speech")


def test_a_config_with_fewer_layers_than_the_weights_is_refused(tiny_folder):
    folder, model = tiny_folder
    model.config.num_hidden_layers = 2
    model.config.save_pretrained(folder)
    with pytest.raises(InvalidInput, match=r"layers\.2.* is unknown"):
        load_encoder(f"hubert:{folder}", "speech")


def test_half_precision_weights_are_computed_in_fp32(tiny_folder):
    folder, model = tiny_folder
    HubertModel(model.config).half().save_pretrained(folder)
    assert load_encoder(f"hubert:{folder}", "speech").encode([voice_of(4_000, 0)])[0].dtype == np.float32


def test_a_folder_that_says_so_counts_as_untrained(tiny_folder):
    folder, model = tiny_folder
    model.config.speechclip_untrained = True
    model.config.save_pretrained(folder)
    spec = load_encoder(f"hubert:{folder}", "speech").spec
    assert not spec.is_trained
    assert spec.name == "my-hubert-v1.0-untrained"


@pytest.mark.parametrize("is_stable", [False, True])
def test_wav2vec2_gives_the_states_of_its_own_library(tmp_path, is_stable):
    settings = golden("large" if is_stable else "base")["hf_config"] | {"conv_dim": [32] * 7}
    model = fill_untrained(Wav2Vec2Model(Wav2Vec2Config(**settings, mask_time_prob=0.0))).eval()
    model.save_pretrained(tmp_path)
    waveform = torch.from_numpy(voice_of(8_000, 0))
    ready = torch.nn.functional.layer_norm(waveform, waveform.shape) if is_stable else waveform
    with torch.inference_mode():
        expected = model(ready[None], output_hidden_states=True).hidden_states
    found = load_encoder(f"wav2vec2:{tmp_path}", "speech").encode([waveform.numpy()])[0]
    np.testing.assert_allclose(found[:-1], torch.cat(expected)[:-1], rtol=0, atol=BOUND)


def test_a_folder_of_another_family_is_refused(tiny_folder):
    with pytest.raises(InvalidInput, match="hubert"):
        load_encoder(f"wav2vec2:{tiny_folder[0]}", "speech")
