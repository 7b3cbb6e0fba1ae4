"""Matrices: Zarr v3 groups that hold the vectors of one plan.

`<plan>-<rows>x<rows a chunk>.zarr` holds `vectors` (rows, width) and `keys` (rows, 88 bytes of ASCII). Its metadata
follows from the encoder spec and this name alone. So it can be verified and rebuilt.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from speechclip.errors import Damaged
from speechclip.records import from_json, to_json
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.codec import codec_of
from speechclip.store.layout import matrix_path

# 64 hex digits of sha256 and a segment's "-start-end".
KEY_BYTES = 88
ARRAYS = ("vectors", "keys")
METADATA = ("zarr.json", "vectors/zarr.json", "keys/zarr.json")
_NAME = re.compile(r"-(\d+)x(\d+)(?:-g(\d+))?(?:\.zarr)?$")


class Shape(NamedTuple):
    """How many rows a matrix has, and how many of them a chunk has."""

    rows: int
    chunk_rows: int


def matrix_name(plan: str, shape: Shape) -> str:
    """The name of a plan's matrix."""
    return f"{plan}-{shape.rows}x{shape.chunk_rows}"


def shape_of(matrix: str) -> Shape:
    """The shape that a matrix's name or path states. Raises `Damaged` if it states none."""
    found = _NAME.search(matrix)
    if found is None or int(found[2]) == 0:
        raise Damaged(f"{matrix}: not the name of a matrix, which ends in <rows>x<rows a chunk>")
    return Shape(int(found[1]), int(found[2]))


def matrix_in(path: str) -> tuple[str, int]:
    """The name of the plan's matrix at that path, and its generation: `("p-6x4", 1)` for `.../p-6x4-g1.zarr`."""
    name = path.rpartition("/")[2].removesuffix(".zarr")
    found = _NAME.search(name)
    generation = found[3] if found else None
    return (name, 0) if generation is None else (name.removesuffix(f"-g{generation}"), int(generation))


def chunk_path(path: str, array: str, first_row: int) -> str:
    """The path of the chunk file that begins at that row of an array of the matrix at `path`."""
    return f"{path}/{array}/c/{first_row // shape_of(path).chunk_rows}/0"


def chunk_at(path: str) -> tuple[str, int, int]:
    """The path of the matrix to which the chunk file at `path` belongs, and the chunk's rows [first, last)."""
    matrix, _array, _c, chunk, _ = path.rsplit("/", 4)
    rows = shape_of(matrix).chunk_rows
    return matrix, int(chunk) * rows, (int(chunk) + 1) * rows


def create_matrix(storage: Storage, spec: EncoderSpec, matrix: str) -> None:
    """Put the metadata of a matrix on storage, unless it is there."""
    for name, data in matrix_metadata(spec, shape_of(matrix)).items():
        storage.create(f"{matrix_path(spec.fingerprint, matrix)}/{name}", data)


def matrix_metadata(spec: EncoderSpec, shape: Shape) -> dict[str, bytes]:
    """The metadata files of a matrix as this version of Zarr writes them, by their paths within the matrix."""
    return dict(_metadata(to_json(spec), shape))


@functools.lru_cache(maxsize=64)
def _metadata(spec: bytes, shape: Shape) -> dict[str, bytes]:
    return _new_metadata(from_json(spec, EncoderSpec), shape)


def _new_metadata(spec: EncoderSpec, shape: Shape) -> dict[str, bytes]:
    codec, files = codec_of(spec), dict[str, Any]()
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes={"fingerprint": spec.fingerprint})
    layout: dict[str, tuple[int, str, float]] = {
        "vectors": (spec.width, codec.dtype.str, codec.fill),
        "keys": (KEY_BYTES, "|u1", 0),
    }
    for name, (width, dtype, fill) in layout.items():
        group.create_array(
            name,
            shape=(shape.rows, width),
            chunks=(shape.chunk_rows, width),
            dtype=dtype,
            fill_value=fill,
            compressors=[Crc32cCodec()],
        )
    return {name: data.to_bytes() for name, data in files.items()}


def is_same_metadata(spec: EncoderSpec, path: str, files: Mapping[str, bytes]) -> bool:
    """Whether these metadata files agree with the name of the matrix at `path`. They may have further fields."""
    expected = matrix_metadata(spec, shape_of(path))
    if files == expected:
        return True
    try:
        # Zarr ignores some fields that other readers use. So compare the JSON too.
        if not all(_holds(msgspec.json.decode(files[name]), msgspec.json.decode(expected[name])) for name in METADATA):
            return False
        found = zarr.open_group(MemoryStore(_buffers(files), read_only=True), mode="r", zarr_format=3)
        nodes = {"zarr.json": found} | {f"{name}/zarr.json": found[name] for name in ARRAYS}
        # Another version of Zarr may write the same metadata as other JSON. So write it again with this one.
        again = {name: _as_written(node) for name, node in nodes.items()}
    # Zarr has no error class of its own for damaged metadata.
    except Exception:  # noqa: BLE001
        return False
    return again == expected


def _holds(found: Any, expected: Any) -> bool:
    """Whether the found JSON has everything that the expected JSON has."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(key in found and _holds(found[key], value) for key, value in expected.items())
    return bool(found == expected)


def _as_written(node: Any) -> bytes:
    data: bytes = node.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()
    return data


def _buffers(files: Mapping[str, bytes]) -> dict[str, Buffer]:
    return {name: default_buffer_prototype().buffer.from_bytes(data) for name, data in files.items()}
