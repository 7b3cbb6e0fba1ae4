"""`Model` gives a file the same vector as the store does, for several speech encoders."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from support.small_runs import RECIPE, train_small
from support.stores import encode_all

import speechclip
from speechclip.corpora.table import read_table
from speechclip.errors import InvalidInput, Rejected, SourceMissing
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.media.content import content_key
from speechclip.media.decode import decode_audio
from speechclip.retrieval.embeddings import embed_images, embed_speech
from speechclip.retrieval.model import Model
from speechclip.storage import Storage
from speechclip.store import FeatureStore
from speechclip.store.codec import codec_of
from speechclip.training.checkpoint import RUN
from speechclip.training.identity import FeatureSetRef, RunInfo

SPEECH = {
    "hubert": EncoderRequest(encoder_name="hubert:untrained-tiny", modality="speech", codec="fp32"),
    "large": EncoderRequest(encoder_name="hubert:untrained-tiny-large", modality="speech", layers=(1, 3), codec="fp32"),
    "wav2vec2": EncoderRequest(encoder_name="wav2vec2:untrained-tiny", modality="speech", codec="fp32"),
    "whisper": EncoderRequest(encoder_name="whisper:untrained-tiny", modality="speech", codec="fp32"),
    "crops": EncoderRequest(encoder_name="toy", modality="speech", codec="fp32", window="crops=2"),
    "rounded": EncoderRequest(encoder_name="toy", modality="speech", codec="fp16"),
}
PICTURES = [
    EncoderRequest(encoder_name="clip:untrained-tiny", modality=kind, codec="fp32") for kind in ("image", "text")
]
SECONDS = (1.3, 0.7, 6.6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    lines = ["id,audio,image,text,split"]
    for number, seconds in enumerate(SECONDS):
        noise = 0.05 * np.random.default_rng(number).standard_normal((round(seconds * 22_050), 2))
        soundfile.write(folder / f"{number}.wav", noise, 22_050)
        Image.new("RGB", (40, 30), (90 * number, 9, 200)).save(folder / f"{number}.png")
        lines.append(f"{number},{number}.wav,{number}.png,thing {number},train")
    (folder / "rows.csv").write_text("\n".join(lines))
    return read_table(str(folder / "rows.csv"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> FeatureStore:
    store = FeatureStore(str(tmp_path_factory.mktemp("model") / "store"))
    encode_all(store, manifest, [*SPEECH.values(), *PICTURES])
    return store


def train(kind: str, manifest: Manifest, store: FeatureStore, out: Path) -> tuple[str, str]:
    """A run that was trained on these speech features, and their fingerprint."""
    fingerprint = SPEECH[kind].build().spec.fingerprint
    window = "crops" if SPEECH[kind].window != "full" else "full"
    recipe = msgspec.structs.replace(RECIPE, window=window, max_steps=2)
    train_small(manifest, store, str(out), recipe=recipe, speech=fingerprint)
    return str(out), fingerprint


@pytest.fixture(scope="module")
def run_uri(manifest: Manifest, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train("hubert", manifest, store, tmp_path_factory.mktemp("run"))[0]


@pytest.fixture(scope="module")
def model(run_uri: str) -> Model:
    return speechclip.load(run_uri)


@pytest.mark.parametrize("kind", SPEECH)
def test_a_file_has_the_same_vector_as_its_stored_embedding(
    kind: str, manifest: Manifest, store: FeatureStore, tmp_path: Path
):
    uri, fingerprint = train(kind, manifest, store, tmp_path / "run")
    model, rows = speechclip.load(uri), manifest.rows()
    found = model.embed([row["audio_uri"] for row in rows])
    frames = store.snapshot().feature_set(fingerprint)
    expected = embed_speech(model.trained.head, frames, [row["speech_key"] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-4
    # Rounding hardly changes an embedding, so the features are compared too.
    waveform = decode_audio(Path(rows[0]["audio_uri"]).read_bytes(), name="")
    hidden = model._encode(model.encoder("speech"), waveform)
    is_rounded = bool((hidden == hidden.astype(codec_of(frames.spec).dtype)).all())
    assert is_rounded


def test_one_file_gives_a_vector_and_a_list_gives_rows(model: Model, manifest: Manifest):
    uris = [row["audio_uri"] for row in manifest.rows()]
    one, several = model.embed(uris[0]), model.embed(uris)
    assert (one.shape, several.shape, model.embed([]).shape) == ((64,), (3, 64), (0, 64))
    np.testing.assert_array_equal(one, several[0])
    np.testing.assert_array_equal(model.embed(Path(uris[1])), several[1])


def test_samples_with_their_rate_give_the_vector_of_their_file(model: Model, manifest: Manifest, tmp_path: Path):
    uri = manifest.rows()[0]["audio_uri"]
    samples, rate = soundfile.read(uri, dtype="int16")
    np.testing.assert_allclose(model.embed((samples, rate)), model.embed(uri), rtol=0, atol=1e-6)
    floats, _ = soundfile.read(uri)
    np.testing.assert_allclose(model.embed((floats, rate)), model.embed(uri), rtol=0, atol=1e-6)
    left = model.embed((floats[:, 0], rate))
    assert np.abs(left - model.embed(uri)).max() > 1e-6
    with pytest.raises(InvalidInput, match=r"give \(samples,\) or \(samples, channels\)"):
        model.embed((floats.T, rate))


def test_pictures_and_texts_have_the_same_vectors_as_stored_ones(model: Model, manifest: Manifest, store: FeatureStore):
    row, snapshot = manifest.rows()[1], store.snapshot()
    image, text = (snapshot.feature_set(request.build().spec.fingerprint) for request in PICTURES)
    head = model.trained.head
    np.testing.assert_allclose(
        model.embed_image(row["image_uri"]), embed_images(head, image, [row["image_key"]])[0], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        model.embed_text(row["text"]), embed_images(head, text, [row["text_key"]])[0], rtol=0, atol=1e-5
    )


def test_a_model_needs_no_store_and_loads_each_encoder_once_when_it_is_needed(
    run_uri: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    real = speechclip.retrieval.model.load_encoder  # type: ignore[attr-defined]
    monkeypatch.setattr("speechclip.retrieval.model.load_encoder", lambda *a, **k: loaded.append(a[1]) or real(*a, **k))
    monkeypatch.setattr(FeatureStore, "__init__", None)
    model, row = speechclip.load(run_uri), manifest.rows()[0]
    assert loaded == []
    for _ in range(2):
        model.embed(row["audio_uri"])
    assert loaded == ["speech"]
    for _ in range(2):
        model.embed_text("a thing")
    assert loaded == ["speech", "image", "text"]


@pytest.mark.parametrize(("part", "question"), [("speech", "embed"), ("image", "embed_image"), ("image", "embed_text")])
def test_other_weights_than_those_of_the_run_are_an_error(
    part: str, question: str, run_uri: str, manifest: Manifest, tmp_path: Path
):
    there = Storage(run_uri)
    info = msgspec.json.decode(there.read(RUN), type=RunInfo)
    source: FeatureSetRef = getattr(info.identity, part)
    other = msgspec.structs.replace(source, fingerprint=source.fingerprint[:-4] + "0000")
    identity = msgspec.structs.replace(info.identity, **{part: other})
    changed = Storage(str(tmp_path / "run"))
    changed.create(RUN, msgspec.json.encode(msgspec.structs.replace(info, identity=identity)))
    changed.create("head.safetensors", there.read("head.safetensors"))
    model, row = speechclip.load(tmp_path / "run"), manifest.rows()[0]
    asked = {"embed": row["audio_uri"], "embed_image": row["image_uri"], "embed_text": row["text"]}[question]
    with pytest.raises(InvalidInput, match=f"{source.encoder_name} is {source.fingerprint} here, but .* trained on"):
        getattr(model, question)(asked)


def test_a_wrong_run_or_recording_is_an_error_in_words(model: Model, tmp_path: Path):
    with pytest.raises(InvalidInput, match="no finished run"):
        speechclip.load(tmp_path)
    with pytest.raises(SourceMissing, match="no such file"):
        model.embed(str(tmp_path / "gone.wav"))
    with pytest.raises(Rejected, match="silence"):
        model.embed((np.zeros(16_000), 16_000))
    with pytest.raises(Rejected, match="samples at 16 kHz"):
        model.embed((np.random.default_rng(0).standard_normal(300), 16_000))


def test_samples_and_a_file_with_the_same_samples_have_the_same_crop(
    manifest: Manifest, store: FeatureStore, tmp_path: Path
):
    """The start of a crop follows from the key of the file, so the samples must get the key of a wav with them."""
    model = speechclip.load(train("crops", manifest, store, tmp_path / "run")[0])
    samples = (0.05 * np.random.default_rng(1).standard_normal(120_000)).astype(np.float32)
    soundfile.write(tmp_path / "same.wav", samples, 16_000, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(model.embed((samples, 16_000)), model.embed(tmp_path / "same.wav"))
    assert content_key((tmp_path / "same.wav").read_bytes())
