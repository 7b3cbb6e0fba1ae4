"""mend: put right what storage alone can: from a copy, from the shard itself, or from a name. No encoder is needed."""

import contextlib
import itertools
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from speechclip.errors import Damaged, StoreError
from speechclip.records import to_json
from speechclip.storage import Storage
from speechclip.store import changes
from speechclip.store.catalog import Change
from speechclip.store.data_files import check_data_file
from speechclip.store.feature_store import FeatureStore, StoreFile
from speechclip.store.journal import parse_entry
from speechclip.store.layout import (
    CATALOG,
    FORMAT,
    LAST_CHECKPOINT,
    STORE_FILE,
    checkpoint_path,
    data_file_copy_path,
    data_file_path,
    journal_path,
    log_path,
)
from speechclip.store.matrices import matrix_metadata, shape_of
from speechclip.store.tags import GcRecord
from speechclip.store.versions import Version
from speechclip.upkeep.findings import FOREIGN, Finding, Kind
from speechclip.upkeep.gc import find_rows
from speechclip.upkeep.live import oldest_whole
from speechclip.upkeep.restore import read_or_nothing, restore, restore_sums, rows_at
from speechclip.upkeep.verify_log import LOG, versions_in

# Mends the findings of one kind; those that remain.
_Mender = Callable[[FeatureStore, Sequence[Finding]], Sequence[Finding]]


