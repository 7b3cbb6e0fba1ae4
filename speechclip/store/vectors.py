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

    A chunk that is there already is adopted: the receipt says what it holds, not what was meant. One that is damaged or
    lacks some of these features is left alone, and ours goes into the segment's next generation.
    """
    shape, chunks = _shape(storage, segment_path(spec.fingerprint, task.segment))
    encoded = _encode_chunk(spec, task, features, chunks[0])
    wanted = {asset.key for asset in task.assets if asset.key in features}
    for generation in range(100):
        segment = f"{task.segment}-g{generation}" if generation else task.segment
        if generation:
            create_segment(storage, spec, segment, shape[0], chunks[0])
        path, num_bytes = segment_path(spec.fingerprint, segment), 0
        for name, data in encoded.items():
            if storage.create(f"{path}/{name}/c/{task.first_row // chunks[0]}/0", data):
                num_bytes += len(data)
        stored = find_chunk(storage, spec, task, path)
        if {entry.key for entry in stored} >= wanted:
            return path, stored, num_bytes
    raise Damaged(f"{task.segment}: a hundred damaged generations of chunk {task.first_row // chunks[0]}")


def find_chunk(storage: Storage, spec: EncoderSpec, task: Task, path: str) -> tuple[StoredAsset, ...]:
    """What a task's chunk in the group at `path` holds; nothing where it is not written, or damaged."""
    try:
        vectors = _read_rows(storage, path, "vectors", task.first_row, len(task.assets))
        keys = _read_rows(storage, path, "keys", task.first_row, len(task.assets))
    except Damaged:
        return ()
    return tuple(
        StoredAsset(
            key=asset.key,
            offset=task.first_row + row,
            num_frames=0,
            sums_offset=0,
            checksum=digest_of(vectors[row]),
        )
        for row, asset in enumerate(task.assets)
        if bytes(keys[row]).rstrip(b"\0") == asset.key.encode() and not np.isnan(vectors[row]).any()
    )


def _encode_chunk(spec: EncoderSpec, task: Task, features: dict[str, np.ndarray], rows: int) -> dict[str, bytes]:
    """The chunk files of `vectors` and `keys`, encoded by Zarr in memory."""
    files: dict[str, Any] = {}
    group = _new_group(files, spec, rows, rows)
    vectors = np.full((rows, spec.width), np.nan, spec.dtype)
    keys = np.zeros((rows, KEY_BYTES), np.uint8)
    for row, asset in enumerate(task.assets):
        if asset.key in features:
            vectors[row] = features[asset.key]
            keys[row, : len(asset.key)] = np.frombuffer(asset.key.encode(), np.uint8)
    group["vectors"][:], group["keys"][:] = vectors, keys
    # An array that is all fill has no chunk file.
    found = {name: files.get(f"{name}/c/0/0") for name in ("vectors", "keys")}
    return {name: data.to_bytes() for name, data in found.items() if data is not None}


def _shape(storage: Storage, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a segment and of its chunks."""
    vectors = _open(storage, path)["vectors"]
    return vectors.shape, vectors.chunks


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
