"""Bytes on a local folder or on S3: the one place that resolves profile, endpoint and credentials.

Credentials and endpoint come from the standard AWS environment and profile (botocore's own chain) and are handed to
s3fs and deltalake alike; they never enter a record, a log line or an error.
"""

import errno
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from speechclip.errors import InvalidInput, SourceMissing, UnsupportedStore

INCOMING = ".incoming-"


class Storage:
    """A root folder, local or `s3://bucket/prefix`, whose files are written once. Paths are relative, with slashes."""

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        self.root = str(Path(root.removeprefix("file://")).absolute()) if self.is_local else root.rstrip("/")
        if not self.is_local and not self.root.startswith("s3://"):
            raise InvalidInput(f"{root}: only local folders and s3:// addresses can hold a store")

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.root,)

    @functools.cached_property
    def filesystem(self) -> Any:
        """The fsspec file system under the root."""
        return fsspec.filesystem("file") if self.is_local else fsspec.filesystem("s3", **_s3fs_options())

    @property
    def delta_options(self) -> dict[str, str]:
        """The same endpoint and credentials in the words of deltalake's object store, as fresh as botocore's."""
        return {} if self.is_local else _delta_options()

    def address(self, path: str) -> str:
        """The full address of `path`."""
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Whether a file or folder lies at `path` now."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(self.address(path)))

    def size(self, path: str) -> int | None:
        """The bytes of the file at `path`, None where there is none."""
        self.filesystem.invalidate_cache()
        try:
            return int(self.filesystem.info(self.address(path))["size"])
        except FileNotFoundError:
            return None

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `path`, or of its range [start, end)."""
        return bytes(self.filesystem.cat_file(self.address(path), start=start, end=end))

    def create(self, path: str, data: bytes | memoryview) -> bool:
        """Write `path` whole and durable, unless something lies there: then change nothing and return False."""
        if self.is_local:
            return _create_local(Path(self.address(path)), data)
        try:
            self.filesystem.pipe_file(self.address(path), bytes(data), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs knows only AWS's wording of 412; other servers arrive as EINVAL with botocore's error behind it.
            response = getattr(error.__cause__, "response", {})
            if response.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def list(self, prefix: str) -> Iterator[str]:
        """The paths of all files under the folder `prefix`, sorted."""
        self.filesystem.invalidate_cache()
        base = self.root.removeprefix("s3://")
        for found in sorted(self.filesystem.find(self.address(prefix))):
            # What a killed writer left, or one at work is writing, is no file yet.
            if not found.rpartition("/")[2].startswith(INCOMING):
                yield found.removeprefix(base).lstrip("/")

    def probe(self) -> None:
        """Refuse a backend that overwrites where it was asked to create (`UnsupportedStore`)."""
        path = f".probe-{os.urandom(8).hex()}"
        is_created = self.create(path, b"first")
        is_overwritten = self.create(path, b"second")
        self.filesystem.rm(self.address(path))
        if not is_created or is_overwritten:
            raise UnsupportedStore(
                f"{self.root}: the backend ignores conditional writes (If-None-Match), so two runs could overwrite "
                "each other; use a backend that honours them"
            )


def read_uri(uri: str) -> bytes:
    """The bytes at a local path or an `s3://` address; `SourceMissing` where nothing lies there."""
    storage, name = split_uri(uri)
    try:
        return storage.read(name)
    except FileNotFoundError:
        raise SourceMissing(f"{uri}: no such file; mend the path and ingest again") from None


def parse_parquet(data: bytes) -> pa.Table:
    """The table in a Parquet file's bytes; `pyarrow.ArrowInvalid` if it is none.

    Read in this thread alone: see `store.catalog.entries` for what Arrow's threads do to a process that ends.
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def split_uri(uri: str) -> tuple[Storage, str]:
    """The folder of an address, as storage, and the name within it."""
    folder, _, name = uri.rpartition("/")
    return Storage(folder or ("/" if uri.startswith("/") else ".")), name


def _create_local(path: Path, data: bytes | memoryview) -> bool:
    """Link a finished, synced temporary file to `path`: a reader sees all of it or nothing; nothing is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=INCOMING)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.link(temporary, path)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    finally:
        os.unlink(temporary)
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _session() -> Any:
    import botocore.session

    return botocore.session.get_session()


def _s3fs_options() -> dict[str, Any]:
    """Retries with jitter and a bound; everything else s3fs takes from botocore, profile and endpoint included."""
    return {
        "config_kwargs": {"retries": {"max_attempts": 8, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60}
    }


def _delta_options() -> dict[str, str]:
    """What botocore resolves, handed to the Rust client, which by itself knows no profiles."""
    session = _session()
    options = {"AWS_REGION": session.get_config_variable("region") or "us-east-1"}
    credentials = session.get_credentials()
    if credentials is not None:
        frozen = credentials.get_frozen_credentials()
        options |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
        if frozen.token:
            options["AWS_SESSION_TOKEN"] = frozen.token
    client = session.create_client("s3", region_name=options["AWS_REGION"])
    endpoint = client.meta.endpoint_url
    if "amazonaws.com" not in endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    return options
