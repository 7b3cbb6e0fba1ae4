"""What `drop`, `compact` and the commit of a `repair` do to the rows while others write."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pyarrow as pa
import pytest
from support.feature_sets import content
from support.stores import IMAGE, SPEECH, TEXT, fill

from speechclip.records import Receipt, RejectedAsset, StoredAsset
from speechclip.store import FeatureStore, changes
from speechclip.store.catalog import Change
from speechclip.store.data_files import DataFiles
from speechclip.store.versions import Version


def num_rows(store: FeatureStore) -> int:
    table = store.catalog.open()
    return sum(len(store.catalog.rows(table, name)) for name in (SPEECH, IMAGE, TEXT))


def receipt(task: str, key: str, offset: int = 0, reason: str = "") -> Receipt:
    stored = StoredAsset(key=key, offset=offset, num_frames=0, sums_offset=0, checksum=7)
    rejected = RejectedAsset(key=key, reason=reason, detail="why", source="a.wav")
    return Receipt(
        task=task, feature_set=IMAGE, shard="features/x.tar", stored=() if reason else (stored,),
        rejected=(rejected,) if reason else (), num_bytes=0, seconds=0.0, num_encoded=1,
    )  # fmt: skip


def elsewhere(task: str, key: str) -> Receipt:
    return msgspec.structs.replace(receipt(task, key), shard="features/y.tar")


def test_dropped_keys_are_gone_from_the_newest_version_alone(store_uri: str) -> None:
    store = fill(store_uri)
    before = store.snapshot()
    keys = sorted(before.stored_keys(SPEECH))
    version = store.drop({SPEECH: keys[:4], TEXT: None})
    assert version == before.version + 1
    after = store.snapshot()
    assert after.stored_keys(SPEECH) == set(keys[4:])
    assert {info.fingerprint for info in after.feature_sets()} == {SPEECH, IMAGE}
    assert content(store.snapshot(before.version)) == content(before)
    assert store.drop({SPEECH: keys[:4], TEXT: None, "no-such-set": None}) is None
    note = store.catalog.entry(version).note
    assert note is not None
    assert [(part.feature_set, part.removed) for part in note.changes] == [(SPEECH, 4), (TEXT, 6)]


def test_compaction_keeps_what_readers_pick_in_one_file(store_uri: str) -> None:
    store = fill(store_uri, group_size=1)
    store.commit([receipt("t1", "a", 1)], "m")
    store.commit([receipt("t2", "a", 2), receipt("t2", "b", 3)], "m")
    before = {name: store.snapshot().stored(name).to_pylist() for name in (SPEECH, IMAGE, TEXT)}
    store.commit([receipt("t3", "r", reason="silent")], "m")
    store.commit([receipt("t4", "r", reason="silent")], "m")
    store.commit([elsewhere("t5", "a")], "m")
    rows = num_rows(store)
    assert store.compact(min_files=100) is None
    store.compact(min_files=2)
    # Gone are the older rejection, and a second row in a shard of which no row counts. The third row of that key stays,
    # because it lies in a shard of which another row counts.
    assert num_rows(store) == rows - 2
    assert {name: store.snapshot().stored(name).to_pylist() for name in (SPEECH, IMAGE, TEXT)} == before
    assert len(store.catalog.open().all_paths) == 3


def test_a_repair_replaces_the_damaged_rows_that_it_stores_and_no_others(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    store.commit([receipt("t1", "a", 1), receipt("t2", "b", 2), receipt("t3", "c", 3)], "m")
    store.commit(
        [receipt("t4", "a", 11), receipt("t5", "b", reason="source-missing")], "m", damaged={IMAGE: {"a", "b"}}
    )
    rows = store.snapshot().stored(IMAGE).to_pylist()
    assert {row["asset"]: row["offset"] for row in rows} == {"a": 11, "b": 2, "c": 3}
    assert [row["asset"] for row in store.catalog.rows(store.catalog.open(), IMAGE).to_pylist()].count("a") == 1


CHANGES = {
    "drop": (lambda store: store.drop({IMAGE: {"a"}}), {"b"}),
    "compact": (lambda store: store.compact(2), {"a", "b"}),
    "commit": (lambda store: store.commit([receipt("t9", "z")], "m"), {"a", "b", "z"}),
    "repair": (lambda store: store.commit([receipt("t9", "a", 9)], "m", damaged={IMAGE: {"a"}}), {"a", "b"}),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_change_that_loses_the_race_reads_and_writes_nothing_twice(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    store.commit([receipt("t1", "a", 1), receipt("t1", "b", 1)], "m")
    store.commit([receipt("t2", "b", 2)], "m")
    old = set(store.catalog.open().all_paths)
    catalog, read, written = type(store.catalog), list[str](), list[pa.Table]()
    write, write_file, read_file, num_races = catalog._write, DataFiles.write, DataFiles._read, 0

    def lose(self: object, *args: Any) -> bool:
        nonlocal num_races
        num_races += 1
        if num_races <= 3:
            with monkeypatch.context() as rival:
                rival.setattr(catalog, "_write", write)
                rival.setattr(DataFiles, "write", write_file)
                FeatureStore(store.storage.root).commit([receipt(f"rival-{num_races}", f"r{num_races}")], "m")
        return write(store.catalog, *args)

    def note_written(self: Any, name: str, rows: pa.Table) -> tuple[str, int]:
        written.append(rows)
        return write_file(self, name, rows)

    def note_read(self: Any, path: str) -> Any:
        read.append(path)
        return read_file(self, path)

    monkeypatch.setattr(catalog, "_write", lose)
    monkeypatch.setattr(DataFiles, "write", note_written)
    monkeypatch.setattr(DataFiles, "_read", note_read)
    act, expected = CHANGES[change]
    version = act(store)
    monkeypatch.undo()
    assert num_races == 4
    assert len(read) == len(set(read))
    assert set(read) & old == (set() if change == "commit" else old)
    # Only rows that state the version of their commit are written at each attempt.
    rewritten = [rows for rows in written if set(rows["task"].to_pylist()) != {"t9"}]
    assert len(rewritten) == (0 if change == "commit" else 1)
    assert store.snapshot().stored_keys(IMAGE) == expected | {"r1", "r2", "r3"}
    rows = store.catalog.rows(store.catalog.open(), IMAGE).to_pylist()
    assert sorted((row["task"], row["version"]) for row in rows if row["task"][0] == "r") == [
        ("rival-1", 3), ("rival-2", 4), ("rival-3", 5),
    ]  # fmt: skip
    assert [row["version"] for row in rows if row["task"] == "t9"] == [version] * (change in ("commit", "repair"))
    assert {row["offset"] for row in store.snapshot().stored(IMAGE).to_pylist() if row["asset"] == "a"} == (
        set() if change == "drop" else {9} if change == "repair" else {1}
    )


def test_a_race_that_is_lost_before_rows_are_written_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    store.commit([receipt("t1", "a", 1), receipt("t1", "b", 1)], "m")
    drop, written = changes.drop(store.catalog, {IMAGE: {"a"}}), list[pa.Table]()
    write_file = store.catalog.data_files.write

    def change(before: Version) -> Change:
        if before.number == 1:
            FeatureStore(store.storage.root).commit([receipt("rival", "r")], "m")
        return drop(before)

    def note(name: str, rows: pa.Table) -> tuple[str, int]:
        written.append(rows)
        return write_file(name, rows)

    monkeypatch.setattr(store.catalog.data_files, "write", note)
    monkeypatch.setattr(store.catalog, "_write", Mock(wraps=store.catalog._write))
    assert store.catalog.commit("digest", "drop", "", change) == 3
    assert store.catalog._write.call_count == len(written) == 1
    assert store.snapshot().stored_keys(IMAGE) == {"b", "r"}


def test_a_drop_rewrites_only_the_data_files_that_name_dropped_keys(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    for number, keys in enumerate(["ab", "cd", "a", "e"]):
        store.commit([receipt(f"t{number}", key, number) for key in keys], "m")
    before = set(store.catalog.open().all_paths)
    store.drop({IMAGE: {"a", "c"}})
    after = set(store.catalog.open().all_paths)
    assert (len(before & after), len(after - before)) == (1, 2)
    assert store.snapshot().stored_keys(IMAGE) == {"b", "d", "e"}


def test_a_compaction_starts_again_if_a_rival_removed_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    for key in "abc":
        store.commit([receipt(f"t-{key}", key)], "m")
    write = type(store.catalog)._write

    def lose(self: object, *args: Any) -> bool:
        monkeypatch.undo()
        FeatureStore(store.storage.root).drop({IMAGE: {"a"}})
        return write(store.catalog, *args)

    monkeypatch.setattr(type(store.catalog), "_write", lose)
    store.compact(2)
    assert store.snapshot().stored_keys(IMAGE) == {"b", "c"}
    assert len(store.catalog.open().all_paths) == 1


def test_equal_receipts_of_another_job_count_after_a_drop(tmp_path: Path) -> None:
    """A job that reuses a shard makes equal receipts each time. A digest of these alone would skip the second."""
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    for run in ("run-1", "run-2"):
        store.commit([receipt("t1", "a", 1)], "m", job=run)
        assert store.snapshot().stored_keys(IMAGE) == {"a"}
        store.drop({IMAGE: {"a"}})
        assert not store.snapshot().feature_sets()
