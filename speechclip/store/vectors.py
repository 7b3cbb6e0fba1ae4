"""Vectors: Zarr v3 groups of `vectors` (rows, width) and `keys` (rows, 88 bytes of ASCII), one chunk a task.

The driver creates a segment's metadata once, at its final shape; each task creates its own two chunks whole, so nothing
is resized, shared or overwritten. Unwritten rows are NaN with an empty key. The catalog says which rows count.
"""

import functools
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Shaped
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from speechclip.errors import Damaged
from speechclip.records import StoredAsset, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.features import Features
from speechclip.store.layout import segment_path

# 64 hex digits of sha256 and a segment's "-start-end".
KEY_BYTES = 88


def create_segment(storage: Storage, spec: EncoderSpec, segment: str, num_rows: int, chunk_rows: int) -> None:
    """Put the metadata of a segment on storage, unless it is there."""
    files: dict[str, Any] = {}
    _new_group(files, spec, num_rows, chunk_rows)
    for name, data in files.items():
        storage.create(f"{segment_path(spec.fingerprint, segment)}/{name}", data.to_bytes())


def write_chunk(
    storage: Storage, spec: EncoderSpec, task: Task, features: dict[str, np.ndarray]
) -> tuple[str, tuple[StoredAsset, ...], int]:
    """Put a task's chunk on storage: the segment's path, what lies there, and the bytes written.

    A chunk that is there already is adopted as it is: the receipt says what it holds, not what was meant.
    """
    path = segment_path(spec.fingerprint, task.segment)
    chunk_rows = int(_open(storage, path)["vectors"].chunks[0])
    files: dict[str, Any] = {}
    group = _new_group(files, spec, chunk_rows, chunk_rows)
    vectors = np.full((chunk_rows, spec.width), np.nan, spec.dtype)
    keys = np.zeros((chunk_rows, KEY_BYTES), np.uint8)
    for row, asset in enumerate(task.assets):
        if asset.key in features:
            vectors[row] = features[asset.key]
            keys[row, : len(asset.key)] = np.frombuffer(asset.key.encode(), np.uint8)
    group["vectors"][:], group["keys"][:] = vectors, keys
    num_bytes = 0
    for name in ("vectors", "keys"):
        # An array that is all fill has no chunk file.
        data = files[f"{name}/c/0/0"].to_bytes() if f"{name}/c/0/0" in files else b""
        if data and storage.create(f"{path}/{name}/c/{task.first_row // chunk_rows}/0", data):
            num_bytes += len(data)
    return path, read_chunk(storage, spec, task), num_bytes


def read_chunk(storage: Storage, spec: EncoderSpec, task: Task) -> tuple[StoredAsset, ...]:
    """What a task's chunk holds on storage; empty where it is not written, `Damaged` where it is torn."""
    path = segment_path(spec.fingerprint, task.segment)
    vectors = _read_rows(storage, path, "vectors", task.first_row, len(task.assets))
    keys = _read_rows(storage, path, "keys", task.first_row, len(task.assets))
    stored = []
    for row, asset in enumerate(task.assets):
        if bytes(keys[row]).rstrip(b"\0").decode() == asset.key and not np.isnan(vectors[row]).any():
            stored.append(
                StoredAsset(
                    key=asset.key,
                    offset=task.first_row + row,
                    num_frames=0,
                    sums_offset=0,
                    checksum=digest_of(vectors[row]),
                )
            )
    return tuple(stored)


def _new_group(files: dict[str, Any], spec: EncoderSpec, num_rows: int, chunk_rows: int) -> Any:
    """A group in memory whose encoded files appear in `files`; its codecs are those of every segment."""
    files.clear()
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes={"fingerprint": spec.fingerprint})
    layout: dict[str, tuple[int, str, float]] = {
        "vectors": (spec.width, spec.dtype.str, float("nan")),
        "keys": (KEY_BYTES, "|u1", 0),
    }
    for name, (width, dtype, fill) in layout.items():
        group.create_array(
            name,
            shape=(num_rows, width),
            chunks=(chunk_rows, width),
            dtype=dtype,
            fill_value=fill,
            compressors=[Crc32cCodec()],
        )
    return group


class _Files(MutableMapping[str, Any]):
    """The files under a segment as Zarr's memory store wants them, each read when it is asked for."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage, self.path = storage, path

    def __getitem__(self, name: str) -> Buffer:
        try:
            return default_buffer_prototype().buffer.from_bytes(self.storage.read(f"{self.path}/{name}"))
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(f"{self.path}/") for name in self.storage.list(self.path))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __setitem__(self, name: str, value: Buffer) -> None:
        raise PermissionError(f"{self.path}/{name}: a segment is written by create_segment and write_chunk alone")

    def __delitem__(self, name: str) -> None:
        raise PermissionError(f"{self.path}/{name}: a segment is never deleted from")


def _open(storage: Storage, path: str) -> Any:
    """The group at `path`; reading goes through our storage, so credentials are resolved in one place."""
    try:
        return zarr.open_group(MemoryStore(_Files(storage, path), read_only=True), mode="r", zarr_format=3)
    except FileNotFoundError:
        raise Damaged(f"{path}: the segment's metadata is gone") from None


def _read_rows(storage: Storage, path: str, name: str, start: int, count: int) -> np.ndarray:
    try:
        return np.asarray(_open(storage, path)[name][start : start + count])
    except ValueError as error:
        raise Damaged(f"{path}/{name}: rows {start} to {start + count} are damaged ({error})") from None


class Vectors(Features):
    """A feature set of vectors in one snapshot: `vectors[key]` is (width,), `read(keys)` (keys, width), verified."""

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table, *, verify: bool = True) -> None:
        super().__init__(storage, spec, entries, verify=verify)
        self._chunk = functools.lru_cache(maxsize=64)(self._read_chunk)
        self._arrays = functools.lru_cache(maxsize=64)(lambda path: _open(self.storage, path)["vectors"])

    @functools.cached_property
    def _places(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        names = ("shard", "offset", "checksum")
        shards, offsets, checksums = (self._entries[name] for name in names)
        return shards.to_pylist(), offsets.to_numpy(), checksums.to_numpy()

    def __getitem__(self, key: str) -> Shaped[np.ndarray, " width"]:
        row = self._row(key)
        shards, offsets, checksums = self._places
        array = self._arrays(shards[row])
        chunk, within = divmod(int(offsets[row]), array.chunks[0])
        vector: np.ndarray = self._chunk(shards[row], chunk)[within]
        if self.verify and digest_of(vector.data) != checksums[row]:
            raise Damaged(f"{shards[row]}: row {offsets[row]} ({key}) does not match its checksum")
        return vector

    def read(self, keys: Sequence[str]) -> Shaped[np.ndarray, "keys width"]:
        """The vectors of these keys, in their order; neighbours on storage are read together."""
        vectors = np.empty((len(keys), self.spec.width), self.spec.dtype)
        order = sorted(range(len(keys)), key=lambda position: self._index.get(keys[position], -1))
        for position in order:
            vectors[position] = self[keys[position]]
        return vectors

    def _read_chunk(self, path: str, chunk: int) -> np.ndarray:
        array = self._arrays(path)
        rows = array.chunks[0]
        try:
            data = np.asarray(array[chunk * rows : (chunk + 1) * rows])
        except ValueError as error:
            raise Damaged(f"{path}: chunk {chunk} is damaged ({error})") from None
        data.flags.writeable = False
        return data
