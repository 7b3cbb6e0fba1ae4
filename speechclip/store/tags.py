"""Tags: names that people give to versions of the catalog, and the record of which versions each `gc` left readable.

Neither takes a lock. A `gc` announces itself, looks at the tags, and then creates its record; a tag is written first,
and whoever made it then stops what is announced, by creating the record in its stead, one that keeps every version.
Only one of the two can create it: no tag is ever acknowledged that names a freed version, wherever either is killed.
A `tag` that is killed before it is acknowledged can leave one: it is told, and stops nobody.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from speechclip.errors import Damaged, InvalidInput, NotStored
from speechclip.records import Sealed, from_json, to_json
from speechclip.storage import Storage
from speechclip.store.layout import ANNOUNCEMENTS, COLLECTIONS, TAGS, announcement_path, collection_path, tag_path

_Kind = TypeVar("_Kind")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Tag(Sealed, frozen=True, kw_only=True):
    """A name for a version; what it names is never freed."""

    name: str
    version: int
    time: datetime


class GcRecord(Sealed, frozen=True, kw_only=True):
    """What one `gc` set out to keep: every version from `since` on, and those in `versions`."""

    time: datetime
    since: int
    versions: tuple[int, ...]

    def keeps(self, version: int) -> bool:
        """Whether that version stayed readable."""
        return version >= self.since or version in self.versions


class Tags:
    """The tags and collections of one store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def create(self, name: str, version: int) -> Tag:
        """Name a version; `InvalidInput` if the name is taken by another, `NotStored` if `gc` has freed the version."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"tag {name!r}: take a letter, then up to 63 letters, digits, dots, dashes, underscores")
        if not self.storage.exists(tag_path(name)):
            # Nothing is written for what was freed long ago; what is freed from now on is found below.
            self.check_kept(version)
        tag = Tag(name=name, version=version, time=datetime.now(UTC)).seal()
        is_new = self.storage.create(tag_path(name), to_json(tag))
        if not is_new:
            tag = self.read(name)
            if tag.version != version:
                raise InvalidInput(
                    f"tag {name} names version {tag.version} already; take another name, or first "
                    f"`speechclip tag --delete {name}`"
                )
        try:
            self._stop_announced()
            self.check_kept(version)
        except NotStored:
            if is_new:
                self.delete(name)
            raise
        return tag

    def read(self, name: str) -> Tag:
        """The tag of that name; `NotStored` if there is none."""
        # No other name can have been created, and a path must not be made of it.
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                return self._read_tag(tag_path(name))
        known = ", ".join(tag.name for tag in self.readable()) or "none"
        raise NotStored(f"{self.storage.root}: no tag {name!r}; there are: {known}")

    def list(self) -> list[Tag]:
        """All tags, by name; `Damaged` if one of them is."""
        return [tag for path in self.storage.list(TAGS) if (tag := self._there(path)) is not None]

    def readable(self, newest: int | None = None) -> Iterator[Tag]:
        """The tags that are whole and name what no collection has freed, by name.

        With `newest`, none above it: its version is lost, or was committed after one looked.
        """
        void = {path for path, _ in self.damaged()}
        for path in self.storage.list(TAGS):
            tag = None if path in void else self._there(path)
            if tag is not None and (newest is None or tag.version <= newest):
                yield tag

    def damaged(self) -> Iterator[tuple[str, Damaged]]:
        """The files that should hold the record of a collection, or a tag of a version that is there, and do not."""
        collections: list[GcRecord] = []
        for path in self.storage.list(COLLECTIONS):
            try:
                collections.append(self._read(path, GcRecord))
            except Damaged as error:
                yield path, error
        for path in self.storage.list(TAGS):
            try:
                tag = self._there(path)
            except Damaged as error:
                yield path, error
            else:
                if tag is not None and not all(found.keeps(tag.version) for found in collections):
                    yield path, Damaged(f"{path}: {_void_sentence(tag)}")

    def delete(self, name: str) -> None:
        """Take a name away; the version stays until `gc` frees it."""
        self.storage.delete([tag_path(name)])

    def announce(self) -> str:
        """Say that a `gc` is about to begin, so that whoever makes a tag stops it; the path of the announcement."""
        path = announcement_path(datetime.now(UTC))
        self.storage.create(path, b"")
        return path

    def begin(self, announcement: str, collection: GcRecord) -> bool:
        """Record what the announced `gc` keeps, so that it may free the rest; False if a tag came and stopped it."""
        is_begun = self.storage.create(collection_path(announcement), to_json(collection.seal()))
        self.storage.delete([announcement])
        return is_begun

    def _stop_announced(self) -> None:
        """Let no `gc` begin that may not have seen a tag that is there now."""
        for announcement in self.storage.list(ANNOUNCEMENTS):
            self.begin(announcement, GcRecord(time=datetime.now(UTC), since=0, versions=()))

    def freed(self, version: int) -> GcRecord | None:
        """The collection that did not keep this version, if there was one."""
        return next((found for found in self._collections() if not found.keeps(version)), None)

    def since(self) -> int:
        """The oldest version that no collection has freed, those aside that were tagged then."""
        return max((found.since for found in self._collections()), default=0)

    def check_kept(self, version: int) -> None:
        """`NotStored` if `gc` has freed what that version named."""
        freed = self.freed(version)
        if freed is not None:
            raise NotStored(_freed_sentence(version, freed))

    def _there(self, path: str) -> Tag | None:
        """The tag in that file, None where it was deleted since the listing."""
        with contextlib.suppress(FileNotFoundError):
            return self._read_tag(path)
        return None

    def _read_tag(self, path: str) -> Tag:
        tag = self._read(path, Tag)
        if tag_path(tag.name) != path:
            raise Damaged(f"{path}: it holds tag {tag.name}; {_tag_again(path)}")
        return tag

    def _read(self, path: str, kind: type[_Kind]) -> _Kind:
        try:
            return from_json(self.storage.read(path), kind)
        except msgspec.DecodeError as error:
            ask = _tag_again(path) if kind is Tag else "run `speechclip repair`"
            raise Damaged(f"{path}: no {kind.__name__.lower()} ({error}); {ask}") from None

    def _collections(self) -> Iterator[GcRecord]:
        return (self._read(path, GcRecord) for path in self.storage.list(COLLECTIONS))


def _tag_again(path: str) -> str:
    name = path.rpartition("/")[2].removesuffix(".json")
    return f"take it away by `speechclip tag --delete {name}` and tag the version again"


def _void_sentence(tag: Tag) -> str:
    return (
        f"the tag names catalog version {tag.version}, which `speechclip gc` had freed; take it away by "
        f"`speechclip tag --delete {tag.name}`"
    )


def _freed_sentence(version: int, freed: GcRecord) -> str:
    return (
        f"catalog version {version} was freed by `speechclip gc` on {freed.time:%Y-%m-%d %H:%M} UTC; take a newer one, "
        "and tag what you want to keep"
    )
