"""torchaudio's models give the states of transformers' for the same weights, alone and in any batch."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.golden_hubert import KINDS, golden, golden_weight, voice_of
from torchaudio import pipelines
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from torchaudio.models.wav2vec2.utils.import_huggingface import _get_config, _get_config_wavlm

from speechclip.cli import main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.encoders import load_encoder
from speechclip.encoders.hubert import HubertEncoder, build_model, hubert_spec
from speechclip.encoders.torchaudio_models import UNTRAINED, TorchaudioEncoder
from speechclip.encoders.transformer import TransformerStates
from speechclip.errors import InvalidInput
from speechclip.store import FeatureStore

FAMILIES = ("hubert", "wav2vec2", "wavlm")
LENGTHS = (400, 5_000, 16_000, 9_001, 24_000)


@functools.cache
def model_of(family: str, kind: str) -> Any:
    """A small model of transformers, like Base (group norm) or Large (layer norm), with weights by a formula."""
    config = golden(kind)["hf_config"] | {"model_type": family}
    if family == "wavlm":
        config |= {"num_buckets": 40, "max_bucket_distance": 60}
    model = build_model(family, config)
    model.load_state_dict({name: golden_weight(name, value.shape) for name, value in model.state_dict().items()})
    return model.eval()


@functools.cache
def folder_of(family: str, kind: str) -> Path:
    """The same model as torchaudio has it: its weights, and the arguments that make it."""
    model, folder = model_of(family, kind), Path(mkdtemp(prefix="torchaudio-"))
    imported = import_huggingface_model(model)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in imported.state_dict().items()},
        folder / "model.safetensors",
    )
    config = (_get_config_wavlm if family == "wavlm" else _get_config)(model.config)
    (folder / "config.json").write_text(json.dumps(config | {"aux_num_out": None, "speechclip_untrained": True}))
    return folder


@functools.cache
def encoder_of(family: str, kind: str, max_frames: int = 1) -> TorchaudioEncoder:
    encoder = load_encoder(f"torchaudio:{folder_of(family, kind)}", "speech", codec="fp32")
    assert isinstance(encoder, TorchaudioEncoder)
    return TorchaudioEncoder(encoder._model, encoder.spec, encoder.encoder_name, max_frames=max_frames)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference in a state, as a share of the largest number in that state."""
    assert one.shape == other.shape
    largest = np.abs(other).max(axis=(1, 2), keepdims=True).clip(1)
    return float((np.abs(one - other) / largest).max())


