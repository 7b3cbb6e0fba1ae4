"""Repair every file that can be made again from storage alone: from its copy, from its shard or from its name.

No encoder is needed here. What is left afterwards are lost features, which must be encoded again, and files that only
the user can replace.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from speechclip.errors import Damaged, StoreError
from speechclip.records import to_json
from speechclip.store import changes
from speechclip.store.catalog import Change
from speechclip.store.data_files import check_data_file
from speechclip.store.feature_store import FeatureStore, StoreFile
from speechclip.store.layout import FORMAT, STORE_FILE, data_file_copy_path, data_file_path
from speechclip.store.matrices import matrix_metadata, shape_of
from speechclip.store.tags import GcRecord
from speechclip.store.versions import Version
from speechclip.upkeep.catalog_rows import rows_of_files
from speechclip.upkeep.findings import Finding, Kind
from speechclip.upkeep.live import oldest_complete_version, read_rows
from speechclip.upkeep.repair_features import repair_checksums, repair_feature_file
from speechclip.upkeep.repair_log import repair_checkpoints, repair_copies, repair_entry, version_of

# Repairs the findings of one kind and returns those that remain.
_Repairer = Callable[[FeatureStore, Sequence[Finding]], Sequence[Finding]]


def repair_files(store: FeatureStore, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Repair what storage alone can repair; returns the findings that remain.

    The log comes first, because everything else is read through it.
    """
    remaining: list[Finding] = []
    for kind, repairer in _REPAIRERS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if kind == "journal":
            # The copy of an entry that is still damaged must not be made from that entry: then it would look whole.
            damaged = {version_of(finding) for finding in remaining}
            remaining += [finding for finding in of_kind if version_of(finding) in damaged]
            of_kind = [finding for finding in of_kind if version_of(finding) not in damaged]
        remaining += repairer(store, of_kind) if of_kind else []
    return tuple(remaining)


def forget_lost_data_files(store: FeatureStore) -> tuple[str, ...]:
    """Commit that the catalog names its unreadable data files no more; returns their paths.

    This is the last resort, where a data file and its copy are both lost. The features that only these files named are
    missing then, and the next `featurize` encodes them again.
    """
    change, removed = changes.forget_unreadable(store.catalog), list[str]()

    def note_removed(before: Version) -> Change:
        made = change(before)
        removed[:] = made.removed
        return made

    store.catalog.commit(secrets.token_hex(16), "repair", "", note_removed)
    return tuple(map(data_file_path, removed))


def _each(repair_one: Callable[[FeatureStore, Finding], bool]) -> _Repairer:
    """A repairer that treats one finding after the other; one that fails does not stop the next."""

    def repair_each(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
        remaining = []
        for finding in findings:
            try:
                is_repaired = repair_one(store, finding)
            except (StoreError, FileNotFoundError):
                is_repaired = False
            remaining += [] if is_repaired else [finding]
        return remaining

    return repair_each


def _repair_store_file(store: FeatureStore, finding: Finding) -> bool:
    store.catalog.open()
    store.storage.replace(STORE_FILE, to_json(StoreFile(format=FORMAT)))
    return True


def _repair_data_file(store: FeatureStore, finding: Finding) -> bool:
    """Write a data file from its copy, or the copy from the file; the name says which of the two is whole."""
    path = finding.path.partition("/")[2]
    for source in (data_file_path(path), data_file_copy_path(path)):
        try:
            data = store.storage.read(source)
            check_data_file(source, data)
        except (Damaged, FileNotFoundError):
            continue
        store.storage.replace(finding.path, data)
        return True
    return False


def _repair_checksums(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    rows = rows_of_files(store.catalog, findings)

    def repair_one(store: FeatureStore, finding: Finding) -> bool:
        repair_checksums(store, finding, rows)
        return True

    return _each(repair_one)(store, findings)


def _repair_metadata(store: FeatureStore, finding: Finding) -> bool:
    spec = store.read_spec(finding.feature_set).spec
    for name, data in matrix_metadata(spec, shape_of(finding.path)).items():
        store.storage.replace(f"{finding.path}/{name}", data)
    return True


def _repair_gc_record(store: FeatureStore, finding: Finding) -> bool:
    """Write the record of a `gc` again, from the files that still exist.

    The new record never keeps a version whose files are gone. It may leave out a version that the `gc` had kept, if
    files of that version were lost in another way. A tagged version is kept as long as its rows can be read: then
    `verify` finds which of its features are lost, and `repair` can encode them again.
    """
    tags = store.tags.readable(store.catalog.newest())
    data_files = {tag.version: store.catalog.paths(tag.version) for tag in tags}
    readable = [
        version for version, paths in data_files.items() if all(read_rows(store, path) is not None for path in paths)
    ]
    record = GcRecord(time=datetime.now(UTC), since=oldest_complete_version(store), versions=tuple(sorted(readable)))
    store.storage.replace(finding.path, to_json(record.with_checksum()))
    return True


def _repair_features(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Repair shards and chunks as far as possible; a finding with lost features remains, they need an encoder."""
    rows = rows_of_files(store.catalog, findings)
    return _each(lambda store, finding: bool(repair_feature_file(store, finding, rows)) and not finding.keys)(
        store, findings
    )


def _needs_the_user(_store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Only the user has the manifest, and knows which version was tagged and with which options an encoder was made."""
    return findings


# In the order in which they run.
_REPAIRERS: dict[Kind, _Repairer] = {
    "log": _each(repair_entry),
    "journal": repair_copies,
    "checkpoint": repair_checkpoints,
    "store": _each(_repair_store_file),
    "catalog": _each(_repair_data_file),
    "copy": _each(_repair_data_file),
    "checksums": _repair_checksums,
    "metadata": _each(_repair_metadata),
    "collection": _each(_repair_gc_record),
    "tag": _needs_the_user,
    "manifest": _needs_the_user,
    "spec": _needs_the_user,
    "shard": _repair_features,
    "chunk": _repair_features,
    "keys": _repair_features,
}
