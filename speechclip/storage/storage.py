"""Bytes on a local folder or on S3, under one small contract: created once, replaced whole, never torn.

`folder` and `bucket` carry it out; the latter resolves profile, endpoint and credentials for s3fs and deltalake alike.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from speechclip.errors import InvalidInput, SourceMissing
from speechclip.records import StoredFile
from speechclip.storage.folder import INCOMING, Folder

if TYPE_CHECKING:
    from speechclip.storage.bucket import Bucket

T = TypeVar("T")
U = TypeVar("U")
# How many requests are under way at once where several are needed.
THREADS = 16
# What Delta's client decodes, splits or refuses, whatever way it is written. Lone surrogates are bytes of no encoding.
_UNFIT_FOR_DELTA = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|%[0-9A-Fa-f]{2}")
# What S3 servers or s3fs read as something else than a name.
_UNFIT_ON_S3 = re.compile(r"[\ud800-\udfff]|\?versionId=|/\.\.?(/|$)")


class Storage:
    """A root folder, local or `s3://bucket/prefix`, whose files are written once. Paths are relative, with slashes."""

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        self.root = _local_root(root) if self.is_local else _bucket_root(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.root,)

    @functools.cached_property
    def _files(self) -> "Folder | Bucket":
        if self.is_local:
            return Folder(self.root)
        # botocore, s3fs: not for those who stay local.
        from speechclip.storage.bucket import Bucket

        return Bucket(self.root)

    @property
    def delta_options(self) -> dict[str, str]:
        """The same endpoint and credentials in the words of deltalake's object store, as fresh as botocore's."""
        return {} if isinstance(self._files, Folder) else self._files.delta_options

    def address(self, path: str) -> str:
        """The full address of `path`."""
        return f"{self.root}/{path}" if path else self.root

    def delta_uri(self, path: str) -> str:
        """The same as Delta's client wants it: a URI in which every character stands for itself.

        `InvalidInput` for the few addresses that it takes for another place, or for none.
        """
        address = self.address(path)
        if _UNFIT_FOR_DELTA.search(address):
            raise InvalidInput(
                f"{self.root!r}: a store's address can't hold control characters, backslashes, bytes of no encoding or "
                "a % before two hex digits, Delta's client takes it for another place; choose another"
            )
        return Path(address).as_uri() if self.is_local else f"s3://{quote(address.removeprefix('s3://'))}"

    def exists(self, path: str) -> bool:
        """Whether a file or folder lies at `path` now."""
        return self._files.exists(path)

    def size(self, path: str) -> int | None:
        """The bytes of the file at `path`, None where there is none."""
        found = self._files.find(path)
        return None if found is None else found.size

    def modified(self, path: str) -> float | None:
        """When the file at `path` was written, in Unix seconds, None where there is none."""
        found = self._files.find(path)
        return None if found is None else found.modified

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `path`, or of its range [start, end) as far as it reaches; `FileNotFoundError` if it is none."""
        return self._files.read(path, start, end)

    def read_or_empty(self, path: str) -> bytes:
        """The bytes of the file at `path`; empty bytes if there is none."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return b""

    def create(self, path: str, data: bytes | memoryview) -> bool:
        """Write `path` whole and durable, unless something lies there: then change nothing and return False."""
        return self._files.create(path, data)

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write `path` whole or not at all, over what lay there."""
        self._files.replace(path, data)

    def delete(self, paths: Iterable[str], *, older_than: float | None = None) -> None:
        """Remove these files, if told so those alone that are still older than that Unix time.

        One that is gone already is no error.
        """
        self._files.delete(paths, older_than)

    def list(self, prefix: str) -> Iterator[str]:
        """The paths of all files under the folder `prefix`, sorted."""
        return (file.path for file in self.stat(prefix))

    def stat(self, prefix: str, *, with_incoming: bool = False) -> Iterator[StoredFile]:
        """All files under the folder `prefix`, sorted; also what killed writers left or others write now, if asked."""
        for file in self._files.scan(prefix):
            if with_incoming or not file.path.rpartition("/")[2].startswith(INCOMING):
                yield file

    def in_parallel(self, read: Callable[[U], T], items: Sequence[U]) -> tuple[T, ...]:
        """What `read` makes of each of these, in their order, `THREADS` at a time.

        A few local files are read sooner than threads are started, and so is one of any kind.
        """
        if len(items) <= (THREADS if self.is_local else 1):
            return tuple(map(read, items))
        with ThreadPoolExecutor(THREADS) as pool:
            return tuple(pool.map(read, items))

    def abort_uploads(self, older_than: float, *, dry_run: bool = False) -> Iterator[StoredFile]:
        """End each multipart upload under the root that was begun before that Unix time, with the bytes that frees.

        Delta's client begins some for large files; a killed one is invisible, and paid for. Locally there are none.
        """
        if isinstance(self._files, Folder):
            return
        for file, upload in self._files.uploads(older_than):
            if not dry_run:
                self._files.abort(file.path, upload)
            yield file

    def delta(self, doing: str, path: str, call: Callable[[str, dict[str, str]], T]) -> T:
        """What `call(uri, options)` makes of Delta's client at `path`, on S3 repeated in bad weather.

        Then `StorageFailed`, in one sentence. A commit may have succeeded though its answer was lost: the repetition
        ends in `CommitFailedError` then, as if another writer had been first.
        """
        if isinstance(self._files, Folder):
            return call(self.delta_uri(path), {})
        return self._files.delta(doing, path, lambda options: call(self.delta_uri(path), options))


def read_uri(uri: str) -> bytes:
    """The bytes at a local path or an `s3://` address; `SourceMissing` where nothing lies there."""
    storage, name = split_uri(uri)
    try:
        return storage.read(name)
    except FileNotFoundError:
        raise SourceMissing(f"{uri}: no such file; mend the path and ingest again") from None


def parse_parquet(data: bytes) -> pa.Table:
    """The table in a Parquet file's bytes; `pyarrow.ArrowInvalid` if it is none.

    Read in this thread alone: see `store.catalog` for what Arrow's threads do to a process that ends.
    """
    try:
        return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (OSError, UnicodeDecodeError) as error:
        # What PyArrow says of damaged metadata, and of a column's damaged name; bytes in memory know no other.
        raise pa.ArrowInvalid(str(error)) from None


def split_uri(uri: str) -> tuple[Storage, str]:
    """The folder of an address, as storage, and the name within it."""
    folder, _, name = uri.rpartition("/")
    return Storage(folder or ("/" if uri.startswith("/") else ".")), name


def _local_root(root: str) -> str:
    path = root
    if root.startswith("file://"):
        path = unquote(root.removeprefix("file://"))
        if not path.startswith("/"):
            raise InvalidInput(f"{root}: names another machine; a file address begins with file:///")
    if "\0" in path:
        raise InvalidInput(f"{root!r}: a path holds no zero byte; name another folder")
    return re.sub("^/+", "/", str(Path(path).absolute()))


def _bucket_root(root: str) -> str:
    parts = [part for part in root.removeprefix("s3://").split("/") if part]
    if not root.startswith("s3://") or not parts:
        raise InvalidInput(f"{root}: only local folders and s3://bucket/prefix addresses can hold files of ours")
    if _UNFIT_ON_S3.search(root):
        raise InvalidInput(f"{root!r}: an s3:// address can't hold . or .. as a part, nor ?versionId=; mend it")
    return "s3://" + "/".join(parts)
