import io
import tarfile

import numpy as np
import pytest
from support.feature_sets import FRAMES_SPEC

from speechclip.errors import Damaged
from speechclip.store import FeatureStore
from speechclip.store.layout import shard_path, sums_path
from speechclip.store.shards import describe_shard, find_shard, pack_shard, write_shard


def test_a_shard_is_to_the_byte_the_tar_that_pythons_own_libraries_write(features: list[tuple[str, np.ndarray]]):
    tar, theirs = pack_shard(FRAMES_SPEC, features, {"libraries": {"numpy": "2"}}), io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as members,
        tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as copy,
    ):
        for member, (_, feature) in zip(members.getmembers()[::2], features, strict=True):
            npy = io.BytesIO()
            np.save(npy, feature)
            assert tar[member.offset_data : member.offset_data + member.size] == npy.getvalue()
        for member in members:
            plain = tarfile.TarInfo(member.name)
            plain.size = member.size
            copy.addfile(plain, members.extractfile(member))
    assert theirs.getvalue() == tar


def test_every_array_starts_at_a_multiple_of_64(features: list[tuple[str, np.ndarray]]) -> None:
    _, stored = describe_shard(pack_shard(FRAMES_SPEC, features, {}), FRAMES_SPEC)
    assert [entry.offset % 64 for entry in stored] == [0] * len(features)


def test_equal_features_give_equal_bytes(features: list[tuple[str, np.ndarray]]) -> None:
    assert pack_shard(FRAMES_SPEC, features, {}) == pack_shard(FRAMES_SPEC, features, {})


def test_a_shard_left_by_a_killed_run_is_reused(store_uri: str, features: list[tuple[str, np.ndarray]]) -> None:
    store = FeatureStore(store_uri)
    keys = [key for key, _ in features]
    tar = pack_shard(FRAMES_SPEC, features, {})
    path, stored = write_shard(store.storage, FRAMES_SPEC, "task-0", tar, keys)
    assert find_shard(store.storage, FRAMES_SPEC, path, keys) == stored
    assert find_shard(store.storage, FRAMES_SPEC, path, keys[:-1]) is None
    assert write_shard(store.storage, FRAMES_SPEC, "task-0", tar, keys) == (path, stored)


def test_a_shard_without_its_checksums_is_completed(store_uri: str, features: list[tuple[str, np.ndarray]]) -> None:
    store = FeatureStore(store_uri)
    keys = [key for key, _ in features]
    tar = pack_shard(FRAMES_SPEC, features, {})
    path = shard_path(FRAMES_SPEC.fingerprint, "task-0", keys, 0)
    store.storage.create(path, tar)
    assert write_shard(store.storage, FRAMES_SPEC, "task-0", tar, keys)[0] == path
    assert find_shard(store.storage, FRAMES_SPEC, path, keys) is not None


def test_a_truncated_shard_stays_and_ours_takes_the_next_generation(
    store_uri: str, features: list[tuple[str, np.ndarray]]
) -> None:
    store = FeatureStore(store_uri)
    keys = [key for key, _ in features]
    tar = pack_shard(FRAMES_SPEC, features, {})
    truncated = shard_path(FRAMES_SPEC.fingerprint, "task-0", keys, 0)
    store.storage.create(truncated, tar[:5000])
    path, stored = write_shard(store.storage, FRAMES_SPEC, "task-0", tar, keys)
    assert path.endswith("-g1.tar")
    assert store.storage.read(truncated) == tar[:5000]
    assert find_shard(store.storage, FRAMES_SPEC, path, keys) == stored


@pytest.mark.parametrize("is_equal", [True, False], ids=["equal bytes", "bytes of another machine"])
def test_a_shard_whose_checksums_do_not_match_is_not_reused(
    store_uri: str, features: list[tuple[str, np.ndarray]], is_equal: bool
) -> None:
    store = FeatureStore(store_uri)
    keys = [key for key, _ in features]
    tar = pack_shard(FRAMES_SPEC, features, {})
    there = tar if is_equal else pack_shard(FRAMES_SPEC, [(key, array + 1) for key, array in features], {})
    path = shard_path(FRAMES_SPEC.fingerprint, "task-0", keys, 0)
    store.storage.create(path, there)
    sums = bytearray(describe_shard(there, FRAMES_SPEC)[0])
    sums[9] ^= 1
    store.storage.create(sums_path(path), bytes(sums))
    assert find_shard(store.storage, FRAMES_SPEC, path, keys) is None
    ours, stored = write_shard(store.storage, FRAMES_SPEC, "task-0", tar, keys)
    assert ours.endswith("-g1.tar")
    assert find_shard(store.storage, FRAMES_SPEC, ours, keys) == stored
    assert (store.storage.read(path), store.storage.read(sums_path(path))) == (there, bytes(sums))


def test_a_shard_of_another_shape_is_refused(features: list[tuple[str, np.ndarray]]) -> None:
    tar = io.BytesIO(pack_shard(FRAMES_SPEC, features, {}))
    with tarfile.open(fileobj=tar) as members:
        assert len(members.getnames()) == 2 * len(features)
    other = FRAMES_SPEC.__class__(
        **{name: getattr(FRAMES_SPEC, name) for name in FRAMES_SPEC.__struct_fields__ if name != "width"}, width=384
    )
    with pytest.raises(Damaged, match="not of the spec"):
        describe_shard(tar.getvalue(), other)
