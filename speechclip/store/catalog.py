"""The catalog: a Delta Lake table with one row per (feature set, asset), stored or rejected, and where it lies.

Every commit names the exact version that it makes in each of its rows and carries its digest as a Delta transaction id.
So a commit whose answer was lost is recognised, and where two runs commit one key, every reader picks the same row
(`rows.entries`). It also states its root, a checksum over the names of all files that its version names, and these
names are checksums of the files: a reader that finds another set or other bytes says `Damaged`.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from speechclip.errors import Damaged, LostRace, NotStored, StoreError
from speechclip.storage import THREADS, Storage
from speechclip.storage.retry import one_line
from speechclip.store.grace import is_reusable
from speechclip.store.journal import FeatureSetChange, Journal, LogEntry, Note, checksum, parse_entry
from speechclip.store.layout import CATALOG, data_file_copy_path, data_file_path, log_path, partition
from speechclip.store.new_table import make_table
from speechclip.store.rows import SCHEMA, decode_data_file, encode_data_file

logger = logging.getLogger(__name__)

# The log is the history that pinned versions and tags rely on: nothing but our own `gc` cleans up behind our back.
CONFIGURATION: dict[str, str | None] = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
CHECKPOINT_EVERY = 50
MAX_ATTEMPTS = 100
# Versions whose files a catalog remembers.
REMEMBERED = 16
LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class NewFile:
    """Rows of one feature set, to be added as one file. Handed again after a lost race, it is not written again."""

    feature_set: str
    rows: pa.Table


@dataclass
class Change:
    """What a commit does to the files of the table: those to add, and the paths to remove."""

    added: list[NewFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changes: list[FeatureSetChange] = field(default_factory=list)


class Catalog:
    """The Delta table of a store, opened anew wherever its newest version is asked for."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.journal = Journal(storage)
        self._paths: dict[int, list[str]] = {}

    def create(self) -> None:
        """Make the empty table, unless it is there."""
        make_table(self.storage, CATALOG, SCHEMA, partition_by=["feature_set"], configuration=CONFIGURATION)

    def open(self, version: int | None = None) -> DeltaTable:
        """The table as it stood at that version, by default the newest.

        `NotStored` if there is no such version, `Damaged` if the log does not lead to what its commit stated.
        """
        try:
            table = self._load(version)
        except TableNotFoundError:
            if self.journal.has(0):
                raise Damaged(f"{self.storage.root}: the catalog's log is gone") from None
            raise NotStored(f"{self.storage.root}: no feature store here") from None
        except (DeltaError, OverflowError) as error:
            raise self._unopened(version, error) from None
        self._check(table, is_head=version is None)
        return table

    def newest(self) -> int:
        """The newest version."""
        return int(self.open().version())

    def rows(self, table: DeltaTable, feature_set: str) -> pa.Table:
        """All rows of one feature set in this version of the table; `Damaged` if one of its files is."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.rows_in(paths_of(table, feature_set)).values()])

    def rows_in(self, paths: Sequence[str]) -> dict[str, pa.Table]:
        """The rows in each of these files of the table; `Damaged` if one of them is."""
        found = {}
        for path, part in self.read_data_files(paths).items():
            if isinstance(part, Damaged):
                raise part
            found[path] = part
        return found

    def read_data_files(self, paths: Sequence[str]) -> dict[str, "pa.Table | Damaged"]:
        """The rows in each of these files of the table, or what is wrong with it.

        Not by the client's own readers. Its PyArrow dataset reads through Python buffers in Arrow's threads, and one
        that still lets go of them when the interpreter ends aborts the process (seen: 4 of 60 short runs on a loaded
        machine); its query engine holds Python's lock while it waits for the network.
        """
        return dict(zip(paths, self.storage.in_parallel(self._read_part, paths), strict=True))

    def each_data_file(self, paths: Sequence[str]) -> Iterator["tuple[str, pa.Table | Damaged]"]:
        """The same one after the other, with few of them in memory at a time."""
        for start in range(0, len(paths), THREADS):
            yield from self.read_data_files(paths[start : start + THREADS]).items()

    def paths(self, version: int) -> list[str]:
        """The files that a version names, as paths within the table; of late ones they are remembered."""
        known = self._paths.get(version)
        # An entry that was given up may have left its number to another.
        if known is not None and root_of(known) == self._stated_root(version):
            return known
        return paths_of(self.open(version))

    def entry(self, version: int) -> LogEntry:
        """What the log says of one version: from the journal's copy, or the log itself where there is none yet.

        `Damaged` if there is neither: whoever asks has seen the version named, or a later one.
        """
        copy = self.journal.read(version)
        try:
            text = self.storage.read(log_path(version)) if copy is None else copy.text.encode()
        except FileNotFoundError:
            raise Damaged(f"{log_path(version)}: the entry and its copy are gone") from None
        return parse_entry(version, text)

    def history(self, newest: int, oldest: int = 0) -> Iterator[LogEntry]:
        """What the log says of each version from `newest` down to `oldest`."""
        for start in range(newest, oldest - 1, -THREADS):
            yield from self.storage.in_parallel(self.entry, range(start, max(oldest - 1, start - THREADS), -1))

    def commit(
        self,
        digest: str,
        operation: str,
        job: str,
        change: Callable[[DeltaTable, int], Change],
        attempts: int = MAX_ATTEMPTS,
    ) -> int | None:
        """Apply `change(table, the version it will make)` in one atomic version, exactly once for one `digest`.

        Waits and asks for the change to the next version when another writer was first; `LostRace` after that many
        lost races. The version is one that holds the change, None where there was nothing to change.
        """
        written: dict[NewFile, tuple[str, int]] = {}
        for attempt in range(attempts):
            started = time.monotonic()
            table = self.open()
            if self._holds(table, digest):
                # Its answer was lost, or the disk was full right after it: then it has no copy yet.
                self.journal.copy_up_to(int(table.version()))
                return int(table.version())
            version = int(table.version()) + 1
            made = change(table, version)
            if not made.added and not made.removed:
                return None
            # Among many writers the race is often lost by now: then no rows are written in vain.
            is_free = self.storage.size(log_path(version)) is None
            if is_free and self._write(table, made, digest, operation, job, written):
                logger.info("%s: catalog version %d", operation, version)
                self._seal(version)
                return version
            logger.info("catalog version %d was taken by another writer, attempt %d", version, attempt + 1)
            # As long as some attempts take: whoever comes back sooner loses again, and slows the winner. Not longer: an
            # attempt takes minutes where it rewrites a whole set, or in bad weather.
            pause = (time.monotonic() - started) * 2 ** min(attempt, 4)
            time.sleep(random.uniform(0, min(pause, LONGEST_PAUSE_SECONDS)))
        raise LostRace(f"{self.storage.root}: {attempts} commits in a row lost to other writers")

    def _holds(self, table: DeltaTable, digest: str) -> bool:
        """Whether this version comes after the commit of that digest; the client looks through the log for it."""
        return self.storage.delta("reading the log", CATALOG, lambda *_: table.transaction_version(digest)) is not None

    def checkpoint(self, version: int) -> None:
        """Sum the log up to `version`, so that opening a long one takes few requests."""
        table = self._load(version)
        self.storage.delta("summing the log up", CATALOG, lambda *_: table.create_checkpoint())

    def _write(
        self,
        table: DeltaTable,
        made: Change,
        digest: str,
        operation: str,
        job: str,
        written: dict[NewFile, tuple[str, int]],
    ) -> bool:
        """One attempt, False where another writer was first; `written` are the files that those before have written."""
        added = {}
        for file in made.added:
            if file not in written:
                written[file] = self._write_part(file.feature_set, file.rows)
            path, size = written[file]
            added[path] = (file.feature_set, size, len(file.rows))
        removed = set(made.removed) - added.keys()
        names = (set(paths_of(table)) | added.keys()) - removed
        note = Note(operation=operation, job=job, root=root_of(names), changes=tuple(made.changes))
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            *(
                AddAction(path, size, {"feature_set": name}, now, True, json.dumps({"numRecords": count}))
                for path, (name, size, count) in added.items()
            ),
            *(RemoveAction(path, True, now) for path in removed),
        ]
        # No blind retry by the client: each row must state the version that it really got.
        properties = CommitProperties(
            max_commit_retries=0,
            app_transactions=[Transaction(digest, 1)],
            custom_metadata={"speechclip": msgspec.json.encode(note).decode()},
        )
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        try:
            self.storage.delta(
                "committing",
                CATALOG,
                lambda *_: table.create_write_transaction(
                    actions,
                    "append",
                    SCHEMA,
                    ["feature_set"],
                    commit_properties=properties,
                    post_commithook_properties=hooks,
                ),
            )
        except CommitFailedError:
            return False
        return True

    def _write_part(self, feature_set: str, rows: pa.Table) -> tuple[str, int]:
        """Put the rows and their copy on storage; the path within the table, and the bytes.

        What lies there and is damaged, or `gc` may soon free, is left alone: a file of the next generation is made.
        """
        for generation in range(100):
            name, data = encode_data_file(rows, generation)
            path = f"{partition(feature_set)}/{name}"
            if all(self._put(place, data) for place in (data_file_path(path), data_file_copy_path(path))):
                return path, len(data)
        raise Damaged(f"{data_file_path(partition(feature_set))}: a hundred damaged files of one content")

    def _put(self, path: str, data: bytes) -> bool:
        if self.storage.create(path, data):
            return True
        return is_reusable(self.storage, path) and self.storage.read(path) == data

    def _seal(self, version: int) -> None:
        """What follows a commit: a checkpoint now and then, and the journal's copy; after a kill the next makes up."""
        if version % CHECKPOINT_EVERY == 0:
            self.checkpoint(version)
        self.journal.copy_up_to(version)

    def _load(self, version: int | None) -> DeltaTable:
        return self.storage.delta(
            "opening the catalog",
            CATALOG,
            lambda uri, options: DeltaTable(uri, version=version, storage_options=options),
        )

    def _check(self, table: DeltaTable, *, is_head: bool) -> None:
        version, paths = int(table.version()), paths_of(table)
        if root_of(paths) != self._stated_root(version):
            raise Damaged(
                f"{self.storage.root}: the log of catalog version {version} does not lead to the files that its commit "
                "stated"
            )
        if is_head and self.journal.has(version + 1) and self.storage.size(log_path(version + 1)) is None:
            raise Damaged(f"{self.storage.root}: {log_path(version + 1)} was committed and is gone")
        others = [(number, known) for number, known in self._paths.items() if number != version]
        self._paths = {**dict(others[1 - REMEMBERED :]), version: paths}

    def _stated_root(self, version: int) -> str:
        """The root of that version: as its own commit stated it, or the last of ours before it."""
        for ours in range(version, 0, -1):
            entry = self.entry(ours)
            if entry.note is not None:
                return entry.note.root
            # Another tool's vacuum or change of a property names the same files.
            if entry.added or entry.removed:
                raise Damaged(
                    f"{self.storage.root}: {log_path(ours)} was written by another tool and changes the catalog",
                    "repair the store, and change its catalog by speechclip alone",
                )
        return root_of([])

    def _unopened(self, version: int | None, error: Exception) -> StoreError:
        """Why the table could not be opened: no such version, or a damaged log."""
        if version is not None and self.storage.size(log_path(version)) is None and not self.journal.has(version):
            return NotStored(f"{self.storage.root}: there is no catalog version {version}")
        return Damaged(f"{self.storage.root}: the catalog's log can't be read ({one_line(error)})")

    def _read_part(self, path: str) -> "pa.Table | Damaged":
        try:
            return decode_data_file(path, self.storage.read(data_file_path(path)))
        except FileNotFoundError:
            return Damaged(f"{data_file_path(path)}: the catalog's file is gone")
        except Damaged as error:
            return error


def paths_of(table: DeltaTable, feature_set: str | None = None) -> list[str]:
    """The files that this version names, of one feature set or all, as paths within the table."""
    paths = sorted("/".join(uri.rsplit("/", 2)[-2:]) for uri in table.file_uris())
    # By the names, which the root covers; the log's own word of a file's partition is not.
    return [path for path in paths if feature_set is None or path.startswith(f"{partition(feature_set)}/")]


def num_rows_of(table: DeltaTable) -> dict[str, int]:
    """How many rows each file holds that this version names, as the log says."""
    files = pa.table(table.get_add_actions()).select(["path", "num_records"]).to_pylist()
    return {unquote(file["path"]): file["num_records"] or 0 for file in files}


def feature_sets(table: DeltaTable) -> list[str]:
    """The fingerprints that this version names."""
    return sorted({path.partition("/")[0].partition("=")[2] for path in paths_of(table)})


def root_of(paths: Iterable[str]) -> str:
    """The checksum over the names of a version's files, which are checksums themselves."""
    return checksum("\n".join(sorted(paths)).encode())
