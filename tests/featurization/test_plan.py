"""The plan: what is missing, cut into tasks, and kept in the store."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.counts import count
from support.feature_sets import FRAMES_SPEC, VECTORS_SPEC

from speechclip.featurization.plan import Coverage, TaskSizes, cover, cut, open_plan
from speechclip.manifest import Manifest
from speechclip.records import Asset, Receipt, RejectedAsset, StoredAsset
from speechclip.storage import parse_parquet
from speechclip.store import FeatureStore
from speechclip.store.codec import stored_bytes
from speechclip.store.layout import plan_path

SIZES = TaskSizes(shard_bytes=10_000_000, shard_items=4, chunk_rows=3)


def manifest_of(num_speech: int, *, num_images: int = 2, missing_image: bool = False) -> Manifest:
    rows = [
        {
            "utterance": f"u{number}",
            "split": "train",
            "group": f"g{number % num_images}",
            "speech_key": f"{number:064x}",
            "audio_uri": f"{number}.wav",
            "num_samples": 16_000,
            "sample_rate": 16_000,
            "image_key": None if missing_image and number == 0 else f"{number % num_images:064x}",
            "image_uri": f"{number % num_images}.png",
            "image_error": "source-missing: 0.png: no such file" if missing_image and number == 0 else None,
            "text_key": None,
            "text": None,
        }
        for number in range(num_speech)
    ]
    return Manifest.from_rows(rows)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    return store


def survey(store: FeatureStore, manifest: Manifest) -> list[Coverage]:
    snapshot = store.snapshot()
    return [cover(manifest, spec, snapshot) for spec in (FRAMES_SPEC, VECTORS_SPEC)]


def commit(
    store: FeatureStore, task: str, name: str, keys: Sequence[str], rejected: Sequence[RejectedAsset] = ()
) -> None:
    stored = tuple(StoredAsset(key=key, offset=0, num_frames=1, sums_offset=0, checksum=0) for key in keys)
    receipt = Receipt(
        task=task, feature_set=name, shard="s", stored=stored, rejected=tuple(rejected),
        num_bytes=0, seconds=1.0, num_encoded=len(keys),
    )  # fmt: skip
    store.commit([receipt], "m")


def test_shared_assets_are_planned_once_and_unreadable_sources_are_rejected(store: FeatureStore) -> None:
    speech, image = survey(store, manifest_of(6, missing_image=True))
    assert (speech.num_planned, len(speech.missing)) == (6, 6)
    assert (image.num_planned, image.num_rejected, len(image.missing)) == (3, 1, 2)


def test_what_is_stored_or_rejected_is_not_missing(store: FeatureStore) -> None:
    gone = RejectedAsset(key=f"{1:064x}", reason="undecodable", detail="no")
    commit(store, "t", FRAMES_SPEC.fingerprint, [f"{0:064x}"], [gone])
    speech, _ = survey(store, manifest_of(6))
    assert (speech.num_stored, speech.num_rejected, len(speech.missing)) == (1, 1, 4)
    assert speech.num_planned == speech.num_stored + speech.num_rejected + len(speech.missing)


@given(seconds=st.lists(st.floats(0.1, 60), max_size=40), items=st.integers(1, 9), megabytes=st.integers(1, 60))
def test_tasks_hold_all_assets_in_order(seconds: list[float], items: int, megabytes: int) -> None:
    assets = [Asset(key=str(number), modality="speech", seconds=length) for number, length in enumerate(seconds)]
    sizes = TaskSizes(shard_bytes=megabytes * 1_000_000, shard_items=items)
    tasks = cut(FRAMES_SPEC, assets, sizes)
    assert [asset for task in tasks for asset in task.assets] == assets
    for task in tasks:
        assert len(task.assets) <= items
        size = sum(stored_bytes(FRAMES_SPEC, asset.seconds) for asset in task.assets)
        assert size <= sizes.shard_bytes or len(task.assets) == 1


def test_an_open_plan_holds_the_assets_of_the_manifest_and_no_copies(store: FeatureStore) -> None:
    manifest = manifest_of(10)
    coverage = survey(store, manifest)
    plan = open_plan(store, manifest, coverage, store.snapshot(), SIZES)
    planned = [asset for task in plan for asset in task.assets]
    missing = [asset for part in coverage for asset in part.missing]
    assert len(planned) == len(missing)
    assert all(ours is theirs for ours, theirs in zip(planned, missing, strict=True))


def test_a_rerun_continues_the_open_plan_even_with_other_sizes(store: FeatureStore) -> None:
    manifest = manifest_of(10)
    first = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    done = next(iter(first))
    commit(store, done.id, done.feature_set, [asset.key for asset in done.assets])
    again = open_plan(
        store, manifest, survey(store, manifest), store.snapshot(), TaskSizes(shard_items=1, chunk_rows=1)
    )
    assert again.id == first.id
    assert list(again) == list(first)[1:]


def test_a_plan_counts_what_its_tasks_will_write(store: FeatureStore) -> None:
    manifest = manifest_of(10)
    coverage = survey(store, manifest)
    plan = open_plan(store, manifest, coverage, store.snapshot(), SIZES)
    speech, image = plan.by_modality["speech"], plan.by_modality["image"]
    assert (speech.num_tasks, speech.num_assets, speech.seconds) == (3, 10, 10.0)
    assert (image.num_tasks, image.num_assets, image.seconds) == (1, 2, 0.0)
    assert [part.remaining_bytes(SIZES) for part in coverage] == [speech.num_bytes, image.num_bytes]
    assert plan.num_tasks == len(list(plan)) == 4
    assert {task.feature_set for task in plan.tasks(FRAMES_SPEC.fingerprint)} == {FRAMES_SPEC.fingerprint}
    done = next(iter(plan))
    commit(store, done.id, done.feature_set, [asset.key for asset in done.assets])
    again = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert (again.num_tasks, again.num_settled, again.by_modality["speech"].num_assets) == (3, 1, 6)


def test_scattered_new_utterances_make_one_task(store: FeatureStore) -> None:
    old = manifest_of(10)
    commit(store, "t", FRAMES_SPEC.fingerprint, [asset.key for asset in old.assets("speech")])
    new = manifest_of(13)
    plan = open_plan(store, new, survey(store, new)[:1], store.snapshot(), SIZES)
    assert [len(task.assets) for task in plan] == [3]


def test_a_task_leaves_out_what_another_job_has_stored(store: FeatureStore) -> None:
    manifest = manifest_of(4)
    open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    commit(store, "another-run", FRAMES_SPEC.fingerprint, [f"{2:064x}"])
    plan = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    speech = next(task for task in plan if task.feature_set == FRAMES_SPEC.fingerprint)
    assert [asset.key for asset in speech.assets] == [f"{n:064x}" for n in (0, 1, 3)]


def test_an_asset_lost_after_its_task_was_committed_gets_a_new_plan(store: FeatureStore) -> None:
    manifest = manifest_of(4)
    first = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    for task in first:
        commit(store, task.id, task.feature_set, [asset.key for asset in task.assets[1:]])
    second = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert second.id != first.id
    assert {len(task.assets) for task in second} == {1}


def test_nothing_missing_is_no_plan(store: FeatureStore) -> None:
    manifest = manifest_of(0)
    assert open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES).num_tasks == 0
    assert not store.storage.exists("plans")


@pytest.mark.parametrize("how", ["empty", "junk", "cut"])
def test_a_damaged_plan_stays_and_a_new_one_is_made(store: FeatureStore, how: str) -> None:
    manifest = manifest_of(10)
    first = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    done = next(iter(first))
    commit(store, done.id, done.feature_set, [asset.key for asset in done.assets])
    whole = store.storage.read(plan_path(first.id))
    store.storage.replace(plan_path(first.id), {"empty": b"", "junk": b"PAR1 junk PAR1", "cut": whole[:-9]}[how])
    second = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert second.id != first.id
    assert sum(len(task.assets) for task in second) == 12 - len(done.assets)
    # The next job continues the new plan.
    again = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert again == second
    store.storage.replace(plan_path(first.id), whole)
    restored = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert restored.id == first.id


def test_a_plan_whose_tasks_were_changed_is_left(store: FeatureStore) -> None:
    manifest = manifest_of(10)
    first = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    table = parse_parquet(store.storage.read(plan_path(first.id)))
    records = [record.replace(b"7.wav", b"8.wav") for record in table["record"].to_pylist()]
    changed = io.BytesIO()
    pq.write_table(table.set_column(2, "record", pa.array(records, pa.binary())), changed)
    store.storage.replace(plan_path(first.id), changed.getvalue())
    second = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    assert second.id != first.id
    assert [task.assets for task in second] == [task.assets for task in first]


def test_no_flipped_bit_changes_a_task(store: FeatureStore) -> None:
    manifest = manifest_of(10)
    plan = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
    whole = store.storage.read(plan_path(plan.id))
    found = set()
    for bit in random.Random(0).sample(range(8 * len(whole)), count(100, 1000)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        store.storage.replace(plan_path(plan.id), bytes(data))
        again = open_plan(store, manifest, survey(store, manifest), store.snapshot(), SIZES)
        found.add(again.id)
        assert [task.assets for task in again] == [task.assets for task in plan]
    assert len(found) == 2
