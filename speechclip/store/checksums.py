"""Block checksums: xxh3-64 of every 64 KiB within each layer, so that a window verifies only what it reads."""

from typing import Any

import numpy as np
import xxhash
from jaxtyping import UInt8, UInt64
from typing_extensions import Buffer

from speechclip.errors import Damaged

BLOCK_BYTES = 65_536


def digest_of(data: Buffer) -> int:
    """The xxh3-64 of the bytes as a signed integer, because the catalog has no unsigned ones."""
    unsigned = xxhash.xxh3_64_intdigest(data)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def blocks_per_layer(layer_bytes: int) -> int:
    """How many blocks a layer of so many bytes has. The last one may be shorter than 64 KiB."""
    return -(-layer_bytes // BLOCK_BYTES)


def sums_of(layers: UInt8[np.ndarray, "layers bytes"]) -> bytes:
    """The checksums of every block of every layer, as they lie in the checksum file."""
    sums = [_block_sum(layer, start) for layer in layers for start in range(0, len(layer), BLOCK_BYTES)]
    return np.array(sums, dtype="<u8").tobytes()


def verify_blocks(data: UInt8[np.ndarray, " bytes"], expected: UInt64[np.ndarray, " blocks"], what: str) -> None:
    """Raise `Damaged` unless the blocks of `data` have these checksums. `data` starts at the first byte of a block."""
    for index, start in enumerate(range(0, len(data), BLOCK_BYTES)):
        if _block_sum(data, start) != expected[index]:
            raise Damaged(f"{what}: block {index} does not match its checksum")


def _block_sum(data: UInt8[np.ndarray, " bytes"], start: int) -> int:
    block: Any = data[start : start + BLOCK_BYTES]
    return xxhash.xxh3_64_intdigest(block)
