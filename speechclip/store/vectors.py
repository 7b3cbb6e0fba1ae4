"""Vectors: features of one row each, in Zarr matrices, one chunk of `vectors` and of `keys` a task.

The driver creates a matrix's metadata once, at its final shape; each task creates its own two chunks whole, so nothing
is resized, shared or overwritten. Unwritten rows are NaN with an empty key. The catalog says which rows count.
"""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from speechclip.errors import Damaged
from speechclip.records import StoredAsset, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.chunks import empty_rows, encode_rows, key_row, read_rows
from speechclip.store.codec import codec_of
from speechclip.store.features import Features
from speechclip.store.grace import is_reusable
from speechclip.store.layout import matrix_path
from speechclip.store.matrices import ARRAYS, chunk_path, create_matrix, shape_of


def write_chunk(
    storage: Storage,
    spec: EncoderSpec,
    task: Task,
    features: dict[str, np.ndarray],
    first_generation: int = 0,
    *,
    is_exact: bool = False,
) -> tuple[str, tuple[StoredAsset, ...], int]:
    """Put a task's chunk on storage: the matrix's path, what lies there, and the bytes written.

    A chunk that is there already is adopted: the receipt says what it holds, not what was meant. One that is damaged,
    lacks some of these features, or that `gc` may soon free, is left alone: ours goes into the matrix's next
    generation. With `is_exact` so is one of other bytes, which may hold more, or what another machine encoded. No half
    of ours is put beside a half of other rows: the keys would stand beside the vectors of others.
    """
    encoded = _encode_chunk(spec, task, features)
    wanted = {asset.key for asset in task.assets if asset.key in features}
    for generation in range(first_generation, first_generation + 100):
        matrix = f"{task.matrix}-g{generation}" if generation else task.matrix
        if generation:
            create_matrix(storage, spec, matrix)
        path = matrix_path(spec.fingerprint, matrix)
        files = {chunk_path(path, name, task.first_row): data for name, data in encoded.items()}
        ours = _create(storage, files)
        if is_exact and any(_is_other(storage, file, data) for file, data in files.items()):
            continue
        stored = (_in_chunk if len(ours) == len(files) else find_chunk)(storage, spec, task, path)
        if {entry.key for entry in stored} >= wanted:
            return path, stored, sum(len(files[file]) for file in ours)
    raise Damaged(f"{task.matrix}: a hundred damaged generations of the chunk at row {task.first_row}")


def _create(storage: Storage, files: dict[str, bytes]) -> list[str]:
    """Put a chunk's two files on storage, each unless it is there or the other is there with other bytes; the new ones.

    `vectors` comes first: whoever creates it decides what `keys` says.
    """
    vectors, keys = files
    if _is_other(storage, keys, files[keys]):
        return []
    ours = [vectors] if storage.create(vectors, files[vectors]) else []
    if not ours and _is_other(storage, vectors, files[vectors]):
        return []
    return [*ours, keys] if storage.create(keys, files[keys]) else ours


def _is_other(storage: Storage, path: str, data: bytes) -> bool:
    try:
        return storage.read(path) != data
    except FileNotFoundError:
        return False


def find_chunk(storage: Storage, spec: EncoderSpec, task: Task, path: str) -> tuple[StoredAsset, ...]:
    """What a task's chunk in the matrix at `path` holds; nothing where it is not written, damaged or too old."""
    if not is_reusable(storage, *(chunk_path(path, name, task.first_row) for name in ARRAYS)):
        return ()
    return _in_chunk(storage, spec, task, path)


def _in_chunk(storage: Storage, spec: EncoderSpec, task: Task, path: str) -> tuple[StoredAsset, ...]:
    try:
        vectors, keys = (read_rows(storage, spec, path, name, task.first_row) for name in ARRAYS)
    except Damaged:
        return ()
    codec = codec_of(spec)
    return tuple(
        StoredAsset(
            key=asset.key,
            offset=task.first_row + row,
            num_frames=0,
            sums_offset=0,
            checksum=digest_of(vectors[row]),
        )
        for row, asset in enumerate(task.assets)
        # A row that is not written holds NaN, which no codec takes.
        if bytes(keys[row]).rstrip(b"\0") == asset.key.encode() and codec.refuses(vectors[row]) is None
    )


def _encode_chunk(spec: EncoderSpec, task: Task, features: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The chunk files of `vectors` and `keys`."""
    rows = {name: empty_rows(spec, name, shape_of(task.matrix).chunk_rows) for name in ARRAYS}
    for row, asset in enumerate(task.assets):
        if asset.key in features:
            rows["vectors"][row], rows["keys"][row] = features[asset.key], key_row(asset.key)
    return {name: encode_rows(rows[name]) for name in ARRAYS}


class Vectors(Features):
    """A feature set of vectors in one snapshot: `vectors[key]` is (width,), `read(keys)` (keys, width), verified."""

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table, *, verify: bool = True) -> None:
        super().__init__(storage, spec, entries, verify=verify)
        self._chunk = functools.lru_cache(maxsize=64)(self._read_chunk)

    @functools.cached_property
    def _places(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        names = ("shard", "offset", "checksum")
        shards, offsets, checksums = (self._entries[name] for name in names)
        return shards.to_pylist(), offsets.to_numpy(), checksums.to_numpy()

    def __getitem__(self, key: str) -> Shaped[np.ndarray, " width"]:
        row = self._row(key)
        shards, offsets, checksums = self._places
        rows = shape_of(shards[row]).chunk_rows
        chunk, within = divmod(int(offsets[row]), rows)
        found = self._chunk(shards[row], chunk * rows)
        if self.verify and digest_of(found[within].data) != checksums[row]:
            raise Damaged(f"{shards[row]}: row {offsets[row]} ({key}) does not match its checksum")
        vector: np.ndarray = found[within]
        return vector

    def read(self, keys: Sequence[str]) -> Shaped[np.ndarray, "keys width"]:
        """The vectors of these keys, in their order; neighbours on storage are read together."""
        vectors = np.empty((len(keys), self.spec.width), codec_of(self.spec).dtype)
        order = sorted(range(len(keys)), key=lambda position: self._index.get(keys[position], -1))
        for position in order:
            vectors[position] = self[keys[position]]
        return vectors

    def _read_chunk(self, path: str, first_row: int) -> np.ndarray:
        data = read_rows(self.storage, self.spec, path, "vectors", first_row)
        data.flags.writeable = False
        return data
