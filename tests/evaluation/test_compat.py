"""`--compat-batch` encodes in padded batches, in the order of the manifest, and stores nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.small_runs import RECIPE, train_small, write_noise
from support.stores import encode_all

from speechclip.cli import main
from speechclip.encoders import load_encoder
from speechclip.encoders.hubert import HubertEncoder
from speechclip.errors import InvalidInput
from speechclip.evaluation.compat import PaddedFrames
from speechclip.evaluation.evaluator import evaluate
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.retrieval.embeddings import embed_speech
from speechclip.store import FeatureStore
from speechclip.training.run import Run

REQUESTS = [
    EncoderRequest(encoder_name="hubert:untrained-tiny", modality="speech", codec="fp32"),
    EncoderRequest(encoder_name="toy", modality="image"),
]
SECONDS = (0.9, 0.3, 0.6, 0.4, 0.7)


@pytest.fixture(scope="module")
def encoder() -> HubertEncoder:
    return load_encoder("hubert:untrained-tiny", "speech", codec="fp32")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    seconds = {str(number): length for number, length in enumerate(SECONDS)}
    return write_noise(tmp_path_factory.mktemp("corpus"), seconds, "test")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> FeatureStore:
    store = FeatureStore(str(tmp_path_factory.mktemp("compat") / "store"))
    encode_all(store, manifest, REQUESTS)
    return store


@pytest.fixture(scope="module")
def run_uri(manifest: Manifest, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("run"))
    train = Manifest.from_rows([row | {"split": "train"} for row in manifest.rows()])
    train_small(train, store, uri, recipe=RECIPE)
    return uri


@pytest.fixture(scope="module")
def trained(run_uri: str) -> Run:
    from speechclip.training.run import load_run

    return load_run(run_uri)


def keys(manifest: Manifest) -> list[str]:
    return [row["speech_key"] for row in manifest.rows()]


def test_a_batch_of_one_gives_the_stored_features(encoder, manifest: Manifest, store: FeatureStore):
    padded = PaddedFrames(encoder, manifest, "test", 1)
    stored = store.snapshot().feature_set(encoder.spec.fingerprint)
    assert list(padded) == keys(manifest)
    for key in keys(manifest):
        np.testing.assert_allclose(padded[key], stored[key], rtol=0, atol=1e-5)
        assert padded.num_frames(key) == stored.num_frames(key)


def test_a_window_has_the_layers_in_the_order_of_the_call(encoder, manifest: Manifest):
    padded, key = PaddedFrames(encoder, manifest, "test", 2), keys(manifest)[0]
    first, last = padded.spec.layers[0], padded.spec.layers[-1]
    found = padded.window(key, layers=(last, first), start=1, stop=4)
    np.testing.assert_array_equal(found, padded[key][[-1, 0], 1:4])
    np.testing.assert_array_equal(padded.window(key), padded[key])


def test_batches_follow_the_order_of_the_manifest_and_change_the_features(
    encoder, manifest: Manifest, store: FeatureStore
):
    padded, names = PaddedFrames(encoder, manifest, "test", 2), keys(manifest)
    waveforms = [soundfile.read(row["audio_uri"], dtype="float32")[0] for row in manifest.rows()]
    for first in (0, 2, 4):
        for key, feature in zip(names[first:], encoder.encode_padded(waveforms[first : first + 2]), strict=False):
            np.testing.assert_array_equal(padded[key], feature)
            assert padded.num_frames(key) == feature.shape[1]
    stored = store.snapshot().feature_set(encoder.spec.fingerprint)
    assert np.abs(padded[names[1]][:, : stored.num_frames(names[1])] - stored[names[1]]).max() > 1e-3
    # The last frame of these 0.3 seconds is partly padding. The official head reads it.
    assert padded.num_frames(names[1]) == stored.num_frames(names[1]) + 1


def test_each_batch_is_encoded_once_for_keys_in_any_order(
    encoder, manifest: Manifest, trained: Run, monkeypatch: pytest.MonkeyPatch
):
    padded, sizes = PaddedFrames(encoder, manifest, "test", 2), []
    real = HubertEncoder.encode_padded
    monkeypatch.setattr(
        HubertEncoder, "encode_padded", lambda self, inputs: sizes.append(len(inputs)) or real(self, inputs)
    )
    asked = keys(manifest)[::-1]
    together = embed_speech(trained.head, padded, asked, batches=padded.batches(asked))
    assert sizes == [2, 2, 1]
    np.testing.assert_allclose(embed_speech(trained.head, padded, keys(manifest))[::-1], together, atol=1e-6)


def test_the_command_encodes_and_stores_nothing(
    manifest: Manifest, store: FeatureStore, run_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    manifest.write(str(tmp_path / "m.parquet"))
    before = sorted(store.storage.list(""))
    words = ["evaluate", "--run", run_uri, "--manifest", str(tmp_path / "m.parquet"), "--store", store.storage.root]
    main([*words, "--compat-batch", "2", "--json"])
    report = json.loads(capfd.readouterr().out)
    assert report["window"] == "padded in batches of 2"
    assert (report["num_utterances"], report["num_missing"]) == (5, 0)
    assert sorted(store.storage.list("")) == before


def test_an_utterance_that_can_not_be_decoded_is_missing(
    encoder, manifest: Manifest, store: FeatureStore, trained: Run
):
    rows = manifest.rows()
    rows[1]["audio_uri"] += ".gone"
    partial = Manifest.from_rows(rows)
    padded = PaddedFrames(encoder, partial, "test", 2)
    assert len(padded) == 4
    report = evaluate(trained, partial, store.snapshot(), "test", padded=padded)
    assert (report.num_utterances, report.num_missing) == (4, 1)


def test_wrong_encoders_sizes_and_combinations_are_errors(
    encoder, manifest: Manifest, store: FeatureStore, trained: Run
):
    with pytest.raises(InvalidInput, match="fairseq does to a HuBERT"):
        PaddedFrames(load_encoder("toy", "speech"), manifest, "test", 8)
    with pytest.raises(InvalidInput, match="compat-batch is 0"):
        PaddedFrames(encoder, manifest, "test", 0)
    padded = PaddedFrames(encoder, manifest, "test", 8)
    with pytest.raises(InvalidInput, match="both given"):
        evaluate(trained, manifest, store.snapshot(), "test", speech=encoder.spec.fingerprint, padded=padded)