def mend(store: FeatureStore, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Mend what can be mended so; the findings that remain, for the encoders or for nobody.

    The log comes first: all else is read through it.
    """
    remaining: list[Finding] = []
    for kind, mender in _MENDERS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if kind == "journal":
            # A copy of an entry that is lost itself would put it beyond doubt.
            lost = {_version(finding) for finding in remaining}
            remaining += [finding for finding in of_kind if _version(finding) in lost]
            of_kind = [finding for finding in of_kind if _version(finding) not in lost]
        remaining += mender(store, of_kind) if of_kind else []
    return tuple(remaining)


def forget_unreadable(store: FeatureStore) -> tuple[str, ...]:
    """Commit that the catalog's unreadable files are named no more; which these are.

    The last resort, where a file and its copy are both lost: what only they named is then missing, and encoded anew by
    the next `featurize`.
    """
    change, removed = changes.forget_unreadable(store.catalog), list[str]()

    def noted(before: Version) -> Change:
        made = change(before)
        removed[:] = made.removed
        return made

    store.catalog.commit(secrets.token_hex(16), "repair", "", noted)
    return tuple(map(data_file_path, removed))


def give_up_entry(store: FeatureStore, finding: Finding) -> tuple[str, ...]:
    """Delete a lost or foreign entry that no copy and no later commit vouches for, if the finding is one; what goes.

    The last resort, without which nothing can be read. What it committed is missing then, or named again. Its
    checkpoint goes with it, or Delta's client would go on by that; and so does the pointer, which `repair` makes anew.
    """
    if finding.kind != "log":
        return ()
    versions = _lost_with(store, finding)
    sums = [path for path in map(checkpoint_path, versions) if store.storage.size(path) is not None]
    store.storage.delete([*sums, LAST_CHECKPOINT] if sums else [])
    store.storage.delete([path(version) for version in versions for path in (log_path, journal_path)])
    return tuple(map(log_path, reversed(versions)))


def can_be_given_up(store: FeatureStore, finding: Finding) -> bool:
    """Whether `give_up_entry` would."""
    return finding.kind == "log" and bool(_lost_with(store, finding))


def _lost_with(store: FeatureStore, finding: Finding) -> Sequence[int]:
    """The versions from the newest down to that of the finding; none if a copy vouches for one of them."""
    top = _version(finding)
    while any(store.storage.size(path(top + 1)) is not None for path in (log_path, journal_path)):
        top += 1
    versions = range(top, _version(finding) - 1, -1)
    return () if any(_is_copied(store, version) for version in versions) else versions


def is_foreign(finding: Finding) -> bool:
    """Whether it is an entry of the log that another tool wrote."""
    return finding.problem == FOREIGN


def _is_copied(store: FeatureStore, version: int) -> bool:
    try:
        return store.catalog.journal.read(version) is not None
    except Damaged:
        return False


def _mend_format(store: FeatureStore, finding: Finding) -> bool:
    store.catalog.open()
    store.storage.replace(STORE_FILE, to_json(StoreFile(format=FORMAT)))
    return True


def _mend_log(store: FeatureStore, finding: Finding) -> bool:
    """An entry from its copy, if that says anything else."""
    copy = store.catalog.journal.read(_version(finding))
    if copy is None or read_or_nothing(store.storage, finding.path) == copy.text.encode():
        return False
    store.storage.replace(finding.path, copy.text.encode())
    return True


def _copy_entry(store: FeatureStore, finding: Finding) -> bool:
    store.storage.replace(finding.path, store.catalog.journal.copy_of(_version(finding)))
    return True


def _mend_journal(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Copies from the entries; with them went the checksums of checkpoints, which are made anew then."""
    are_summed = any(store.storage.size(checkpoint_path(_version(finding))) is not None for finding in findings)
    remaining = _each(_copy_entry)(store, findings)
    return _mend_checkpoints(store, findings) or remaining if are_summed else remaining


def _mend_checkpoints(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """All checkpoints anew, once for all findings, from the log's entries, none of which is ever deleted.

    Where an entry is damaged too, a checkpoint may be all that leads past it: then they stay as they were.
    """
    storage, journal = store.storage, store.catalog.journal
    if not all(storage.in_parallel(lambda version: _is_whole(storage, version), range(_num_versions(storage)))):
        return findings
    paths = [path for path in storage.list(f"{CATALOG}/_delta_log") if "checkpoint" in path]
    old = dict(zip(paths, storage.in_parallel(storage.read, paths), strict=True))
    storage.delete(paths)
    try:
        versions = range(store.catalog.newest() + 1)
        are_summed = storage.in_parallel(lambda version: _is_summed(store, version), versions)
        for version in itertools.compress(versions, are_summed):
            store.catalog.checkpoint(version)
            storage.replace(journal_path(version), journal.copy_of(version))
    except (StoreError, FileNotFoundError):
        for path, data in old.items():
            storage.replace(path, data)
        return findings
    return ()


def _is_whole(storage: Storage, version: int) -> bool:
    """Whether the log's own entry can be read."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        parse_entry(version, storage.read(log_path(version)))
        return True
    return False


def _num_versions(storage: Storage) -> int:
    return max(versions_in(storage, LOG, ".json"), default=-1) + 1


def _is_summed(store: FeatureStore, version: int) -> bool:
    """Whether a checkpoint was written with that entry, as its copy says."""
    with contextlib.suppress(Damaged):
        copy = store.catalog.journal.read(version)
        return copy is not None and bool(copy.checkpoint)
    return False


def _mend_part(store: FeatureStore, finding: Finding) -> bool:
    """A file of the catalog's rows from its copy, or the copy from the file: the name says which bytes are right."""
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


def _mend_checksums(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    rows = rows_at(store.catalog, findings)

    def mend_one(store: FeatureStore, finding: Finding) -> bool:
        restore_sums(store, finding, rows)
        return True

    return _each(mend_one)(store, findings)


def _mend_metadata(store: FeatureStore, finding: Finding) -> bool:
    spec = store.read_spec(finding.feature_set).spec
    for name, data in matrix_metadata(spec, shape_of(finding.path)).items():
        store.storage.replace(f"{finding.path}/{name}", data)
    return True


def _mend_collection(store: FeatureStore, finding: Finding) -> bool:
    """A record anew by what is still there, so that no version whose files are gone counts as kept.

    Some that are kept may count as freed where other files were lost too. A tag stays while the rows of its version can
    be read, for then what else is lost can be told, and mended.
    """
    tags = store.tags.readable(store.catalog.newest())
    parts = {tag.version: store.catalog.paths(tag.version) for tag in tags}
    readable = [version for version, named in parts.items() if all(find_rows(store, p) is not None for p in named)]
    made = GcRecord(time=datetime.now(UTC), since=oldest_whole(store), versions=tuple(sorted(readable)))
    store.storage.replace(finding.path, to_json(made.with_checksum()))
    return True


def _restore(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """As far as no feature is lost: those need an encoder."""
    rows = rows_at(store.catalog, findings)
    return _each(lambda store, finding: bool(restore(store, finding, rows)) and not finding.keys)(store, findings)


def _needs_the_user(_store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Who alone has the manifest, and knows what was tagged and what built an encoder."""
    return findings


def _each(mend_one: Callable[[FeatureStore, Finding], bool]) -> _Mender:
    """Mends one finding after the other, whatever becomes of the others."""

    def mend_each(store: FeatureStore, findings: Sequence[Finding]) -> Sequence[Finding]:
        remaining = []
        for finding in findings:
            try:
                is_mended = mend_one(store, finding)
            except (StoreError, FileNotFoundError):
                is_mended = False
            remaining += [] if is_mended else [finding]
        return remaining

    return mend_each


def _version(finding: Finding) -> int:
    return int(finding.path.rpartition("/")[2][:20])


# In the order in which they are mended.
_MENDERS: dict[Kind, _Mender] = {
    "log": _each(_mend_log),
    "journal": _mend_journal,
    "checkpoint": _mend_checkpoints,
    "store": _each(_mend_format),
    "catalog": _each(_mend_part),
    "copy": _each(_mend_part),
    "checksums": _mend_checksums,
    "metadata": _each(_mend_metadata),
    "collection": _each(_mend_collection),
    "tag": _needs_the_user,
    "manifest": _needs_the_user,
    "spec": _needs_the_user,
    "shard": _restore,
    "chunk": _restore,
    "keys": _restore,
}
