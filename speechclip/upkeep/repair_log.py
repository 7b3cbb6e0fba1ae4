"""Repair the catalog's log: its entries, their copies in the journal, and the checkpoints."""

import contextlib
import itertools
from collections.abc import Sequence

from speechclip.errors import Damaged, StoreError
from speechclip.storage import Storage
from speechclip.store.feature_store import FeatureStore
from speechclip.store.journal import parse_entry
from speechclip.store.layout import CATALOG, LAST_CHECKPOINT, checkpoint_path, journal_path, log_path
from speechclip.upkeep.findings import FOREIGN, Finding
from speechclip.upkeep.verify_log import LOG, versions_in


def repair_entry(store: FeatureStore, finding: Finding) -> bool:
    """Write a log entry again from its copy; False if there is no copy or the copy is equal to the entry."""
    copy = store.catalog.journal.read(version_of(finding))
    if copy is None or store.storage.read_or_empty(finding.path) == copy.text.encode():
        return False
    store.storage.replace(finding.path, copy.text.encode())
    return True


def repair_copies(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Copy log entries into the journal again; returns the findings that remain.

    The copy of an entry also holds the checksum of the checkpoint that was written with the entry. It is lost with the
    copy, so then all checkpoints are written again.
    """
    have_checkpoint = any(store.storage.size(checkpoint_path(version_of(finding))) is not None for finding in findings)
    remaining = [finding for finding in findings if not _copy_entry(store, finding)]
    return repair_checkpoints(store, findings) or remaining if have_checkpoint else remaining


def repair_checkpoints(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Write all checkpoints again from the log's entries, once for all findings; returns the findings that remain.

    If an entry is damaged, everything stays as it was: a checkpoint may be the only way to read what is behind that
    entry.
    """
    storage, journal = store.storage, store.catalog.journal
    if not all(storage.in_parallel(lambda version: _is_readable(storage, version), range(_num_versions(storage)))):
        return findings
    paths = [path for path in storage.list(f"{CATALOG}/_delta_log") if "checkpoint" in path]
    old = dict(zip(paths, storage.in_parallel(storage.read, paths), strict=True))
    storage.delete(paths)
    try:
        versions = range(store.catalog.newest() + 1)
        have_checkpoint = storage.in_parallel(lambda version: _has_checkpoint(store, version), versions)
        for version in itertools.compress(versions, have_checkpoint):
            store.catalog.checkpoint(version)
            storage.replace(journal_path(version), journal.copy_of(version))
    except (StoreError, FileNotFoundError):
        for path, data in old.items():
            storage.replace(path, data)
        return findings
    return ()


def forget_entry(store: FeatureStore, finding: Finding) -> tuple[str, ...]:
    """Delete a lost or foreign log entry and all later ones, if no copy proves one of them; returns their paths.

    This is the last resort, because without it nothing can be read. What these entries had added to the catalog is
    missing then, and what they had removed is back. Their checkpoints are deleted too, because Delta's client would
    read them instead of the entries; and so is the pointer to the newest checkpoint, which `repair` writes again.
    """
    if finding.kind != "log":
        return ()
    versions = _versions_from(store, finding)
    checkpoints = [path for path in map(checkpoint_path, versions) if store.storage.size(path) is not None]
    store.storage.delete([*checkpoints, LAST_CHECKPOINT] if checkpoints else [])
    store.storage.delete([path(version) for version in versions for path in (log_path, journal_path)])
    return tuple(map(log_path, reversed(versions)))


def can_be_forgotten(store: FeatureStore, finding: Finding) -> bool:
    """Whether `forget_entry` would delete anything for this finding."""
    return finding.kind == "log" and bool(_versions_from(store, finding))


def is_foreign(finding: Finding) -> bool:
    """Whether the finding is a log entry that another tool has written."""
    return finding.problem == FOREIGN


def version_of(finding: Finding) -> int:
    """The version of a log entry or of its copy."""
    return int(finding.path.rpartition("/")[2][:20])


def _versions_from(store: FeatureStore, finding: Finding) -> Sequence[int]:
    """The versions from the newest down to the finding's; empty if a copy proves that one of them was committed."""
    newest = version_of(finding)
    while any(store.storage.size(path(newest + 1)) is not None for path in (log_path, journal_path)):
        newest += 1
    versions = range(newest, version_of(finding) - 1, -1)
    return () if any(_has_copy(store, version) for version in versions) else versions


def _has_copy(store: FeatureStore, version: int) -> bool:
    try:
        return store.catalog.journal.read(version) is not None
    except Damaged:
        return False


def _copy_entry(store: FeatureStore, finding: Finding) -> bool:
    with contextlib.suppress(StoreError, FileNotFoundError):
        store.storage.replace(finding.path, store.catalog.journal.copy_of(version_of(finding)))
        return True
    return False


def _is_readable(storage: Storage, version: int) -> bool:
    """Whether the log entry of a version can be read, not counting its copy."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        parse_entry(version, storage.read(log_path(version)))
        return True
    return False


def _num_versions(storage: Storage) -> int:
    return max(versions_in(storage, LOG, ".json"), default=-1) + 1


def _has_checkpoint(store: FeatureStore, version: int) -> bool:
    """Whether a checkpoint was written with that entry; its copy in the journal says so."""
    with contextlib.suppress(Damaged):
        copy = store.catalog.journal.read(version)
        return copy is not None and bool(copy.checkpoint)
    return False
