"""The log, its copies and its root: a reader notices a log that is not what was committed."""

import json
import threading
from pathlib import Path

import pytest

from speechclip.errors import Damaged, NotStored
from speechclip.records import Receipt, StoredAsset
from speechclip.storage import Storage
from speechclip.store import FeatureStore, catalog
from speechclip.store.layout import checkpoint_path, journal_path, log_path
from speechclip.upkeep.verify_log import verify_log


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    for number in range(4):
        commit(store, number)
    return store


def commit(store: FeatureStore, number: int) -> int:
    stored = StoredAsset(key=f"key-{number}", offset=0, num_frames=0, sums_offset=0, checksum=7)
    return store.commit(
        [
            Receipt(
                task=f"t{number}", feature_set="set-1", shard="x.tar", stored=(stored,), rejected=(), num_bytes=0,
                seconds=0.0, num_encoded=1,
            )
        ],
        "m",
    )  # fmt: skip


def file(store: FeatureStore, path: str) -> Path:
    return Path(store.storage.address(path))


def test_every_entry_has_its_copy_byte_by_byte(store: FeatureStore) -> None:
    for version in range(5):
        copy = store.catalog.journal.read(version)
        assert copy is not None
        assert copy.text.encode() == store.storage.read(log_path(version))
    assert list(verify_log(store.catalog)) == []


def test_the_next_writer_makes_the_copy_that_a_killed_one_did_not(store: FeatureStore) -> None:
    for version in (3, 4):
        file(store, journal_path(version)).unlink()
    assert list(verify_log(store.catalog)) == []
    assert commit(store, 4) == 5
    assert all(store.catalog.journal.has(version) for version in range(6))


@pytest.mark.parametrize("edit", ["another file", "no file", "another partition"])
def test_a_changed_log_is_noticed_by_its_root(store: FeatureStore, edit: str) -> None:
    entry = file(store, log_path(2))
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    add = next(line["add"] for line in lines if "add" in line)
    if edit == "another file":
        add["path"] = add["path"].replace("part-", "part-0")
    elif edit == "another partition":
        add["path"] = add["path"].replace("set-1", "set-2")
        add["partitionValues"]["feature_set"] = "set-2"
    else:
        lines = [line for line in lines if "add" not in line]
    entry.write_text("\n".join(json.dumps(line) for line in lines))
    for version in (None, 2, 4):
        with pytest.raises(Damaged, match=r"speechclip repair"):
            store.snapshot(version)
    assert store.snapshot(1).stored_keys("set-1") == {"key-0"}


def test_a_lost_newest_entry_is_noticed_and_not_read_as_an_older_store(store: FeatureStore) -> None:
    file(store, log_path(4)).unlink()
    with pytest.raises(Damaged, match=r"0004\.json was committed and is gone"):
        store.snapshot()
    with pytest.raises(Damaged, match="gone"):
        commit(store, 9)
    with pytest.raises(NotStored, match="no catalog version 77"):
        store.snapshot(77)


def test_a_long_log_gets_checkpoints_with_checksums_in_the_journal(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 3)
    for number in range(4, 8):
        commit(store, number)
    assert store.storage.size(checkpoint_path(6)) is not None
    assert store.snapshot().stored_keys("set-1") == {f"key-{number}" for number in range(8)}
    assert list(verify_log(store.catalog)) == []
    file(store, checkpoint_path(6)).write_bytes(b"junk")
    assert [finding.kind for finding in verify_log(store.catalog)] == ["checkpoint"]


def test_entries_and_copies_are_verified_side_by_side(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After years a store has tens of thousands of entries, and on S3 each takes a request."""
    are_two, lock = threading.Event(), threading.Lock()
    num_open = [0]

    def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
        with lock:
            num_open[0] += 1
            if num_open[0] > 1:
                are_two.set()
        are_two.wait(2)
        with lock:
            num_open[0] -= 1
        return Storage.read(store.storage, path, start, end)

    monkeypatch.setattr(store.storage, "read", read)
    monkeypatch.setattr(store.storage, "is_local", False)
    assert list(verify_log(store.catalog)) == []
    assert are_two.is_set()
