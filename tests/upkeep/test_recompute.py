"""Features are encoded again and compared: wrong numbers are found even if their checksums fit."""

import shutil
from pathlib import Path

import msgspec
import pytest
from support.injuries import forge
from support.stores import IMAGE, SIZES, SPEECH, TEXT, TOY, encode_all, fill, synthetic

from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.upkeep.recompute import recompute
from speechclip.upkeep.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return fill(str(tmp_path_factory.mktemp("whole") / "store"))


def test_every_stored_feature_comes_out_again(whole: FeatureStore) -> None:
    found = recompute(whole, whole.snapshot(), 100, 0)
    assert {part.feature_set: part.assets for part in found} == {SPEECH: 18, IMAGE: 6, TEXT: 6}
    assert all(part.is_equal and part.without_source == 0 for part in found)
    # The toy encoder computes each alone: bit by bit.
    assert all(part.largest_difference == 0 for part in found)


def test_the_bound_of_fp16_is_its_rounding(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "store"))
    requests = [msgspec.structs.replace(request, codec="fp16") for request in TOY]
    encode_all(store, synthetic(), requests, msgspec.structs.replace(SIZES, shard_items=20))
    found = recompute(store, store.snapshot(), 100, 0)
    assert all(part.is_equal and part.bound == 2.0**-10 for part in found)


def test_as_many_as_asked_for_by_the_seed(whole: FeatureStore) -> None:
    def sample(seed: int) -> list[tuple[str, int]]:
        return [(part.feature_set, part.assets) for part in recompute(whole, whole.snapshot(), 7, seed)]

    assert sample(1) == sample(1)
    assert sum(number for _, number in sample(1)) == 7
    assert len({tuple(sample(seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize(("factor", "is_equal"), [(1 + 5e-6, True), (1 + 1e-4, False), (float("nan"), False)])
def test_what_was_changed_with_its_checksums_is_caught(
    whole: FeatureStore, tmp_path: Path, factor: float, is_equal: bool
) -> None:
    store = FeatureStore(str(shutil.copytree(whole.storage.root, tmp_path / "store")))
    forge(store, SPEECH, sorted(store.snapshot().stored_keys(SPEECH))[4], factor)
    assert verify(store).findings == ()
    found = {part.feature_set: part for part in recompute(store, store.snapshot(), 100, 0)}
    assert found[SPEECH].is_equal == is_equal
    assert found[IMAGE].is_equal


def test_sources_that_are_gone_are_counted(whole: FeatureStore, tmp_path: Path) -> None:
    store = FeatureStore(str(shutil.copytree(whole.storage.root, tmp_path / "store")))
    store.storage.delete(list(store.storage.list("manifests")))
    rows = synthetic().rows()
    for row in rows[:3]:
        row["audio_uri"] = str(tmp_path / "moved.flac")
    store.add_manifest(Manifest.from_rows(rows[:10]))
    found = {part.feature_set: part for part in recompute(store, store.snapshot(), 100, 0)}
    assert (found[SPEECH].assets, found[SPEECH].without_source) == (7, 11)
    assert found[SPEECH].is_equal


def test_a_manifest_that_lost_its_sources_leaves_those_of_another(whole: FeatureStore, tmp_path: Path) -> None:
    store, rows = FeatureStore(str(shutil.copytree(whole.storage.root, tmp_path / "store"))), synthetic().rows()
    digests = []
    while not digests or not min(digests) < synthetic().digest < max(digests):
        # They are read in the order of their digests: some before the true one, some after it.
        for row in rows:
            row["audio_uri"] = str(tmp_path / f"moved-{len(digests)}.flac")
        store.add_manifest(Manifest.from_rows(rows))
        digests.append(Manifest.from_rows(rows).digest)
    assert all(part.without_source == 0 for part in recompute(store, store.snapshot(), 100, 0))
