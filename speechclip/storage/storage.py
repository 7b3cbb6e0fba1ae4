"""Files in a local folder or on S3, behind one small interface. No reader ever sees half of a file.

`folder` and `bucket` implement it. `aws` finds profile, endpoint and credentials for both clients of S3.
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
# How many requests run in parallel where several are needed.
THREADS = 16
# Delta's client decodes, splits or refuses these, however they are written. Lone surrogates stand for bytes that are no
# UTF-8.
_UNFIT_FOR_DELTA = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|%[0-9A-Fa-f]{2}")
# S3 servers or s3fs take these for something else than a name.
_UNFIT_ON_S3 = re.compile(r"[\ud800-\udfff]|\?versionId=|/\.\.?(/|$)")


class Storage:
    """The files under a root: a local folder or `s3://bucket/prefix`. Paths are relative to it, with slashes.

    storage = Storage("s3://bucket/store")
    storage.create("a/b.txt", b"12345")  # True
    storage.create("a/b.txt", b"other")  # False: there is one already
    storage.read("a/b.txt", 1, 3)  # b"23"
    """

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        self.root = _local_root(root) if self.is_local else _bucket_root(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.root,)

    @functools.cached_property
    def _files(self) -> "Folder | Bucket":
        if self.is_local:
            return Folder(self.root)
        # Only a store on S3 needs botocore and s3fs, which take long to import.
        from speechclip.storage.bucket import Bucket

        return Bucket(self.root)

    @property
    def delta_options(self) -> dict[str, str]:
        """The options of Delta's client: endpoint, current credentials, retries. Empty for a local folder."""
        return {} if isinstance(self._files, Folder) else self._files.delta_options

    def address(self, path: str) -> str:
        """The full address of `path`."""
        return f"{self.root}/{path}" if path else self.root

    def delta_uri(self, path: str) -> str:
        """The address of `path` as a URI for Delta's client.

        Raises `InvalidInput` for the few addresses that this client takes for another place, or for none.
        """
        address = self.address(path)
        if _UNFIT_FOR_DELTA.search(address):
            raise InvalidInput(
                f"{self.root!r}: a store's address can't hold control characters, backslashes, bytes that are no UTF-8 "
                "or a % before two hex digits, because Delta's client takes it for another place",
                "choose another address",
            )
        return Path(address).as_uri() if self.is_local else f"s3://{quote(address.removeprefix('s3://'))}"

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`."""
        return self._files.exists(path)

    def size(self, path: str) -> int | None:
        """The number of bytes of the file at `path`; None if there is none."""
        found = self._files.find(path)
        return None if found is None else found.size

    def modified(self, path: str) -> float | None:
        """When the file at `path` was written, as a Unix time; None if there is none."""
        found = self._files.find(path)
        return None if found is None else found.modified

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of the file at `path`, or of its range [start, end). Raises `FileNotFoundError` if there is none.

        A range may reach behind the end of the file.
        """
        return self._files.read(path, start, end)

    def read_or_empty(self, path: str) -> bytes:
        """The bytes of the file at `path`; empty bytes if there is none."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return b""

    def create(self, path: str, data: bytes | memoryview) -> bool:
        """Write a new file; if there is one already, change nothing and return False.

        Of several processes that create one file, exactly one succeeds.
        """
        return self._files.create(path, data)

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a file; an existing one is replaced as a whole."""
        self._files.replace(path, data)

    def delete(self, paths: Iterable[str], *, older_than: float | None = None) -> None:
        """Delete these files, or with `older_than` only those that are older than that Unix time.

        A file that is gone already is no error.
        """
        self._files.delete(paths, older_than)

    def list(self, prefix: str) -> Iterator[str]:
        """The paths of all files under the folder `prefix`, sorted."""
        return (file.path for file in self.stat(prefix))

    def stat(self, prefix: str, *, with_incoming: bool = False) -> Iterator[StoredFile]:
        """All files under the folder `prefix`, sorted by path.

        `with_incoming` adds temporary files: those of writers at work, and those that killed writers have left.
        """
        for file in self._files.scan(prefix):
            if with_incoming or not file.path.rpartition("/")[2].startswith(INCOMING):
                yield file

    def in_parallel(self, read: Callable[[U], T], items: Sequence[U]) -> tuple[T, ...]:
        """The results of `read` for these items, in their order, computed by `THREADS` threads.

        A few local files are read without threads, because threads would take longer to start.
        """
        if len(items) <= (THREADS if self.is_local else 1):
            return tuple(map(read, items))
        with ThreadPoolExecutor(THREADS) as pool:
            return tuple(pool.map(read, items))

    def abort_uploads(self, older_than: float, *, dry_run: bool = False) -> Iterator[StoredFile]:
        """Abort the multipart uploads under the root that began before that Unix time, and yield each with its size.

        Delta's client begins such an upload for a large file. If it is killed, no listing shows the upload, but it
        takes space that must be paid for. A local folder has no uploads.
        """
        if isinstance(self._files, Folder):
            return
        for file, upload in self._files.uploads(older_than):
            if not dry_run:
                self._files.abort(file.path, upload)
            yield file

    def delta(self, doing: str, path: str, call: Callable[[str, dict[str, str]], T]) -> T:
        """What `call(uri, options)` of Delta's client returns. On S3 it is retried, and may raise `StorageFailed`.

        `doing` names the request in messages, such as "reading the log". A commit may succeed although its answer is
        lost. Then the retry raises `CommitFailedError`, as if another writer had been first.
        """
        if isinstance(self._files, Folder):
            return call(self.delta_uri(path), {})
        return self._files.delta(doing, path, lambda options: call(self.delta_uri(path), options))


def read_uri(uri: str) -> bytes:
    """The bytes at a local path or an `s3://` address. Raises `SourceMissing` if there is no file."""
    storage, name = split_uri(uri)
    try:
        return storage.read(name)
    except FileNotFoundError:
        raise SourceMissing(f"{uri}: no such file", "correct the path and ingest again") from None


def parse_parquet(data: bytes) -> pa.Table:
    """The table in a Parquet file's bytes. Raises `pyarrow.ArrowInvalid` if they are no Parquet file.

    It is read in this thread alone, because Arrow's threads can crash a process that ends (see `store.data_files`).
    """
    try:
        return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (OSError, UnicodeDecodeError) as error:
        # PyArrow raises these for damaged metadata and for a damaged column name. There is no disk that could fail.
        raise pa.ArrowInvalid(str(error)) from None


def split_uri(uri: str) -> tuple[Storage, str]:
    """The folder of an address, as a `Storage`, and the file's name in it."""
    folder, _, name = uri.rpartition("/")
    return Storage(folder or ("/" if uri.startswith("/") else ".")), name


def _local_root(root: str) -> str:
    path = root
    if root.startswith("file://"):
        path = unquote(root.removeprefix("file://"))
        if not path.startswith("/"):
            raise InvalidInput(f"{root}: a file on another machine", "begin the address of a local file with file:///")
    if "\0" in path:
        raise InvalidInput(f"{root!r}: a path can't hold a zero byte", "choose another folder")
    return re.sub("^/+", "/", str(Path(path).absolute()))


def _bucket_root(root: str) -> str:
    parts = [part for part in root.removeprefix("s3://").split("/") if part]
    if not root.startswith("s3://") or not parts:
        raise InvalidInput(
            f"{root}: files can only be in a local folder or at s3://bucket/prefix", "choose one of these"
        )
    if _UNFIT_ON_S3.search(root):
        raise InvalidInput(f"{root!r}: an s3:// address can't hold the parts . and .., nor ?versionId=", "correct it")
    return "s3://" + "/".join(parts)