@pytest.mark.parametrize("max_frames", [1, 10_000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_transformers_for_the_same_weights(family: str, kind: str, max_frames: int) -> None:
    model = model_of(family, kind)
    spec = hubert_spec(model, name="reference-untrained", is_trained=False, encoder_name="reference")
    waveforms = [voice_of(length, seed) for seed, length in enumerate(LENGTHS)]
    theirs = HubertEncoder(model, spec, "reference").encode(waveforms)
    encoder = encoder_of(family, kind, max_frames)
    assert encoder.spec.rules == spec.rules
    assert (encoder.spec.layers, encoder.spec.width) == (spec.layers, spec.width)
    assert (encoder.spec.hop_samples, encoder.spec.window_samples) == (spec.hop_samples, spec.window_samples)
    for found, expected in zip(encoder.encode(waveforms), theirs, strict=True):
        assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_torchaudio_itself(family: str, kind: str) -> None:
    encoder, waveform = encoder_of(family, kind), voice_of(9_000, 3)
    with torch.inference_mode():
        theirs, _ = encoder._model.extract_features(encoder._samples(waveform)[None])
    (found,) = encoder.encode([waveform])
    assert difference(found[1:], torch.cat(theirs).numpy()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(400, 24_000), min_size=2, max_size=5))
def test_a_feature_is_the_same_alone_and_in_any_batch(family: str, kind: str, lengths: list[int]) -> None:
    waveforms = [voice_of(length, seed) for seed, length in enumerate(lengths)]
    for feature, waveform in zip(encoder_of(family, kind, 10_000).encode(waveforms), waveforms, strict=True):
        assert difference(feature, encoder_of(family, kind).encode([waveform])[0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_are_those_of_transformers(kind: str) -> None:
    model = model_of("hubert", kind)
    spec = hubert_spec(model, name="reference-untrained", is_trained=False, encoder_name="reference")
    waveforms = [voice_of(length, seed) for seed, length in enumerate((16_000, 9_100))]
    theirs = HubertEncoder(model, spec, "reference").encode_padded(waveforms)
    for found, expected in zip(encoder_of("hubert", kind).encode_padded(waveforms), theirs, strict=True):
        assert difference(found, expected) < 1e-5


def test_the_spec_says_torchaudio_and_knows_the_weights(tmp_path: Path) -> None:
    spec = encoder_of("hubert", "base").spec
    assert (spec.family, spec.is_trained) == ("torchaudio", False)
    assert spec.name.startswith("torchaudio-")
    assert spec.architecture["model"] == "wav2vec2"
    assert encoder_of("wavlm", "base").spec.architecture["encoder_num_buckets"] == 40
    changed = {name: tensor.clone() for name, tensor in encoder_of("hubert", "base").weights().items()}
    changed["encoder.transformer.layers.0.layer_norm.bias"][0] += 1
    torch.save(changed, tmp_path / "model.pt")
    (tmp_path / "config.json").write_bytes((folder_of("hubert", "base") / "config.json").read_bytes())
    other = load_encoder(f"torchaudio:{tmp_path}", "speech").spec
    assert other.weights != spec.weights
    assert other.architecture == spec.architecture


def test_a_file_and_a_folder_of_either_format_give_equal_features(tmp_path: Path) -> None:
    encoder, waveform = encoder_of("hubert", "base"), voice_of(4_000, 0)
    torch.save(encoder.weights(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_bytes((folder_of("hubert", "base") / "config.json").read_bytes())
    for name in (tmp_path, tmp_path / "model.pt"):
        other = load_encoder(f"torchaudio:{name}", "speech", codec="fp32")
        assert other.spec.weights == encoder.spec.weights
        np.testing.assert_array_equal(other.encode([waveform])[0], encoder.encode([waveform])[0])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HUBERT_LARGE made small, and where its file belongs in torch.hub's cache; nothing can be downloaded."""
    config = json.loads((folder_of("hubert", "large") / "config.json").read_bytes())
    del config["speechclip_untrained"]
    small = pipelines.Wav2Vec2Bundle("small.pth", config, 16_000, True, _model_type="Wav2Vec2")
    monkeypatch.setattr(pipelines, "HUBERT_LARGE", small)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return tmp_path / "hub" / "checkpoints" / "small.pth"


def test_a_bundle_is_read_from_the_cache_of_torch(bundle: Path) -> None:
    bundle.parent.mkdir(parents=True)
    weights = encoder_of("hubert", "large").weights()
    torch.save(weights, bundle)
    encoder = load_encoder("torchaudio:HUBERT_LARGE", "speech", codec="fp32")
    assert (encoder.spec.name, encoder.spec.is_trained) == ("torchaudio-hubert-large", True)
    assert encoder.spec.rules["waveform"] == "zero-mean-unit-var-eps1e-5/1"
    waveform = voice_of(4_000, 0)
    np.testing.assert_array_equal(encoder.encode([waveform])[0], encoder_of("hubert", "large").encode([waveform])[0])


def test_a_bundle_that_can_not_be_downloaded_says_which_file_belongs_where(bundle: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        load_encoder("torchaudio:HUBERT_LARGE", "speech")
    assert "https://download.pytorch.org/torchaudio/models/small.pth can't be downloaded" in refusal.value.problem
    assert str(bundle) in str(refusal.value.advice)


def test_only_those_bundles_normalise_whose_front_end_has_layer_norm() -> None:
    bundles = [getattr(pipelines, name) for name in pipelines.__all__]
    bundles = [bundle for bundle in bundles if isinstance(bundle, pipelines.Wav2Vec2Bundle)]
    assert len(bundles) > 20
    for bundle in bundles:
        assert bundle._normalize_waveform == (bundle._params["extractor_mode"] == "layer_norm")
        assert bundle.sample_rate == 16_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_num_heads": None}, "encoder_num_heads is missing"),
        ({"encoder_depth": 3}, "encoder_depth is unknown"),
        ({"encoder_num_heads": 7}, "torchaudio makes no model of these arguments"),
        ({"encoder_embed_dim": 96}, "the weights do not fit"),
        ({"encoder_num_buckets": 40}, "encoder_max_distance is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    config = json.loads((folder_of("hubert", "base") / "config.json").read_bytes()) | change
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    (tmp_path / "model.safetensors").symlink_to(folder_of("hubert", "base") / "model.safetensors")
    with pytest.raises(InvalidInput, match=words):
        load_encoder(f"torchaudio:{tmp_path}", "speech")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no bundle 'HUBERT_HUGE'.*HUBERT_BASE"):
        load_encoder("torchaudio:HUBERT_HUGE", "speech")
    with pytest.raises(InvalidInput, match=r"none of model.safetensors, model.pt"):
        load_encoder(f"torchaudio:{tmp_path}", "speech")
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(InvalidInput, match=r"no config.json"):
        load_encoder(f"torchaudio:{tmp_path}", "speech")
    (tmp_path / "config.json").write_bytes((folder_of("hubert", "base") / "config.json").read_bytes())
    with pytest.raises(InvalidInput, match="contains a Tensor, not weights by name"):
        load_encoder(f"torchaudio:{tmp_path / 'model.pt'}", "speech")


def test_the_untrained_sizes_are_those_of_hubert() -> None:
    for name in ("untrained-tiny", "untrained-tiny-large"):
        ours, theirs = (load_encoder(f"{family}:{name}", "speech").spec for family in ("torchaudio", "hubert"))
        assert (ours.width, ours.layers, ours.rules) == (theirs.width, theirs.layers, theirs.rules)
        assert ours.fingerprint != theirs.fingerprint
        assert "untrained" in ours.name
    assert (UNTRAINED["untrained-base"]["encoder_embed_dim"], UNTRAINED["untrained-large"]["encoder_embed_dim"]) == (
        768,
        1_024,
    )


def test_crops_are_encoded_one_by_one(voice: Callable[..., np.ndarray]) -> None:
    full, cropped = (
        load_encoder("torchaudio:untrained-tiny", "speech", window=window) for window in ("full", "crops=2")
    )
    assert isinstance(cropped, TransformerStates)
    crops = [voice(102_400, seed=seed) for seed in range(2)]
    (feature,) = cropped.encode([np.concatenate(crops)])
    np.testing.assert_array_equal(feature, np.concatenate(full.encode(crops), axis=1))


def test_a_corpus_is_featurized_inline(tmp_path: Path) -> None:
    corpus = make_synthetic(tmp_path / "corpus", num_concepts=3, num_voices=2)
    manifest, store = str(tmp_path / "m.parquet"), str(tmp_path / "store")
    main(["ingest", "table", str(corpus), "--out", manifest])
    main(["featurize", "--inline", "--manifest", manifest, "--store", store, "--speech", "torchaudio:untrained-tiny"])
    (info,) = FeatureStore(store).snapshot().feature_sets()
    assert (info.encoder_name, info.num_stored) == ("torchaudio:untrained-tiny", 6)
    assert info.spec == load_encoder("torchaudio:untrained-tiny", "speech").spec
