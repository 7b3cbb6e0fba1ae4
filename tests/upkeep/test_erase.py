"""`drop --erase` rewrites shared shards and drops: the next gc deletes every byte of what was dropped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import stores
from support.feature_sets import content
from support.stores import IMAGE, SPEECH, TEXT, fill

from speechclip.featurization.plan import TaskSizes
from speechclip.records import Asset, Receipt, Task
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.features import Features
from speechclip.store.matrices import create_matrix, matrix_in
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.vectors import write_chunk
from speechclip.upkeep import erase
from speechclip.upkeep.erase import rewrite_shared_shards
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.verify import verify

Content = Mapping[tuple[str, str], bytes]


def check_erased(store: FeatureStore, before: Content, doomed: Mapping[str, set[str]]) -> None:
    """After a gc the store has all other features, and no file holds a byte of the doomed ones."""
    delete_unused(store, grace_seconds=0)
    assert content(store.snapshot()) == {k: v for k, v in before.items() if k[1] not in doomed[k[0]]}
    assert verify(store).findings == ()
    left = b"".join(store.storage.read(path) for path in store.storage.list("features"))
    for (name, key), data in before.items():
        is_gone = data not in left and key.encode() not in left
        assert is_gone == (key in doomed[name])


def store_again(store: FeatureStore, name: str, keys: Sequence[str], *, is_repair: bool = False) -> None:
    """Commit these keys from the task of another driver. Its copy of the first key counts only if `is_repair`."""
    spec, features = store.read_spec(name).spec, store.snapshot().feature_set(name)
    arrays = {key: features[key] for key in keys}
    if spec.is_frames:
        path, stored = write_shard(store.storage, spec, "again", pack_shard(spec, arrays.items(), {}), keys)
    else:
        create_matrix(store.storage, spec, "again-4x4")
        assets = tuple(Asset(key=key, modality=spec.modality) for key in keys)
        task = Task(id="again", feature_set=name, assets=assets, matrix="again-4x4", first_row=0)
        path, stored, _ = write_chunk(store.storage, spec, task, arrays)
    receipt = Receipt(
        task="again", feature_set=name, shard=path, stored=stored, rejected=(), num_bytes=0, seconds=0.0, num_encoded=0
    )
    store.drop({name: set(keys[1:])})
    store.commit([receipt], "m", damaged={name: keys} if is_repair else None)


def test_gc_deletes_every_byte_of_erased_features(store_uri: str) -> None:
    store = fill(store_uri)
    before = content(store.snapshot())
    doomed = {name: set(sorted(store.snapshot().stored_keys(name))[:3]) for name in (SPEECH, IMAGE, TEXT)}
    assert rewrite_shared_shards(store, doomed) > 0
    assert content(store.snapshot()) == before
    store.drop(doomed)
    check_erased(store, before, doomed)


@pytest.mark.parametrize("first", ["nothing", "compaction", "compaction and gc", "drop", "drop and compaction"])
def test_keys_that_are_stored_twice_or_were_dropped_before_are_erased_too(tmp_path: Path, first: str) -> None:
    """A second copy that no reader uses lies in a shard with features that stay. So do the bytes after a plain drop."""
    store = fill(str(tmp_path / "s"))
    doomed, beside = {TEXT: set[str]()}, {}
    for name in (SPEECH, IMAGE):
        key, *others = sorted(store.snapshot().stored_keys(name))[:3]
        doomed[name], beside[name] = {key}, others
        store_again(store, name, [key, *others])
    before = content(store.snapshot())
    if first.startswith("drop"):
        store.drop(doomed)
    if "compaction" in first:
        store.compact(2)
    if "gc" in first:
        delete_unused(store, grace_seconds=0)
    assert rewrite_shared_shards(store, doomed) > 2
    rows = {name: store.snapshot().stored(name).to_pylist() for name in beside}
    for name, keys in beside.items():
        assert all("again" in row["shard"] for row in rows[name] if row["asset"] in keys)
    store.drop(doomed)
    check_erased(store, before, doomed)
    assert rewrite_shared_shards(store, doomed) == 0


def test_bytes_that_a_repair_has_left_in_the_old_shard_are_erased(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"))
    doomed = {name: {min(store.snapshot().stored_keys(name))} for name in (SPEECH, IMAGE)} | {TEXT: set[str]()}
    for name in (SPEECH, IMAGE):
        store_again(store, name, sorted(doomed[name]), is_repair=True)
    before = content(store.snapshot())
    assert rewrite_shared_shards(store, doomed) == 2
    store.drop(doomed)
    check_erased(store, before, doomed)


def test_a_copy_that_no_reader_uses_is_not_moved_and_the_same_one_still_counts(tmp_path: Path) -> None:
    """A key is stored twice, and its copy that counts is not in the shard of the doomed key."""
    store = fill(str(tmp_path / "s"))
    # Of two shards: the last lies in another than the first two.
    ordered = store.snapshot().stored(SPEECH).sort_by([("shard", "ascending"), ("offset", "ascending")])
    keys = ordered["asset"].to_pylist()
    store_again(store, SPEECH, [keys[-1], keys[0]])
    before, doomed = content(store.snapshot()), {SPEECH: {keys[0]}, IMAGE: set[str](), TEXT: set[str]()}
    counted = [row for row in store.snapshot().stored(SPEECH).to_pylist() if row["asset"] == keys[-1]]
    rewrite_shared_shards(store, doomed)
    assert [row for row in store.snapshot().stored(SPEECH).to_pylist() if row["asset"] == keys[-1]] == counted
    store.drop(doomed)
    check_erased(store, before, doomed)


def test_each_set_is_opened_once_and_one_commit_moves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill_by_two(tmp_path, monkeypatch)
    doomed = one_of_each_place(store.snapshot())
    begin, num_opened, version = Features.__init__, 0, store.snapshot().version

    def count_opened(self: Features, *args: Any, **options: Any) -> None:
        nonlocal num_opened
        num_opened += 1
        begin(self, *args, **options)

    monkeypatch.setattr(Features, "__init__", count_opened)
    assert rewrite_shared_shards(store, doomed) == 15
    assert num_opened == 3
    assert store.snapshot().version == version + 1


def test_a_killed_erase_continues_after_its_last_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill_by_two(tmp_path, monkeypatch)
    before, doomed = content(store.snapshot()), one_of_each_place(store.snapshot())
    monkeypatch.setattr(erase, "COMMIT_SECONDS", -1)

    def die(done: int, _total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite_shared_shards(store, doomed, on_progress=die)
    assert content(store.snapshot()) == before
    assert rewrite_shared_shards(store, doomed) == 9
    assert content(store.snapshot()) == before
    store.drop(doomed)
    check_erased(store, before, doomed)


def fill_by_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Fifteen shards and chunks of two."""
    monkeypatch.setattr(stores, "SIZES", TaskSizes(shard_items=2, chunk_rows=2))
    return fill(str(tmp_path / "s"))


