"""The catalog's log against the journal: every entry, every checkpoint, and each copy against its own checksum."""

from collections.abc import Iterator

import msgspec
import pyarrow as pa

from speechclip.errors import Damaged
from speechclip.storage import THREADS, Storage, parse_parquet
from speechclip.store.catalog import Catalog
from speechclip.store.journal import JournalEntry, LogEntry, checksum, parse_entry
from speechclip.store.layout import CATALOG, JOURNAL, LAST_CHECKPOINT, checkpoint_path, journal_path, log_path
from speechclip.store.versions import root_of
from speechclip.upkeep.findings import FOREIGN, Finding

LOG = f"{CATALOG}/_delta_log"


def verify_log(catalog: Catalog) -> Iterator[Finding]:
    """What is damaged or gone of the log, its checkpoints and the journal."""
    copied = versions_in(catalog.storage, JOURNAL, "")
    logged = versions_in(catalog.storage, LOG, ".json")
    newest_checkpoint, last_sum = -1, ""
    entries = _read_entries(catalog, max(copied | logged, default=-1) + 1)
    names: set[str] | None = set()
    for version, (copy, copy_problem, entry, log_problem) in enumerate(entries):
        # What the version names, as long as all entries up to it can be read.
        names = (names - set(entry.removed)) | set(entry.added) if entry and names is not None else None
        if entry and names is not None and entry.note and root_of(names) != entry.note.root:
            log_problem, names = log_problem or "the entry does not lead to the files that it states", None
        if copy_problem and version <= max(copied, default=-1):
            # Above the newest copy there may be none yet: a run made the entry and was killed, or is about to copy it.
            yield Finding(kind="journal", path=journal_path(version), problem=copy_problem)
        if log_problem:
            yield Finding(kind="log", path=log_path(version), problem=log_problem)
        checkpoint = dict(copy.checkpoint) if copy else {}
        if checkpoint:
            newest_checkpoint, last_sum = version, checkpoint.pop(LAST_CHECKPOINT, "")
        yield from _verify_sums(catalog.storage, checkpoint)
    # It points to the newest checkpoint, which may have no copy that could be read, or no copy yet.
    if last_sum and newest_checkpoint >= max(versions_in(catalog.storage, LOG, ".checkpoint.parquet"), default=-1):
        for finding in _verify_sums(catalog.storage, {LAST_CHECKPOINT: last_sum}):
            if not _is_overtaken(catalog.storage):
                yield finding


def _read_entries(catalog: Catalog, count: int) -> Iterator[tuple[JournalEntry | None, str, LogEntry | None, str]]:
    """Each of the first entries: its copy and what is wrong with that, itself and the same; read side by side."""

    def read(version: int) -> tuple[JournalEntry | None, str, LogEntry | None, str]:
        copy, problem = _read_copy(catalog, version)
        return copy, problem, *_read_entry(catalog.storage, version, copy)

    for start in range(0, count, THREADS):
        yield from catalog.storage.in_parallel(read, range(start, min(count, start + THREADS)))


def _read_copy(catalog: Catalog, version: int) -> tuple[JournalEntry | None, str]:
    try:
        copy = catalog.journal.read(version)
    except Damaged as error:
        return None, str(error)
    return copy, "" if copy else "the copy is gone"


def _read_entry(storage: Storage, version: int, copy: JournalEntry | None) -> tuple[LogEntry | None, str]:
    try:
        data = storage.read(log_path(version))
        entry = parse_entry(version, data)
    except FileNotFoundError:
        return None, "the entry is gone"
    except Damaged as error:
        return None, str(error)
    if copy and data != copy.text.encode():
        return None, "the entry does not match the journal's copy"
    is_foreign = entry.note is None and (entry.added or entry.removed)
    return entry, FOREIGN if is_foreign else ""


def _verify_sums(storage: Storage, sums: dict[str, str]) -> Iterator[Finding]:
    for path, expected in sums.items():
        try:
            problem = "" if checksum(storage.read(path)) == expected else "the file does not match its checksum"
        except FileNotFoundError:
            problem = "the file is gone"
        if problem:
            yield Finding(kind="checkpoint", path=path, problem=problem)


def _is_overtaken(storage: Storage) -> bool:
    """Whether the pointer names an older checkpoint, and says the truth of it: that serves as well.

    Two writers make their checkpoints at the same time, and the slower may be the last to write the pointer.
    """
    try:
        said = msgspec.json.decode(storage.read(LAST_CHECKPOINT))
        data = storage.read(checkpoint_path(said["version"]))
        added = parse_parquet(data)["add"]
    except (FileNotFoundError, msgspec.DecodeError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return False
    counts = {"size": len(added), "sizeInBytes": len(data), "numOfAddFiles": len(added) - added.null_count}
    return bool(said == {"version": said["version"], **counts})


def versions_in(storage: Storage, folder: str, suffix: str) -> set[int]:
    """The versions whose files of that kind lie in the folder."""
    names = (path.rpartition("/")[2].partition(".") for path in storage.list(folder))
    return {int(stem) for stem, dot, rest in names if len(stem) == 20 and stem.isdecimal() and dot + rest == suffix}


def verify_newest(catalog: Catalog) -> Iterator[Finding]:
    """That Delta's client reads the log: of an entry without a copy, or another tool's checkpoint, only it can tell."""
    try:
        catalog.open()
    except Damaged as error:
        newest = max(versions_in(catalog.storage, LOG, ".json"), default=0)
        # The client goes by a checkpoint, also of an entry that is no more.
        newest_checkpoint = max(versions_in(catalog.storage, LOG, ".checkpoint.parquet"), default=0)
        if catalog.journal.has(newest) or newest_checkpoint > newest:
            is_there = catalog.storage.size(LAST_CHECKPOINT) is not None
            yield Finding(kind="checkpoint", path=LAST_CHECKPOINT if is_there else LOG, problem=str(error))
        else:
            yield Finding(kind="log", path=log_path(newest), problem=str(error))
