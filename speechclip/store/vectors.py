"""Vectors: features of one row each, in Zarr matrices. Each task writes one chunk of `vectors` and one of `keys`.

The driver creates a matrix's metadata once, with its final shape. Each task creates its own two chunk files whole. So
no file is resized, shared or overwritten. A row that is not written holds NaN and an empty key. The catalog states
which rows count.
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
    """Put a task's chunk on storage. Returns the matrix's path, where each feature lies, and the bytes written.

    The chunk may be there already. It is reused if it is not damaged and holds all of these features, even if another
    machine encoded slightly other numbers; with `is_exact` only if its bytes are these. The result then states what the
    chunk on storage holds. Otherwise the old chunk stays as it is, and this one goes into the matrix's next generation.
    So it does if `gc` may delete the old chunk soon.

    If only one of the chunk's two files is there and it has other rows, this chunk's other file is not put beside it.
    The keys would then belong to other vectors.
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
    """Put a chunk's two files on storage, and return the paths of those that were created.

    A file is not created if it is there, or if the chunk's other file is there with other bytes. `vectors` comes first:
    the writer that creates it also decides what `keys` holds.
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
    """Where each feature lies in a task's chunk of the matrix at `path`, if that chunk can be reused.

    Empty if the chunk is not written, is damaged, or is so old that `gc` may delete it.
    """
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
    """The bytes of the chunk files `vectors` and `keys`."""
    rows = {name: empty_rows(spec, name, shape_of(task.matrix).chunk_rows) for name in ARRAYS}
    for row, asset in enumerate(task.assets):
        if asset.key in features:
            rows["vectors"][row], rows["keys"][row] = features[asset.key], key_row(asset.key)
    return {name: encode_rows(rows[name]) for name in ARRAYS}


class Vectors(Features):
    """A feature set of vectors in one snapshot: `vectors[key]` is (width,), and `vectors.read(keys)` is (keys, width).

    Each vector that is read is checked against the catalog's checksum.
    """

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table) -> None:
        super().__init__(storage, spec, entries)
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
        if digest_of(found[within].data) != checksums[row]:
            raise Damaged(f"{shards[row]}: row {offsets[row]} ({key}) does not match its checksum")
        vector: np.ndarray = found[within]
        return vector

    def read(self, keys: Sequence[str]) -> Shaped[np.ndarray, "keys width"]:
        """The vectors of these keys, in the same order. Vectors that lie in one chunk are read together."""
        vectors = np.empty((len(keys), self.spec.width), codec_of(self.spec).dtype)
        order = sorted(range(len(keys)), key=lambda position: self._index.get(keys[position], -1))
        for position in order:
            vectors[position] = self[keys[position]]
        return vectors

    def _read_chunk(self, path: str, first_row: int) -> np.ndarray:
        data = read_rows(self.storage, self.spec, path, "vectors", first_row)
        data.flags.writeable = False
        return data