def one_of_each_place(snapshot: Snapshot) -> dict[str, set[str]]:
    found = {}
    for name in (SPEECH, IMAGE, TEXT):
        rows = snapshot.stored(name).to_pylist()
        found[name] = set({(row["task"], row["shard"]): row["asset"] for row in rows}.values())
    return found


@pytest.mark.parametrize("name", [SPEECH, IMAGE])
def test_erase_reuses_no_file_that_holds_more_or_other_bytes(tmp_path: Path, name: str) -> None:
    """Another machine, or a killed writer, has left a file under the name that erase wants to write."""
    store = fill(str(tmp_path / "s"))
    before, snapshot = content(store.snapshot()), store.snapshot()
    spec, features = store.read_spec(name).spec, snapshot.feature_set(name)
    by_place = snapshot.stored(name).sort_by([("shard", "ascending"), ("task", "ascending"), ("offset", "ascending")])
    # The last of its task: what stays then lies in the same rows as in the chunk that was left.
    doomed = [row for row in by_place.to_pylist() if row["task"] == by_place["task"][0].as_py()][-1]
    others = {key: features[key] for key in packed_beside(snapshot, name, doomed)}
    assert others
    if spec.is_frames:
        tar = pack_shard(spec, [(key, array + 1) for key, array in others.items()], {})
        left, _ = write_shard(store.storage, spec, doomed["task"], tar, list(others))
    else:
        others |= {doomed["asset"]: features[doomed["asset"]]}
        assets = tuple(Asset(key=key, modality="image") for key in others)
        matrix, first_row = matrix_in(doomed["shard"])[0], doomed["offset"] + 1 - len(others)
        again = Task(id=doomed["task"], feature_set=name, assets=assets, matrix=matrix, first_row=first_row)
        left, _, _ = write_chunk(store.storage, spec, again, others, first_generation=1)
    assert rewrite_shared_shards(store, {name: {doomed["asset"]}}) > 0
    assert content(store.snapshot()) == before
    rows = store.snapshot().stored(name).to_pylist()
    assert left not in {row["shard"] for row in rows if row["task"] == doomed["task"]}


def packed_beside(snapshot: Snapshot, name: str, row: dict[str, Any]) -> list[str]:
    """The other keys of the same task in the same shard, in the order of their places."""
    rows = snapshot.stored(name).sort_by("offset").to_pylist()
    place = (row["task"], row["shard"])
    return [other["asset"] for other in rows if (other["task"], other["shard"]) == place and other != row]
