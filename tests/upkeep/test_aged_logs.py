"""A store that is a year old, and Delta's own cleanup as a user may run it: no tagged version is lost."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from support.feature_sets import content
from support.injuries import TAG, Injury, Patient, featurize, make_patient

from speechclip.corpora.table import read_table
from speechclip.errors import Damaged, NotStored, StoreError
from speechclip.store import FeatureStore, catalog
from speechclip.store.layout import checkpoint_path, journal_path, log_path
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import repair
from speechclip.upkeep.verify import verify

YEAR = 365 * 86_400


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """A store whose files and commits are all a year old."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "CHECKPOINT_EVERY", 3)
        patient = make_patient(tmp_path_factory.mktemp("aged"))
        age(FeatureStore(patient.uri))
        yield patient


def age(store: FeatureStore) -> None:
    """Make every commit and every file older, in the log, in its checkpoints and in the journal."""
    for version in range(store.snapshot().version + 1):
        log = Path(store.storage.root) / log_path(version)
        log.write_text("".join(json.dumps(_older(json.loads(line))) + "\n" for line in log.read_text().splitlines()))
        if store.storage.size(checkpoint_path(version)) is not None:
            store.catalog.checkpoint(version)
        store.storage.replace(journal_path(version), store.catalog.journal.copy_of(version))
    for path in Path(store.storage.root).rglob("*"):
        os.utime(path, (time.time() - YEAR, time.time() - YEAR))


def _older(action: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    for values in action.values():
        for name in ("timestamp", "modificationTime", "deletionTimestamp", "createdTime", "lastUpdated"):
            if isinstance(values.get(name), int):
                values[name] = int(str(values[name])) - 1000 * YEAR
    return action


@pytest.fixture
def store(aged: Patient, tmp_path: Path) -> FeatureStore:
    # copytree keeps the times.
    return FeatureStore(str(shutil.copytree(aged.uri, tmp_path / "store")))


def check_whole(store: FeatureStore, aged: Patient) -> None:
    assert content(store.snapshot()) == aged.head
    assert content(store.snapshot(TAG)) == aged.tagged
    assert verify(store).findings == ()


def table(store: FeatureStore) -> DeltaTable:
    return DeltaTable(f"{store.storage.root}/catalog")


def vacuum_all(delta: DeltaTable) -> None:
    """Let Delta delete every file that the newest version does not name."""
    assert delta.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)


def test_the_store_is_old(aged: Patient) -> None:
    store = FeatureStore(aged.uri)
    times = [entry.time.timestamp() for entry in store.catalog.history(store.snapshot().version)]
    assert max(times) < time.time() - 0.9 * YEAR
    assert all(file.modified < time.time() - 0.9 * YEAR for file in store.storage.stat(""))
    check_whole(store, aged)


@pytest.mark.parametrize(
    "clean",
    [
        lambda delta: delta.cleanup_metadata(),
        lambda delta: delta.vacuum(dry_run=False),
        lambda delta: delta.vacuum(dry_run=False, full=True),
        lambda delta: delta.create_checkpoint(),
    ],
    ids=["cleanup_metadata", "vacuum", "vacuum-full", "checkpoint"],
)
def test_deltas_own_cleanup_deletes_nothing(
    clean: Callable[[DeltaTable], object], store: FeatureStore, aged: Patient
) -> None:
    clean(table(store))
    check_whole(store, aged)
    check_usable(store, aged)


def check_usable(store: FeatureStore, aged: Patient) -> None:
    """Check that the next job finds only the dropped assets missing, and commits."""
    assert featurize(store, read_table(str(aged.corpus))) > 0
    assert content(store.snapshot()).items() >= aged.head.items()
    assert content(store.snapshot(TAG)) == aged.tagged
    assert verify(store).findings == ()


def test_delta_refuses_to_vacuum_what_our_retention_keeps(store: FeatureStore, aged: Patient) -> None:
    with pytest.raises(Exception, match="retention"):
        table(store).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=True)
    check_whole(store, aged)


def test_a_forced_vacuum_keeps_the_newest_version_and_repair_brings_back_the_tagged(
    store: FeatureStore, aged: Patient
) -> None:
    vacuum_all(table(store))
    assert content(store.snapshot()) == aged.head
    with pytest.raises(Damaged, match="repair"):
        content(store.snapshot(TAG))
    findings = verify(store).findings
    assert {finding.kind for finding in findings} == {"catalog"}
    done = repair(store)
    assert (done.encoded, done.problems) == (0, ())
    assert set(done.repaired) == set(findings)
    check_whole(store, aged)
    check_usable(store, aged)


def test_a_log_that_a_user_has_cut_is_restored_by_repair(store: FeatureStore, aged: Patient) -> None:
    table(store).alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    table(store).create_checkpoint()
    # The change of the property is younger than the day: it must not be cut.
    table(store).cleanup_metadata()
    assert store.storage.size(log_path(0)) is None
    assert content(store.snapshot()) == aged.head
    with contextlib.suppress(StoreError):
        assert content(store.snapshot(TAG)) == aged.tagged
    assert {finding.kind for finding in verify(store).findings} >= {"log"}
    assert repair(store).problems == ()
    check_whole(store, aged)
    check_usable(store, aged)


def test_a_damaged_checkpoint_that_a_user_has_written_is_found_and_repaired(store: FeatureStore, aged: Patient) -> None:
    table(store).create_checkpoint()
    Injury("checkpoint", checkpoint_path(aged.newest), "truncate", 1000).inflict(store.storage.root)
    with pytest.raises(Damaged, match="repair"):
        store.snapshot()
    assert [finding.kind for finding in verify(store).findings] == ["checkpoint"]
    assert repair(store).problems == ()
    check_whole(store, aged)


def test_files_rewritten_by_another_tool_are_refused_and_repair_undoes_that(store: FeatureStore, aged: Patient) -> None:
    table(store).optimize.compact()
    vacuum_all(table(store))
    with pytest.raises(Damaged, match="another tool"):
        store.snapshot()
    assert [finding.kind for finding in verify(store).findings] == ["log"]
    done = repair(store)
    assert done.problems == ()
    assert "another tool" in done.repaired[0].problem
    check_whole(store, aged)
    check_usable(store, aged)


def test_all_these_commands_and_our_own_gc_one_after_the_other(store: FeatureStore, aged: Patient) -> None:
    delta = table(store)
    delta.create_checkpoint()
    vacuum_all(delta)
    delta.cleanup_metadata()
    # What gc may free it learns from the tagged version's files.
    with pytest.raises(Damaged, match="repair"):
        delete_unused(store)
    assert repair(store).problems == ()
    before = content(store.snapshot())
    freed = delete_unused(store)
    assert freed.versions == (aged.tagged_version,)
    assert content(store.snapshot()) == before
    check_whole(store, aged)
    with pytest.raises(NotStored, match="was deleted by `gc`"):
        store.snapshot(aged.tagged_version + 1)
    check_usable(store, aged)


def test_gc_of_an_old_store_deletes_what_no_live_version_names(store: FeatureStore, aged: Patient) -> None:
    listed = {file.path for file in store.storage.stat("")}
    freed = delete_unused(store)
    gone = listed - {file.path for file in store.storage.stat("")}
    assert len(gone) == freed.files > 0
    assert not gone & {path for paths in aged.files.values() for path in paths}
    check_whole(store, aged)
