"""Crops in every command: planned, stored, read, used in training and evaluation, and repaired."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from support.small_runs import RECIPE, train_small, write_noise
from support.stores import encode_all

from speechclip.cli import main
from speechclip.encoders.windows import crop_offsets
from speechclip.errors import InvalidInput
from speechclip.evaluation.evaluator import evaluate
from speechclip.featurization.driver import survey
from speechclip.featurization.plan import MEMBER_BYTES, TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.retrieval.embeddings import embed_speech
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import open_pair
from speechclip.training.batches import Order, stored_rows
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.run import Run
from speechclip.upkeep.recompute import recompute
from speechclip.upkeep.repair import repair

SECONDS = {"long": 8.5, "longer": 11.0, "short": 2.0, "shorter": 1.2}
FULL = EncoderRequest(encoder_name="toy", modality="speech")
CROPS = EncoderRequest(encoder_name="toy", modality="speech", codec="fp32", window="crops=3")
FEWER_LAYERS = EncoderRequest(encoder_name="toy", modality="speech", layers=(0, 1))
IMAGE = EncoderRequest(encoder_name="toy", modality="image")
FULL_SET, CROPS_SET, FEWER_SET, IMAGE_SET = (
    request.build().spec.fingerprint for request in (FULL, CROPS, FEWER_LAYERS, IMAGE)
)


@dataclass(frozen=True)
class Road:
    manifest: Manifest
    store: FeatureStore

    def key(self, name: str) -> str:
        return next(row["speech_key"] for row in self.manifest.rows() if row["utterance"] == name)

    def loader(self, window: str, fingerprint: str) -> Loader:
        recipe = Recipe(name="test", batch_size=4, window=window, max_frames=50, num_heads=2)  # type: ignore[arg-type]
        frames, vectors = open_pair(self.store.snapshot(), fingerprint, IMAGE_SET)
        order = Order(stored_rows(self.manifest, "train", frames, vectors), recipe.batch_size, recipe.seed)
        return Loader(order, frames, vectors, recipe=recipe)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_noise(tmp_path_factory.mktemp("corpus"), SECONDS, "train")


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Road:
    store = FeatureStore(str(tmp_path_factory.mktemp("road") / "store"))
    encode_all(store, manifest, (FULL, CROPS, FEWER_LAYERS, IMAGE), TaskSizes(shard_items=3))
    return Road(manifest, store)


@pytest.fixture(scope="module")
def trained(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = msgspec.structs.replace(RECIPE, window="crops", batch_size=4, max_steps=3)
    return train_small(road.manifest, road.store, str(tmp_path_factory.mktemp("run")), recipe=recipe, speech=CROPS_SET)


def test_the_store_holds_the_crops_that_the_plan_promised(road: Road, tmp_path: Path):
    frames = road.store.snapshot().feature_set(CROPS_SET)
    assert {name: frames.num_frames(road.key(name)) for name in SECONDS} == {
        "long": 957, "longer": 957, "short": 99, "shorter": 59,
    }  # fmt: skip
    (before,) = survey(FeatureStore(str(tmp_path / "none")), road.manifest, [CROPS.build().spec])
    stored = sum(frames[key].nbytes + MEMBER_BYTES for key in frames)
    assert before.remaining_bytes(TaskSizes()) == stored
    assert before.missing_seconds == pytest.approx(2 * 3 * 6.4 + 3.2)


def test_both_windows_give_the_same_features_of_short_utterances_up_to_rounding(road: Road):
    full, crops = (road.store.snapshot().feature_set(name) for name in (FULL_SET, CROPS_SET))
    np.testing.assert_array_equal(full[road.key("short")], crops[road.key("short")].astype("<f2"))


def test_a_stored_crop_begins_where_the_assets_key_says(road: Road):
    key = road.key("long")
    samples, _ = soundfile.read(next(row["audio_uri"] for row in road.manifest.rows() if row["speech_key"] == key))
    stored = road.store.snapshot().feature_set(CROPS_SET)[key]
    for number, offset in enumerate(crop_offsets(key, 3, len(samples))):
        crop = samples[offset : offset + 102_400].astype(np.float32)
        np.testing.assert_array_equal(stored[:, number * 319 :][:, :319], FULL.build().encode([crop])[0])


def test_crops_are_equal_when_encoded_again_and_can_be_repaired(road: Road):
    found = recompute(road.store, road.store.snapshot(), 100, 0)
    assert {part.feature_set: part.largest_difference for part in found}[CROPS_SET] == 0
    place = road.store.snapshot().feature_set(CROPS_SET).locate(road.key("long"))
    shard = Path(road.store.storage.address(place.shard))
    whole, data = shard.read_bytes(), bytearray(shard.read_bytes())
    data[place.offset + 9] ^= 1
    shard.write_bytes(data)
    assert repair(road.store).left == {}
    again = road.store.snapshot().feature_set(CROPS_SET)[road.key("long")]
    before = np.frombuffer(whole, "<f4", again.size, place.offset).reshape(again.shape)
    np.testing.assert_array_equal(again, before)


def test_a_step_reads_one_crop_and_each_epoch_another(road: Road):
    loader = road.loader("crops", CROPS_SET)
    frames, keys = loader.frames, loader.order.rows.speech_keys
    starts = {name: set() for name in SECONDS}
    for batch in loader.batches(0, 30):
        for place, row in enumerate(loader.order.batch(batch.number)):
            name, length = loader.order.rows.utterances[row], int(batch.lengths[place])
            read = batch.frames[place, :, :length].numpy()
            whole = frames[keys[row]]
            assert length == min(319, whole.shape[1])
            starts[name] |= {at for at in range(0, whole.shape[1], 319) if (whole[:, at : at + length] == read).all()}
    assert starts == {"long": {0, 319, 638}, "longer": {0, 319, 638}, "short": {0}, "shorter": {0}}


@pytest.mark.parametrize(
    ("window", "feature_set", "words"),
    [
        ("sliced", CROPS_SET, f"window sliced, but {CROPS_SET} was encoded with window crops=3; set .* to crops, or"),
        ("full", CROPS_SET, "window full, but .* was encoded with window crops=3"),
        ("crops", FULL_SET, f"window crops, but {FULL_SET} was encoded with window full; .*featurize --window crops=4"),
    ],
)
def test_a_recipe_of_another_window_than_the_feature_set_is_refused(
    road: Road, window: str, feature_set: str, words: str
):
    with pytest.raises(InvalidInput, match=words):
        road.loader(window, feature_set)


def test_training_is_refused_before_it_starts_where_the_window_does_not_fit(
    road: Road, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    road.manifest.write(str(tmp_path / "m.parquet"))
    words = [
        "--manifest",
        str(tmp_path / "m.parquet"),
        "--store",
        road.store.storage.root,
        "--out",
        str(tmp_path / "r"),
    ]
    with pytest.raises(SystemExit, match="1"):
        main(["train", *words, "--speech", CROPS_SET, "--recipe", "demo-parallel"])
    assert f"{CROPS_SET} was encoded with window crops=3" in capfd.readouterr().err
    # There `window` is the recipe's, though the settings have one too.
    with pytest.raises(SystemExit, match="1"):
        main(["train", *words, "--speech", FULL_SET, "--recipe", "demo-parallel", "--set", "window=crops"])
    assert f"window crops, but {FULL_SET}" in capfd.readouterr().err


def test_a_head_trained_on_crops_is_evaluated_on_the_first_crop_and_says_so(road: Road, trained: Run):
    report = evaluate(trained, road.manifest, road.store.snapshot(), "train")
    assert (report.speech, report.window) == (CROPS_SET, "first of crops=3")
    assert "window first of crops=3" in report.to_text()
    frames = road.store.snapshot().feature_set(CROPS_SET)
    (embedding,) = embed_speech(trained.head, frames, [road.key("long")])
    first = frames[road.key("long")][:, :319]
    import torch

    with torch.inference_mode():
        expected = trained.head(torch.from_numpy(first.copy())[None], torch.tensor([319])).embedding[0].numpy()
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-6)


def test_it_can_be_evaluated_on_whole_utterances_of_the_same_encoder_and_no_other(road: Road, trained: Run):
    snapshot = road.store.snapshot()
    report = evaluate(trained, road.manifest, snapshot, "train", speech=FULL_SET)
    assert (report.speech, report.window, report.num_utterances) == (FULL_SET, "full", 4)
    with pytest.raises(InvalidInput, match=f"trained on {CROPS_SET}, and {FEWER_SET} has other"):
        evaluate(trained, road.manifest, snapshot, "train", speech=FEWER_SET)


def test_the_command_takes_the_window_and_keeps_both_sets(
    manifest: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path, store = str(tmp_path / "m.parquet"), str(tmp_path / "store")
    manifest.write(path)
    words = ["--manifest", path, "--store", store, "--speech", "toy"]
    main(["featurize", "--inline", *words, "--window", "crops=3", "--codec", "fp32"])
    main(["featurize", "--inline", *words])
    assert {info.fingerprint for info in FeatureStore(store).snapshot().feature_sets()} == {FULL_SET, CROPS_SET}
    main(["plan", *words, "--window", "crops=3", "--codec", "fp32", "--json"])
    assert '"missing":0' in capfd.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["plan", *words, "--window", "crop"])
    assert "write full, or crops=K" in capfd.readouterr().err
