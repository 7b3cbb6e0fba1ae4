"""Chunks: the files that hold a matrix's rows, byte for byte as Zarr writes them: the rows, then their CRC-32C.

They are read and written without Zarr, which takes milliseconds for a small chunk. A test compares the bytes.
"""

import google_crc32c
import numpy as np
from jaxtyping import Shaped

from speechclip.errors import Damaged
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.codec import codec_of
from speechclip.store.matrices import KEY_BYTES, chunk_path, shape_of

_CRC_BYTES = 4


def encode_rows(rows: Shaped[np.ndarray, "rows width"]) -> bytes:
    """The chunk file of these rows."""
    data = rows.tobytes()
    return data + _crc(data)


def read_rows(
    storage: Storage, spec: EncoderSpec, path: str, array: str, first_row: int
) -> Shaped[np.ndarray, "rows width"]:
    """The rows of one chunk: of that array (`vectors` or `keys`) of the matrix at `path`, from `first_row` on.

    Raises `Damaged` if the chunk is gone or does not match its CRC-32C.
    """
    file, count = chunk_path(path, array, first_row), shape_of(path).chunk_rows
    try:
        data = storage.read(file)
    except FileNotFoundError:
        raise Damaged(f"{file}: the chunk is gone") from None
    rows = rows_in(data, spec, array, count)
    if not is_whole_chunk(data, rows[0].nbytes, count):
        raise Damaged(f"{file}: {len(data)} bytes that are not {count} rows and their checksum")
    return rows


def is_whole_chunk(data: bytes, row_bytes: int, count: int) -> bool:
    """Whether a chunk file has exactly so many rows and matches its CRC-32C. Zarr refuses all others."""
    size = row_bytes * count
    return len(data) == size + _CRC_BYTES and data[size:] == _crc(data[:size])


def rows_in(data: bytes, spec: EncoderSpec, array: str, count: int) -> Shaped[np.ndarray, "rows width"]:
    """The `count` rows of a chunk file, whether or not they match its CRC-32C.

    Rows behind the end of a short file are like rows that are not written.
    """
    rows = empty_rows(spec, array, count)
    num_whole = min(len(data) // rows[0].nbytes, count)
    rows[:num_whole] = np.frombuffer(data, rows.dtype, num_whole * rows.shape[1]).reshape(-1, rows.shape[1])
    return rows


def empty_rows(spec: EncoderSpec, array: str, count: int) -> Shaped[np.ndarray, "rows width"]:
    """Rows that are not written: the codec's fill value in `vectors`, zeros in `keys`."""
    if array == "keys":
        return np.zeros((count, KEY_BYTES), np.uint8)
    codec = codec_of(spec)
    return np.full((count, spec.width), codec.fill, codec.dtype)


def key_row(key: str) -> Shaped[np.ndarray, " bytes"]:
    """A key as a row of `keys`."""
    return np.frombuffer(key.encode().ljust(KEY_BYTES, b"\0"), np.uint8)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")
