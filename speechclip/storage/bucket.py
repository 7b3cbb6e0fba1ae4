"""Objects under a prefix of an S3 bucket. Each is created once, by a conditional put. Requests are retried."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from speechclip.records import StoredFile
from speechclip.storage.aws import delta_options, filesystem
from speechclip.storage.retry import with_retries

T = TypeVar("T")
# The key of the metadata in which each object holds the id of the write that created it.
WRITE = "speechclip-write"
DELETE_BATCH = 1000
# How many objects are looked at in parallel.
LOOKS = 16


class Bucket:
    """The objects under `s3://bucket/prefix`. Paths are relative to it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.name, _, self.prefix = root.removeprefix("s3://").partition("/")

    @property
    def delta_options(self) -> dict[str, str]:
        """The options of Delta's client for this bucket: endpoint, current credentials, retries."""
        return delta_options(self.name)

    def delta(self, doing: str, path: str, call: Callable[[dict[str, str]], T]) -> T:
        """What `call(options)` of Delta's client returns. It is retried like any other request."""
        return with_retries(doing, f"{self.root}/{path}", lambda: call(self.delta_options))

    def find(self, path: str) -> StoredFile | None:
        """The object at `path`; None if there is none."""
        try:
            found = self._call("looking at", path, "head_object", Key=self._key(path))
        except FileNotFoundError:
            return None
        return StoredFile(path=path, size=found["ContentLength"], modified=found["LastModified"].timestamp())

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path, or below it."""
        return self.find(path) is not None or next(self.scan(path), None) is not None

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of the object, or of its range [start, end). A range may reach behind the end of the object."""
        if start is not None and start == end:
            return b""
        address = f"{self.root}/{path}"
        # With a start, s3fs need not ask for the size first. A range that starts behind the end raises EOFError.
        with contextlib.suppress(EOFError):
            return bytes(
                with_retries("reading", address, lambda: filesystem().cat_file(address, start=start or 0, end=end))
            )
        return b""

    def create(self, path: str, data: bytes | memoryview) -> bool:
        """Put the object; if there is one already, change nothing and return False.

        Each object holds the id of the write that created it. The answer to a write may be lost, although the object
        was created. Then the next attempt finds an object, and the id says that it is its own.
        """
        write = os.urandom(16).hex()
        arguments = {"Key": self._key(path), "Body": bytes(data), "Metadata": {WRITE: write}}
        while True:
            try:
                self._call("writing", path, "put_object", IfNoneMatch="*", **arguments)
            except FileExistsError:
                # The object that was there may be deleted by now. Then try again.
                with contextlib.suppress(FileNotFoundError):
                    there = self._call("looking at", path, "head_object", Key=self._key(path))
                    return bool(there["Metadata"].get(WRITE) == write)
            else:
                return True

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Put the object; an existing one is replaced."""
        self._call("writing", path, "put_object", Key=self._key(path), Body=bytes(data))

    def delete(self, paths: Iterable[str], older_than: float | None = None) -> None:
        """Delete these objects, or with `older_than` only those that are older than that Unix time."""
        left = list(paths)
        for first in range(0, len(left), DELETE_BATCH):
            batch = left[first : first + DELETE_BATCH]
            with_retries("deleting", self.root, functools.partial(self._delete, batch, older_than))

    def _delete(self, paths: Sequence[str], older_than: float | None) -> None:
        """Delete one batch. S3 answers 200 even if some objects could not be deleted: that raises here.

        Each attempt looks at the ages again. An earlier attempt may have deleted an object although its answer was
        lost, and another process may have written a new object since.
        """
        if older_than is not None:
            with ThreadPoolExecutor(LOOKS) as pool:
                paths = [file.path for file in pool.map(self.find, paths) if file and file.modified < older_than]
        if not paths:
            return
        objects = [{"Key": self._key(path)} for path in paths]
        answer = self._request("delete_objects", Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", [])[:1]:
            raise ClientError({"Error": failed}, "DeleteObjects")

    def scan(self, prefix: str) -> Iterator[StoredFile]:
        """Every object under the folder `prefix`, sorted by path. An empty prefix means all."""
        top = self._key(f"{prefix}/" if prefix else "")
        base = self._key("")
        page: dict[str, Any] = {}
        while not page or page.get("IsTruncated"):
            more = {"ContinuationToken": page["NextContinuationToken"]} if page else {}
            page = self._call("listing", prefix, "list_objects_v2", Prefix=top, **more)
            for found in page.get("Contents", []):
                path = found["Key"].removeprefix(base)
                yield StoredFile(path=path, size=found["Size"], modified=found["LastModified"].timestamp())

    def uploads(self, older_than: float) -> Iterator[tuple[StoredFile, str]]:
        """The unfinished multipart uploads that began before that Unix time, each with its size so far and its id."""
        base = self._key("")
        page: dict[str, Any] = {}
        while not page or page.get("IsTruncated"):
            # SeaweedFS gives only one of the two markers.
            named = [name for name in ("KeyMarker", "UploadIdMarker") if page.get(f"Next{name}")]
            more = {name: page[f"Next{name}"] for name in named}
            page = self._call("listing uploads", "", "list_multipart_uploads", Prefix=base, **more)
            for found in page.get("Uploads", []):
                begun = found["Initiated"].timestamp()
                if begun < older_than:
                    size = self._uploaded_bytes(found["Key"], found["UploadId"])
                    path = found["Key"].removeprefix(base)
                    yield StoredFile(path=path, size=size, modified=begun), found["UploadId"]

    def abort(self, path: str, upload: str) -> None:
        """Abort an unfinished upload, which deletes its parts."""
        self._call("aborting an upload", path, "abort_multipart_upload", Key=self._key(path), UploadId=upload)

    def _uploaded_bytes(self, key: str, upload: str) -> int:
        size = 0
        page: dict[str, Any] = {}
        while not page or page.get("IsTruncated"):
            more = {"PartNumberMarker": page["NextPartNumberMarker"]} if page else {}
            page = self._call("listing an upload", "", "list_parts", Key=key, UploadId=upload, **more)
            size += sum(part["Size"] for part in page.get("Parts", []))
        return size

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _call(self, doing: str, path: str, method: str, **arguments: Any) -> Any:
        address = f"{self.root}/{path}" if path else self.root
        return with_retries(doing, address, lambda: self._request(method, **arguments))

    def _request(self, method: str, **arguments: Any) -> Any:
        return filesystem().call_s3(method, Bucket=self.name, **arguments)
