"""The journal: a second copy, with a checksum, of each entry of the catalog's log and of each data file.

Delta Lake keeps no checksum of its log. The journal shows when an entry is damaged or lost, and restores it byte by
byte. An entry is copied right after its commit. If the writer is killed before, the next writer copies it.
"""

import contextlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import xxhash

from speechclip.errors import Damaged
from speechclip.records import Record, from_json
from speechclip.storage import Storage
from speechclip.store.layout import LAST_CHECKPOINT, checkpoint_path, journal_path, log_path


class FeatureSetChange(Record, frozen=True):
    """What one commit did to one feature set: numbers of rows, and what the encoding took."""

    feature_set: str
    stored: int = 0
    rejected: int = 0
    removed: int = 0
    encoded: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Note(Record, frozen=True):
    """What a commit states in its log entry. `root` is the checksum over the names of all data files of its version."""

    operation: str
    job: str = msgspec.field(name="run")
    root: str
    changes: tuple[FeatureSetChange, ...] = msgspec.field(default=(), name="parts")


class LogEntry(Record, frozen=True):
    """What the log says of one version: when and by what it was made, and which data files it added and removed."""

    version: int
    time: datetime
    note: Note | None
    added: tuple[str, ...]
    removed: tuple[str, ...]


class _Add(msgspec.Struct, rename="camel"):
    """The fields that Delta Lake's protocol requires for an added file. Without them its client can't read an entry."""

    path: str
    partition_values: dict[str, str | None]
    size: int
    modification_time: int
    data_change: bool


class _Remove(msgspec.Struct, rename="camel"):
    """The fields that the protocol requires for a removed file."""

    path: str
    data_change: bool


class _Action(msgspec.Struct, rename="camel"):
    """One line of an entry, as far as we use it. Delta's client reads other lines, such as the protocol's version."""

    add: _Add | None = None
    remove: _Remove | None = None
    commit_info: dict[str, Any] | None = None


class JournalEntry(Record, frozen=True):
    """The copy of one log entry, and the checksums of the checkpoint files that were written with it.

    `version` is None in the oldest copies, which do not state it.
    """

    text: str
    checkpoint: dict[str, str] = {}
    version: int | None = None


def checksum(data: bytes) -> str:
    """The xxh3-64 of the bytes in 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def parse_entry(version: int, text: bytes) -> LogEntry:
    """What the text of a log entry says. Raises `Damaged` if it is not a log entry."""
    try:
        actions = [msgspec.json.decode(line, type=_Action) for line in text.splitlines()]
        commit = next(action.commit_info for action in actions if action.commit_info is not None)
        note = msgspec.json.decode(commit["speechclip"], type=Note) if "speechclip" in commit else None
        return LogEntry(
            version=version,
            time=datetime.fromtimestamp(commit["timestamp"] / 1000, UTC),
            note=note,
            added=tuple(action.add.path for action in actions if action.add is not None),
            removed=tuple(action.remove.path for action in actions if action.remove is not None),
        )
    except (msgspec.DecodeError, StopIteration, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{log_path(version)}: not a log entry ({error})") from None


class Journal:
    """The copies of the log entries of one store, under `journal/`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def read(self, version: int) -> JournalEntry | None:
        """The copy of a version's entry, or None if there is none yet. Raises `Damaged` if the copy is damaged."""
        try:
            found, _, body = self.storage.read(journal_path(version)).partition(b"\n")
        except FileNotFoundError:
            return None
        if found.decode("ascii", "replace") != checksum(body):
            raise Damaged(f"{journal_path(version)}: the copy does not match its checksum")
        entry = from_json(body, JournalEntry)
        if entry.version not in (None, version):
            raise Damaged(f"{journal_path(version)}: the copy of version {entry.version}")
        return entry

    def has(self, version: int) -> bool:
        """Whether there is a copy of that version's entry, damaged or not."""
        return self.storage.size(journal_path(version)) is not None

    def copy_up_to(self, version: int) -> None:
        """Copy each entry up to `version` that has no copy yet. The oldest comes first, so that copies have no gap."""
        first = version
        while first > 0 and not self.has(first - 1):
            first -= 1
        for uncopied in range(first, version + 1):
            self.storage.create(journal_path(uncopied), self.copy_of(uncopied))

    def copy_of(self, version: int) -> bytes:
        """The bytes of the copy, made from the entry that is in the log now. Raises `Damaged` if that is damaged."""
        text = self.storage.read(log_path(version))
        parse_entry(version, text)
        sums = {}
        if self.storage.size(checkpoint_path(version)) is not None:
            sums[checkpoint_path(version)] = checksum(self.storage.read(checkpoint_path(version)))
            # A writer that was killed after the checkpoint has not written the pointer to it.
            with contextlib.suppress(FileNotFoundError):
                sums[LAST_CHECKPOINT] = checksum(self.storage.read(LAST_CHECKPOINT))
        body = msgspec.json.encode(JournalEntry(text=text.decode(), checkpoint=sums, version=version))
        return checksum(body).encode() + b"\n" + body
