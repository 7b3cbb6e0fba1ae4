"""Tags: names for versions of the catalog. And the records of `gc`: which versions each of them left readable.

A tag must never name a version whose files `gc` deletes, although neither takes a lock. The two agree like this:

- `gc` writes an announcement, then reads the tags, and then creates its record, at a path that follows from the
  announcement. Only after that it deletes files.
- `tag` writes the tag, and then creates the record of each announced `gc` itself: one that keeps every version.
- Storage lets only one of the two create that record. If the tag was first, that `gc` stops. If `gc` was first, `tag`
  reads the record and fails if it does not keep the version.

A `tag` that is killed in between can leave a tag of a deleted version. `verify` reports it, and it stops nobody.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from speechclip.errors import Damaged, InvalidInput, NotStored
from speechclip.records import Checksummed, from_json, to_json
from speechclip.storage import Storage
from speechclip.store.layout import ANNOUNCEMENTS, COLLECTIONS, TAGS, announcement_path, collection_path, tag_path

_Kind = TypeVar("_Kind")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Tag(Checksummed, frozen=True, kw_only=True):
    """A name for a version. `gc` deletes no file of that version."""

    name: str
    version: int
    time: datetime


class GcRecord(Checksummed, frozen=True, kw_only=True):
    """Which versions one `gc` left readable: every version from `since` on, and those in `versions`."""

    time: datetime
    since: int
    versions: tuple[int, ...]

    def keeps(self, version: int) -> bool:
        """Whether that version stayed readable."""
        return version >= self.since or version in self.versions


class Tags:
    """The tags of one store, and the records of its `gc` runs."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def create(self, name: str, version: int) -> Tag:
        """Name a version.

        Raises `InvalidInput` if another version has that name, and `NotStored` if `gc` has deleted the version. To
        give a version the name that it already has is no error.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"tag {name!r}", "take a letter, then up to 63 letters, digits, dots, dashes, underscores"
            )
        if not self.storage.exists(tag_path(name)):
            # Write nothing if the version was deleted long ago. A `gc` that comes from now on is found below.
            self.check_readable(version)
        tag = Tag(name=name, version=version, time=datetime.now(UTC)).with_checksum()
        is_new = self.storage.create(tag_path(name), to_json(tag))
        if not is_new:
            tag = self.read(name)
            if tag.version != version:
                raise InvalidInput(
                    f"tag {name} names version {tag.version} already",
                    f"take another name, or delete that tag first: {_deletion(name)}",
                )
        try:
            self._stop_announced()
            self.check_readable(version)
        except NotStored:
            if is_new:
                self.delete(name)
            raise
        return tag

    def read(self, name: str) -> Tag:
        """The tag of that name. Raises `NotStored` if there is none."""
        # No tag can have any other name, and such a name must not become part of a path.
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                return self._read_tag(tag_path(name))
        known = ", ".join(tag.name for tag in self.readable()) or "none"
        raise NotStored(f"{self.storage.root}: no tag {name!r}", f"name one of these: {known}")

    def list(self) -> list[Tag]:
        """All tags, in the order of their names. Raises `Damaged` if one of them is damaged."""
        return [tag for path in self.storage.list(TAGS) if (tag := self._tag_at(path)) is not None]

    def readable(self, newest: int | None = None) -> Iterator[Tag]:
        """Yield, by name, the tags that are not damaged and whose version `gc` has not deleted.

        With `newest`, leave out the tags of later versions. The log entry of such a version is lost, or it was
        committed after the caller looked for the newest one.
        """
        damaged = {path for path, _ in self.damaged()}
        for path in self.storage.list(TAGS):
            tag = None if path in damaged else self._tag_at(path)
            if tag is not None and (newest is None or tag.version <= newest):
                yield tag

    def damaged(self) -> Iterator[tuple[str, Damaged]]:
        """Yield the damaged records of `gc`, the damaged tags, and the tags whose version `gc` has deleted."""
        records: list[GcRecord] = []
        for path in self.storage.list(COLLECTIONS):
            try:
                records.append(self._read(path, GcRecord))
            except Damaged as error:
                yield path, error
        for path in self.storage.list(TAGS):
            try:
                tag = self._tag_at(path)
            except Damaged as error:
                yield path, error
            else:
                if tag is not None and not all(record.keeps(tag.version) for record in records):
                    problem = f"the tag names catalog version {tag.version}, which `gc` had deleted"
                    yield path, Damaged(f"{path}: {problem}", f"delete the tag: {_deletion(tag.name)}")

    def delete(self, name: str) -> None:
        """Delete a tag. Its version stays until `gc` deletes its files."""
        self.storage.delete([tag_path(name)])

    def announce(self) -> str:
        """Announce a `gc`, so that a tag that is made meanwhile can stop it. Returns the path of the announcement."""
        path = announcement_path(datetime.now(UTC))
        self.storage.create(path, b"")
        return path

    def begin(self, announcement: str, record: GcRecord) -> bool:
        """Store the record of the announced `gc`. Returns False if a new tag has stopped that `gc`."""
        is_begun = self.storage.create(collection_path(announcement), to_json(record.with_checksum()))
        self.storage.delete([announcement])
        return is_begun

    def _stop_announced(self) -> None:
        """Stop each announced `gc`, which may have read the tags before the newest one was there."""
        for announcement in self.storage.list(ANNOUNCEMENTS):
            self.begin(announcement, GcRecord(time=datetime.now(UTC), since=0, versions=()))

    def deleted_by(self, version: int) -> GcRecord | None:
        """The record of a `gc` that did not keep this version. None if every `gc` kept it."""
        return next((record for record in self._records() if not record.keeps(version)), None)

    def since(self) -> int:
        """The oldest version that every `gc` kept. Older versions are readable only if they were tagged."""
        return max((record.since for record in self._records()), default=0)

    def check_readable(self, version: int) -> None:
        """Raise `NotStored` if `gc` has deleted files of that version."""
        record = self.deleted_by(version)
        if record is not None:
            raise NotStored(
                f"catalog version {version} was deleted by `gc` on {record.time:%Y-%m-%d %H:%M} UTC",
                "take a newer version, and tag versions that you want to keep",
            )

    def _tag_at(self, path: str) -> Tag | None:
        """The tag in that file. None if it was deleted after the caller listed it."""
        with contextlib.suppress(FileNotFoundError):
            return self._read_tag(path)
        return None

    def _read_tag(self, path: str) -> Tag:
        tag = self._read(path, Tag)
        if tag_path(tag.name) != path:
            raise Damaged(f"{path}: the file holds tag {tag.name}", _tag_again(path))
        return tag

    def _read(self, path: str, kind: type[_Kind]) -> _Kind:
        try:
            return from_json(self.storage.read(path), kind)
        except msgspec.DecodeError as error:
            advice = _tag_again(path) if kind is Tag else None
            raise Damaged(f"{path}: not a {kind.__name__} ({error})", advice) from None

    def _records(self) -> Iterator[GcRecord]:
        return (self._read(path, GcRecord) for path in self.storage.list(COLLECTIONS))


def _tag_again(path: str) -> str:
    name = path.rpartition("/")[2].removesuffix(".json")
    return f"delete the tag and tag the version again: {_deletion(name)}"


def _deletion(name: str) -> str:
    return f"`speechclip tag --delete {name}`"
