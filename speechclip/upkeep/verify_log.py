"""Verify the catalog's log: every entry against its copy in the journal, and every checkpoint against its checksum."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pyarrow as pa

from speechclip.errors import Damaged
from speechclip.storage import THREADS, Storage, parse_parquet
from speechclip.store.catalog import Catalog
from speechclip.store.journal import JournalEntry, LogEntry, checksum, parse_entry
from speechclip.store.layout import CATALOG, JOURNAL, LAST_CHECKPOINT, checkpoint_path, journal_path, log_path
from speechclip.store.versions import root_of
from speechclip.upkeep.findings import FOREIGN, Finding, finding_of

LOG = f"{CATALOG}/_delta_log"


class _Version(NamedTuple):
    """A log entry and its copy, each None if it is damaged or gone, with the finding that says so."""

    copy: JournalEntry | None
    copy_finding: Finding | None
    entry: LogEntry | None
    entry_finding: Finding | None


def verify_log(catalog: Catalog) -> Iterator[Finding]:
    """The findings of the log's entries, of their copies and of the checkpoints."""
    copied = versions_in(catalog.storage, JOURNAL, "")
    logged = versions_in(catalog.storage, LOG, ".json")
    newest_checkpoint, pointer_sum = -1, ""
    versions = _read_versions(catalog, max(copied | logged, default=-1) + 1)
    # The data files that the version names; None behind an entry that can't be read.
    names: set[str] | None = set()
    for version, (copy, copy_finding, entry, entry_finding) in enumerate(versions):
        names = (names - set(entry.removed)) | set(entry.added) if entry and names is not None else None
        if entry and names is not None and entry.note and root_of(names) != entry.note.root:
            problem = "the entry does not lead to the data files that it states"
            entry_finding = entry_finding or Finding(kind="log", path=log_path(version), problem=problem)
            names = None
        # The newest entries may have no copy yet: a job is about to copy its entry, or was killed before it did.
        if copy_finding and version <= max(copied, default=-1):
            yield copy_finding
        if entry_finding:
            yield entry_finding
        checkpoint = dict(copy.checkpoint) if copy else {}
        if checkpoint:
            newest_checkpoint, pointer_sum = version, checkpoint.pop(LAST_CHECKPOINT, "")
        yield from _verify_checksums(catalog.storage, checkpoint)
    # The pointer's checksum is that of the newest checkpoint whose entry has a readable copy. If there is a newer
    # checkpoint, the pointer may rightly name that one.
    if pointer_sum and newest_checkpoint >= max(versions_in(catalog.storage, LOG, ".checkpoint.parquet"), default=-1):
        for finding in _verify_checksums(catalog.storage, {LAST_CHECKPOINT: pointer_sum}):
            if not _names_older_checkpoint(catalog.storage):
                yield finding


def verify_newest(catalog: Catalog) -> Iterator[Finding]:
    """The finding if Delta's client can't read the log, although each entry and checkpoint matches its checksum.

    That happens if an entry without a copy is damaged, or a checkpoint that another tool has written.
    """
    try:
        catalog.open()
    except Damaged as error:
        newest = max(versions_in(catalog.storage, LOG, ".json"), default=0)
        # The client reads a checkpoint even if the entry beside it is gone.
        newest_checkpoint = max(versions_in(catalog.storage, LOG, ".checkpoint.parquet"), default=0)
        if catalog.journal.has(newest) or newest_checkpoint > newest:
            has_pointer = catalog.storage.size(LAST_CHECKPOINT) is not None
            yield finding_of(error, "checkpoint", LAST_CHECKPOINT if has_pointer else LOG)
        else:
            yield finding_of(error, "log", log_path(newest))


def versions_in(storage: Storage, folder: str, suffix: str) -> set[int]:
    """The versions in the names of the files in a folder that end in this suffix."""
    names = (path.rpartition("/")[2].partition(".") for path in storage.list(folder))
    return {int(stem) for stem, dot, rest in names if len(stem) == 20 and stem.isdecimal() and dot + rest == suffix}


def _read_versions(catalog: Catalog, count: int) -> Iterator[_Version]:
    """The first `count` versions, read several at a time."""

    def read(version: int) -> _Version:
        copy, copy_finding = _read_copy(catalog, version)
        return _Version(copy, copy_finding, *_read_entry(catalog.storage, version, copy))

    for start in range(0, count, THREADS):
        yield from catalog.storage.in_parallel(read, range(start, min(count, start + THREADS)))


def _read_copy(catalog: Catalog, version: int) -> tuple[JournalEntry | None, Finding | None]:
    path = journal_path(version)
    try:
        copy = catalog.journal.read(version)
    except Damaged as error:
        return None, finding_of(error, "journal", path)
    return copy, None if copy else Finding(kind="journal", path=path, problem="the copy is gone")


def _read_entry(storage: Storage, version: int, copy: JournalEntry | None) -> tuple[LogEntry | None, Finding | None]:
    path = log_path(version)
    try:
        data = storage.read(path)
        entry = parse_entry(version, data)
    except FileNotFoundError:
        return None, Finding(kind="log", path=path, problem="the entry is gone")
    except Damaged as error:
        return None, finding_of(error, "log", path)
    if copy and data != copy.text.encode():
        return None, Finding(kind="log", path=path, problem="the entry does not match the journal's copy")
    is_foreign = entry.note is None and (entry.added or entry.removed)
    return entry, Finding(kind="log", path=path, problem=FOREIGN) if is_foreign else None


def _verify_checksums(storage: Storage, checksums: dict[str, str]) -> Iterator[Finding]:
    """The findings of a checkpoint's files, from the checksums that its entry's copy holds."""
    for path, expected in checksums.items():
        try:
            problem = "" if checksum(storage.read(path)) == expected else "the file does not match its checksum"
        except FileNotFoundError:
            problem = "the file is gone"
        if problem:
            yield Finding(kind="checkpoint", path=path, problem=problem)


def _names_older_checkpoint(storage: Storage) -> bool:
    """Whether the pointer names an older checkpoint than the newest, and describes that one rightly.

    Such a pointer is no damage: two writers make checkpoints at the same time, and the slower one writes the pointer
    last. A reader that starts at the older checkpoint gets the same result.
    """
    try:
        said = msgspec.json.decode(storage.read(LAST_CHECKPOINT))
        data = storage.read(checkpoint_path(said["version"]))
        added = parse_parquet(data)["add"]
    except (FileNotFoundError, msgspec.DecodeError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return False
    counts = {"size": len(added), "sizeInBytes": len(data), "numOfAddFiles": len(added) - added.null_count}
    return bool(said == {"version": said["version"], **counts})
