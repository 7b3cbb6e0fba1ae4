"""The journal: a checksummed copy of every entry of the catalog's log, made right after its commit, and of its rows.

Delta Lake keeps no checksum of its log. With the copy a damaged or lost entry is noticed and put back byte by byte.
A writer killed between its commit and the copy leaves the copying to the next one.
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
    """What one commit did to one feature set."""

    feature_set: str
    stored: int = 0
    rejected: int = 0
    removed: int = 0
    encoded: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Note(Record, frozen=True):
    """What a commit says of itself. `root` is the checksum of the names of all files that its version names."""

    operation: str
    job: str = msgspec.field(name="run")
    root: str
    changes: tuple[FeatureSetChange, ...] = msgspec.field(default=(), name="parts")


class LogEntry(Record, frozen=True):
    """One version of the catalog: when it was made, by what, and which files it added and removed."""

    version: int
    time: datetime
    note: Note | None
    added: tuple[str, ...]
    removed: tuple[str, ...]


class _Add(msgspec.Struct, rename="camel"):
    """What Delta Lake's protocol demands of a file that is added; its client can't read an entry without."""

    path: str
    partition_values: dict[str, str | None]
    size: int
    modification_time: int
    data_change: bool


class _Remove(msgspec.Struct, rename="camel"):
    """The same of one that is removed."""

    path: str
    data_change: bool


class _Action(msgspec.Struct, rename="camel"):
    """One line of an entry; others, such as the protocol's version, are left to the client."""

    add: _Add | None = None
    remove: _Remove | None = None
    commit_info: dict[str, Any] | None = None


class JournalEntry(Record, frozen=True):
    """The copy of one entry's text, and the checksums of the checkpoint files that were written with it.

    The oldest copies do not say of which version they are.
    """

    text: str
    checkpoint: dict[str, str] = {}
    version: int | None = None


def checksum(data: bytes) -> str:
    """The xxh3-64 of the bytes in 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def parse_entry(version: int, text: bytes) -> LogEntry:
    """What an entry of the log says; `Damaged` if it is no such entry."""
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
        raise Damaged(f"{log_path(version)}: no entry of a log ({error})") from None


class Journal:
    """The copies under `journal/` of one store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def read(self, version: int) -> JournalEntry | None:
        """The copy of that version's entry, None where there is none yet; `Damaged` if its checksum denies it."""
        try:
            found, _, body = self.storage.read(journal_path(version)).partition(b"\n")
        except FileNotFoundError:
            return None
        if found.decode("ascii", "replace") != checksum(body):
            raise Damaged(f"{journal_path(version)}: the copy does not match its checksum")
        copy = from_json(body, JournalEntry)
        if copy.version not in (None, version):
            raise Damaged(f"{journal_path(version)}: the copy of version {copy.version}")
        return copy

    def has(self, version: int) -> bool:
        """Whether that version's entry was copied, whatever has become of the copy."""
        return self.storage.size(journal_path(version)) is not None

    def copy_up_to(self, version: int) -> None:
        """Copy the entries up to `version` that have no copy yet, oldest first: below a copy there is no gap."""
        first = version
        while first > 0 and not self.has(first - 1):
            first -= 1
        for unsealed in range(first, version + 1):
            self.storage.create(journal_path(unsealed), self.copy_of(unsealed))

    def copy_of(self, version: int) -> bytes:
        """The copy, made from what lies in the log now."""
        text = self.storage.read(log_path(version))
        parse_entry(version, text)
        sums = {}
        if self.storage.size(checkpoint_path(version)) is not None:
            sums[checkpoint_path(version)] = checksum(self.storage.read(checkpoint_path(version)))
            # Whoever was killed between the two has left no pointer.
            with contextlib.suppress(FileNotFoundError):
                sums[LAST_CHECKPOINT] = checksum(self.storage.read(LAST_CHECKPOINT))
        body = msgspec.json.encode(JournalEntry(text=text.decode(), checkpoint=sums, version=version))
        return checksum(body).encode() + b"\n" + body
