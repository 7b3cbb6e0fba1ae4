"""The catalog: a Delta Lake table with one row for each stored or rejected asset of each feature set.

A commit writes two things beside its rows. Its digest, as a Delta transaction id: if the answer to a commit was lost,
the next attempt finds the digest and does not commit twice. And its root, a checksum over the names of all data files
of the new version: a reader that finds other files raises `Damaged`.

Each row states the version that added it. If two runs commit the same key, every reader picks the same row by it
(`rows.entries`).
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from speechclip.errors import Damaged, LostRace, NotStored, StoreError
from speechclip.storage import THREADS, Storage
from speechclip.storage.faults import one_line
from speechclip.store.data_files import DataFiles
from speechclip.store.journal import FeatureSetChange, Journal, LogEntry, Note, parse_entry
from speechclip.store.layout import CATALOG, log_path
from speechclip.store.new_table import make_table
from speechclip.store.rows import SCHEMA
from speechclip.store.versions import Version, root_of

logger = logging.getLogger(__name__)

# Old versions and tags need the whole log. So Delta's client must not clean it up; only our own `gc` deletes files.
CONFIGURATION: dict[str, str | None] = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
CHECKPOINT_EVERY = 50
MAX_ATTEMPTS = 100
# The file names of so many versions stay in memory.
REMEMBERED = 16
LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class NewFile:
    """Rows of one feature set that become one data file. If a commit loses a race, the file is not written again."""

    feature_set: str
    rows: pa.Table


@dataclass
class Change:
    """What a commit does: data files to add, paths of data files to remove, and the summary for the log."""

    added: list[NewFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changes: list[FeatureSetChange] = field(default_factory=list)


# Makes the change for a commit that goes from this version to the next. It is called again after a lost race.
MakeChange = Callable[[Version], Change]


@dataclass(frozen=True)
class _Commit:
    """A commit and the data files that it has written so far, with their paths and sizes."""

    digest: str
    operation: str
    job: str
    written: dict[NewFile, tuple[str, int]] = field(default_factory=dict)


class Catalog:
    """The catalog of one store. Each question about the newest version opens the table again."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.journal = Journal(storage)
        self.data_files = DataFiles(storage)
        self._paths: dict[int, list[str]] = {}

    def create(self) -> None:
        """Make the empty table, unless it is there."""
        make_table(self.storage, CATALOG, SCHEMA, partition_by=["feature_set"], configuration=CONFIGURATION)

    def open(self, number: int | None = None) -> Version:
        """The version of that number, by default the newest.

        Raises `NotStored` if there is no such version, and `Damaged` if the log does not lead to the root that its
        commit stated.
        """
        try:
            version = self._load(number)
        except TableNotFoundError:
            if self.journal.has(0):
                raise Damaged(f"{self.storage.root}: the catalog's log is gone") from None
            raise NotStored(f"{self.storage.root}: no feature store here") from None
        except (DeltaError, OverflowError) as error:
            raise self._unopened(number, error) from None
        self._check(version, is_newest=number is None)
        return version

    def newest(self) -> int:
        """The number of the newest version."""
        return self.open().number

    def rows(self, version: Version, feature_set: str) -> pa.Table:
        """All rows of one feature set in a version. Raises `Damaged` if one of its data files is damaged."""
        tables = self.data_files.rows(version.paths(feature_set)).values()
        return pa.concat_tables([SCHEMA.empty_table(), *tables])

    def paths(self, number: int) -> list[str]:
        """The data files that a version names, as paths within the table. Recent answers are remembered."""
        known = self._paths.get(number)
        # If `repair --forget` has deleted a log entry, another commit may have taken its number.
        if known is not None and root_of(known) == self._stated_root(number):
            return known
        return self.open(number).all_paths

    def entry(self, number: int) -> LogEntry:
        """What the log says of one version that exists.

        It is read from the journal, or from the log itself if the journal has no copy yet. Raises `Damaged` if neither
        has it.
        """
        copied = self.journal.read(number)
        try:
            text = self.storage.read(log_path(number)) if copied is None else copied.text.encode()
        except FileNotFoundError:
            raise Damaged(f"{log_path(number)}: the entry and its copy are gone") from None
        return parse_entry(number, text)

    def history(self, newest: int, oldest: int = 0) -> Iterator[LogEntry]:
        """Yield what the log says of each version, from `newest` down to `oldest`."""
        for start in range(newest, oldest - 1, -THREADS):
            yield from self.storage.in_parallel(self.entry, range(start, max(oldest - 1, start - THREADS), -1))

    def commit(
        self, digest: str, operation: str, job: str, make: MakeChange, attempts: int = MAX_ATTEMPTS
    ) -> int | None:
        """Apply a change in one atomic version, exactly once for one `digest`.

        Returns a version that holds the change, or None if there was nothing to change. If another writer was first,
        waits and asks `make` for the change to the next version. Raises `LostRace` after so many attempts.
        """
        commit = _Commit(digest, operation, job)
        for attempt in range(attempts):
            started = time.monotonic()
            before = self.open()
            if self._holds(before, digest):
                # The answer to an earlier attempt was lost. It may also have failed to copy its entry.
                self.journal.copy_up_to(before.number)
                return before.number
            number = before.number + 1
            change = make(before)
            if not change.added and not change.removed:
                return None
            # Among many writers the race is often lost by now. Then do not write the rows.
            is_free = self.storage.size(log_path(number)) is None
            if is_free and self._write(before, change, commit):
                logger.info("%s: catalog version %d", operation, number)
                self._after_commit(number)
                return number
            logger.info("catalog version %d was taken by another writer, attempt %d", number, attempt + 1)
            # Wait about as long as some attempts take. Who comes back sooner loses again and slows the winner. An
            # attempt can take minutes, so the pause has an upper limit.
            pause = (time.monotonic() - started) * 2 ** min(attempt, 4)
            time.sleep(random.uniform(0, min(pause, LONGEST_PAUSE_SECONDS)))
        raise LostRace(f"{self.storage.root}: {attempts} commits in a row lost to other writers")

    def checkpoint(self, number: int) -> None:
        """Write Delta's checkpoint of a version. With it a long log is opened in few requests."""
        table = self._load(number).table
        self.storage.delta("writing a checkpoint", CATALOG, lambda *_: table.create_checkpoint())

    def _holds(self, version: Version, digest: str) -> bool:
        """Whether a commit of that digest is part of this version. Delta's client searches the log for it."""
        table = version.table
        return self.storage.delta("reading the log", CATALOG, lambda *_: table.transaction_version(digest)) is not None

    def _write(self, before: Version, change: Change, commit: _Commit) -> bool:
        """Make one attempt to commit. Returns False if another writer was first."""
        added = {}
        for file in change.added:
            if file not in commit.written:
                commit.written[file] = self.data_files.write(file.feature_set, file.rows)
            path, size = commit.written[file]
            added[path] = (file.feature_set, size, len(file.rows))
        removed = set(change.removed) - added.keys()
        root = root_of((set(before.all_paths) | added.keys()) - removed)
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            *(
                AddAction(path, size, {"feature_set": name}, now, True, json.dumps({"numRecords": count}))
                for path, (name, size, count) in added.items()
            ),
            *(RemoveAction(path, True, now) for path in removed),
        ]
        note = Note(operation=commit.operation, job=commit.job, root=root, changes=tuple(change.changes))
        try:
            self._write_entry(before.table, actions, commit.digest, note)
        except CommitFailedError:
            return False
        return True

    def _write_entry(self, table: DeltaTable, actions: list[AddAction | RemoveAction], digest: str, note: Note) -> None:
        # The client must not retry by itself, because each row states the version that it is committed in.
        properties = CommitProperties(
            max_commit_retries=0,
            app_transactions=[Transaction(digest, 1)],
            custom_metadata={"speechclip": msgspec.json.encode(note).decode()},
        )
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
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

    def _after_commit(self, number: int) -> None:
        """Write a checkpoint now and then, and copy the entry. If a writer is killed before, the next copies it."""
        if number % CHECKPOINT_EVERY == 0:
            self.checkpoint(number)
        self.journal.copy_up_to(number)

    def _load(self, number: int | None) -> Version:
        table = self.storage.delta(
            "opening the catalog",
            CATALOG,
            lambda uri, options: DeltaTable(uri, version=number, storage_options=options),
        )
        return Version(table)

    def _check(self, version: Version, *, is_newest: bool) -> None:
        number, root = version.number, self.storage.root
        if root_of(version.all_paths) != self._stated_root(number):
            raise Damaged(
                f"{root}: the log of catalog version {number} does not lead to the files that its commit stated"
            )
        if is_newest and self.journal.has(number + 1) and self.storage.size(log_path(number + 1)) is None:
            raise Damaged(f"{root}: {log_path(number + 1)} was committed and is gone")
        others = [(other, paths) for other, paths in self._paths.items() if other != number]
        self._paths = {**dict(others[1 - REMEMBERED :]), number: version.all_paths}

    def _stated_root(self, number: int) -> str:
        """The root of a version. If another tool made that version, the root of our last one before it."""
        for ours in range(number, 0, -1):
            entry = self.entry(ours)
            if entry.note is not None:
                return entry.note.root
            # Another tool may vacuum the table or change a property. Then the version names the same files.
            if entry.added or entry.removed:
                raise Damaged(
                    f"{self.storage.root}: {log_path(ours)} was written by another tool and changes the catalog",
                    f"{Damaged.standard_advice}, and change the catalog by speechclip alone",
                )
        return root_of([])

    def _unopened(self, number: int | None, error: Exception) -> StoreError:
        """Why the table could not be opened: there is no such version, or the log is damaged."""
        if number is not None and self.storage.size(log_path(number)) is None and not self.journal.has(number):
            return NotStored(f"{self.storage.root}: there is no catalog version {number}")
        return Damaged(f"{self.storage.root}: the catalog's log can't be read ({one_line(error)})")
