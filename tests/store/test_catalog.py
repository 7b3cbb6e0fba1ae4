import threading
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable
from support.fault_proxy import FaultProxy, Schedule
from support.feature_sets import FRAMES_SPEC, VECTORS_SPEC

from speechclip.errors import NotStored, StorageFailed, UnsupportedStore
from speechclip.records import Receipt, RejectedAsset, StoredAsset
from speechclip.storage import aws, retry
from speechclip.store import FeatureStore

NAME = VECTORS_SPEC.fingerprint


def receipt(task: str, *keys: str, rejected: tuple[RejectedAsset, ...] = (), row: int = 0) -> Receipt:
    stored = tuple(
        StoredAsset(key=key, offset=row + n, num_frames=0, sums_offset=0, checksum=7) for n, key in enumerate(keys)
    )
    return Receipt(
        task=task, feature_set=NAME, shard=f"shard-{task}", stored=stored, rejected=rejected, num_bytes=1, seconds=1.0,
        num_encoded=len(keys),
    )  # fmt: skip


@pytest.fixture
def store(store_uri: str) -> FeatureStore:
    store = FeatureStore(store_uri)
    store.create()
    store.add_spec(VECTORS_SPEC, "toy")
    return store


def shards(store: FeatureStore) -> dict[str, str]:
    snapshot = store.snapshot()
    return {row["asset"]: row["shard"] for row in snapshot.stored(NAME).to_pylist()}


def test_a_commit_repeated_after_a_lost_answer_adds_nothing(store: FeatureStore) -> None:
    first = store.commit([receipt("t0", "a", "b")], "m")
    assert store.commit([receipt("t0", "a", "b")], "m") == first
    assert len(store.catalog.open().table.to_pyarrow_table()) == 2


def test_every_row_names_the_version_that_added_it(store: FeatureStore) -> None:
    for number in range(3):
        version = store.commit([receipt(f"t{number}", f"key-{number}")], "m")
        rows = store.catalog.open().table.to_pyarrow_table().to_pylist()
        assert {row["asset"]: row["version"] for row in rows}[f"key-{number}"] == version


def test_a_key_committed_twice_counts_once_and_the_lowest_version_wins(store: FeatureStore) -> None:
    store.commit([receipt("t1", "a")], "m")
    store.commit([receipt("t0", "a", "b")], "m")
    assert shards(store) == {"a": "shard-t1", "b": "shard-t0"}


def test_a_stored_row_counts_before_a_rejected_one_in_either_order(store: FeatureStore) -> None:
    no = RejectedAsset(key="a", reason="undecodable", detail="a: no decoder takes it")
    store.commit([receipt("t0", rejected=(no,))], "m")
    assert store.snapshot().rejections(NAME)["reason"].to_pylist() == ["undecodable"]
    store.commit([receipt("t1", "a")], "m")
    assert shards(store) == {"a": "shard-t1"}
    assert len(store.snapshot().rejections(NAME)) == 0


def test_a_rejection_by_the_source_belongs_to_its_manifest_alone(store: FeatureStore) -> None:
    gone = RejectedAsset(key="a", reason="source-missing", detail="a.wav: no such file", source="a.wav")
    store.commit([receipt("t0", rejected=(gone,))], "manifest-1")
    snapshot = store.snapshot()
    assert snapshot.rejections(NAME, "manifest-1")["asset"].to_pylist() == ["a"]
    assert len(snapshot.rejections(NAME, "manifest-2")) == 0


def test_a_snapshot_does_not_change(store: FeatureStore) -> None:
    version = store.commit([receipt("t0", "a")], "m")
    before = store.snapshot()
    store.commit([receipt("t1", "b")], "m")
    assert before.stored_keys(NAME) == {"a"}
    assert store.snapshot(version).stored_keys(NAME) == {"a"}
    assert store.snapshot().stored_keys(NAME) == {"a", "b"}


def test_concurrent_writers_lose_nothing(store_uri: str) -> None:
    FeatureStore(store_uri).create()
    num_writers, num_commits = 4, 5

    def write(writer: int) -> None:
        for number in range(num_commits):
            FeatureStore(store_uri).commit([receipt(f"w{writer}-{number}", f"{writer}-{number}")], "m")

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(num_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = FeatureStore(store_uri).catalog.open().table.to_pyarrow_table().to_pylist()
    assert sorted(row["asset"] for row in rows) == sorted(
        f"{w}-{n}" for w in range(num_writers) for n in range(num_commits)
    )
    assert sorted(row["version"] for row in rows) == list(range(1, num_writers * num_commits + 1))


def test_plain_deltalake_and_duckdb_read_the_catalog(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    store.commit([receipt("t0", "a", "b")], "m")
    catalog = DeltaTable(str(tmp_path / "store" / "catalog")).to_pyarrow_dataset()
    assert duckdb.sql("select count(*), min(status) from catalog").fetchall() == [(2, "stored")]
    assert catalog.count_rows() == 2


def test_a_place_without_a_store_is_reported(store_uri: str) -> None:
    with pytest.raises(NotStored, match="featurize"):
        FeatureStore(store_uri).snapshot()


def test_a_newer_format_is_refused(store: FeatureStore) -> None:
    store.storage.replace("store.json", b'{"format": 99}')
    with pytest.raises(UnsupportedStore, match=r"format 99.*upgrade"):
        FeatureStore(store.storage.root).snapshot()


def test_specs_are_kept_once(store: FeatureStore) -> None:
    store.add_spec(FRAMES_SPEC, "toy")
    store.add_spec(FRAMES_SPEC, "toy")
    assert store.read_spec(FRAMES_SPEC.fingerprint).spec == FRAMES_SPEC


def test_reading_the_log_is_retried_and_then_fails_with_a_sentence(
    proxied_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client fetches parts of the log that opening the table did not, and stops at an answer that says no."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setitem(aws.DELTA, "max_retries", "0")
    store = FeatureStore(proxied_uri)
    store.create()
    table = store.catalog.open()
    proxy.schedule(Schedule(("500",), only="_delta_log", budget=2))
    assert not store.catalog._holds(table, "digest")
    assert len(proxy.schedule(Schedule(("deny",), only="_delta_log"))) == 2
    with pytest.raises(StorageFailed, match=r"s3://.*reading the log failed"):
        store.catalog._holds(table, "digest")


def test_the_newest_of_two_rejections_counts_and_a_feature_counts_before_both(tmp_path: Path) -> None:
    """As after `featurize --retry`. An old snapshot shows the newest of its time, and so does a compaction."""
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    store.add_spec(VECTORS_SPEC, "toy")

    def reject(task: str, reason: str, source: str | None) -> int:
        rejected = (RejectedAsset(key="a", reason=reason, detail=f"by {task}", source=source),)
        return store.commit([receipt(task, rejected=rejected)], "m", job=task)

    def shown() -> list[tuple[str, str]]:
        return [(row["reason"], row["detail"]) for row in store.snapshot().rejections(NAME, "m").to_pylist()]

    old = reject("z", "source-missing", "a.wav")
    reject("y", "source-changed", "a.wav")
    reject("x", "silent", None)
    reject("w", "undecodable", None)
    newest = [("undecodable", "by w"), ("source-changed", "by y")]
    assert shown() == newest
    assert store.snapshot(old).rejections(NAME, "m")["detail"].to_pylist() == ["by z"]
    store.compact(2)
    assert shown() == newest
    for row in (1, 2):
        store.commit([receipt(f"v{row}", "a", row=row)], "m", job=f"v{row}")
    reject("u", "silent", None)
    assert shown() == []
    assert store.snapshot().stored(NAME)["offset"].to_pylist() == [1]
