"""Frames: ordinary WebDataset tars whose arrays lie aligned and layer-major, so that a reader can map them.

A member `<key>.hidden.npy` is an uncompressed (layers, frames, width) array. USTAR's 512-byte blocks and NumPy's padded
header put its first number at a multiple of 64. Beside `<name>.tar` stands `<name>.xxh3`: for each array, in
the order of the tar, the little-endian xxh3-64 of every 64 KiB block within each layer, and at its end that of the
whole tar.
"""

import functools
import io
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from speechclip.errors import Damaged, InvalidInput
from speechclip.records import StoredAsset
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import BLOCK_BYTES, blocks_per_layer, digest_of, sums_of, verify_blocks
from speechclip.store.features import Features
from speechclip.store.grace import is_adoptable
from speechclip.store.layout import shard_path, sums_path

HIDDEN = ".hidden.npy"
# NumPy parses the header as Python text, which CPython 3.11 can't do in two threads (SystemError, seen).
_HEADER_LOCK = threading.Lock()


def pack_shard(spec: EncoderSpec, features: Iterable[tuple[str, np.ndarray]], provenance: dict[str, Any]) -> bytes:
    """The tar of these (key, array) pairs in this order; equal input gives equal bytes."""
    # Parts, joined at the end: a file in memory would copy each array three times, and that takes longer than a GPU.
    parts: list[bytes | memoryview] = []
    for key, array in features:
        stored = np.ascontiguousarray(array, dtype=spec.dtype)
        notes = {"key": key, "layers": spec.layers, "num_frames": stored.shape[1], **provenance}
        parts += _member(f"{key}{HIDDEN}", _npy_header(stored), stored.reshape(-1).view(np.uint8).data)
        parts += _member(f"{key}.json", msgspec.json.encode(notes, order="sorted"))
    # Two empty blocks, then zeros to a whole record, as `tarfile` ends a tar.
    num_bytes = sum(map(len, parts)) + 2 * tarfile.BLOCKSIZE
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE + -num_bytes % tarfile.RECORDSIZE)])


def describe_shard(tar: bytes, spec: EncoderSpec) -> tuple[bytes, tuple[StoredAsset, ...]]:
    """The checksum file that belongs beside this tar, and where each array lies: read from the tar itself.

    `Damaged` if it is no tar of arrays of this spec.
    """
    sums, stored = bytearray(), []
    for key, offset, array in arrays_in(tar, spec):
        part = sums_of(array.view(np.uint8).reshape(len(array), -1))
        stored.append(
            StoredAsset(
                key=key, offset=offset, num_frames=array.shape[1], sums_offset=len(sums), checksum=digest_of(part)
            )
        )
        sums += part
    return bytes(sums) + tar_sum(tar), tuple(stored)


def is_as_packed(tar: bytes, spec: EncoderSpec) -> bool:
    """Whether the tar is, to the last byte of its headers and notes, what `pack_shard` makes of its arrays."""
    try:
        return pack_shard(spec, [(key, array) for key, _, array in arrays_in(tar, spec)], provenance_in(tar)) == tar
    except Damaged:
        return False


def provenance_in(tar: bytes) -> dict[str, Any]:
    """What the notes in a shard say of how it was made; `Damaged` where they can't be read."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            first = next(member for member in members if member.name.endswith(".json"))
        notes = msgspec.json.decode(tar[first.offset_data : first.offset_data + first.size], type=dict[str, Any])
    except (tarfile.TarError, StopIteration, ValueError, OverflowError) as error:
        raise Damaged(f"the notes in a shard can't be read ({error}); run `speechclip repair`") from None
    return provenance_of(notes)


def provenance_of(notes: dict[str, Any]) -> dict[str, Any]:
    """What an array's notes say of how it was made: all but what it is."""
    return {name: value for name, value in notes.items() if name not in ("key", "layers", "num_frames")}


def tar_sum(tar: bytes) -> bytes:
    """The last eight bytes of a checksum file: the little-endian xxh3-64 of the whole tar, headers and all."""
    return digest_of(tar).to_bytes(8, "little", signed=True)


def write_shard(
    storage: Storage, spec: EncoderSpec, task: str, tar: bytes, keys: Sequence[str], *, is_exact: bool = False
) -> tuple[str, tuple[StoredAsset, ...]]:
    """Put the shard and its checksums on storage; the path, and what lies there.

    A complete shard of that name is adopted after its bytes agree with its checksums; one that does not, that
    holds other bytes without checksums, or that `gc` may soon free, is left alone, and ours takes the next generation.
    With `is_exact` so is one of other bytes, which another machine may have encoded.
    """
    sums, stored = describe_shard(tar, spec)
    for generation in range(1000):
        path = shard_path(spec.fingerprint, task, keys, generation)
        if storage.create(path, tar) or (is_adoptable(storage, path) and storage.read(path) == tar):
            if storage.create(sums_path(path), sums):
                return path, stored
            if is_adoptable(storage, sums_path(path)) and storage.read(sums_path(path)) == sums:
                return path, stored
        adopted = None if is_exact else find_shard(storage, spec, path, keys)
        if adopted is not None:
            return path, adopted
    raise Damaged(f"{task}: a thousand damaged shards of that name; run `speechclip verify`")


def find_shard(storage: Storage, spec: EncoderSpec, path: str, keys: Sequence[str]) -> tuple[StoredAsset, ...] | None:
    """What lies in the shard at `path`, if it is whole, verified, young and holds just these keys; else None."""
    if not is_adoptable(storage, path, sums_path(path)):
        return None
    try:
        sums, stored = describe_shard(storage.read(path), spec)
    except Damaged:
        return None
    is_whole = [entry.key for entry in stored] == list(keys) and storage.read(sums_path(path)) == sums
    return stored if is_whole else None


def arrays_in(tar: bytes, spec: EncoderSpec) -> Iterator[tuple[str, int, np.ndarray]]:
    """Each array of the tar as (key, offset of its first number, view); `Damaged` if it is not of the spec's shape."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            for member in members:
                if member.name.endswith(HIDDEN):
                    yield _array(tar, member, spec)
    # A damaged npy header is Python text that does not parse.
    except (tarfile.TarError, ValueError, SyntaxError, TokenError, OverflowError) as error:
        raise Damaged(f"no shard of {spec.fingerprint} ({error}); run `speechclip repair`") from None


def _member(name: str, *data: bytes | memoryview) -> list[bytes | memoryview]:
    """A file of a tar in parts: its header, its bytes and zeros to a whole block."""
    member = tarfile.TarInfo(name)
    member.size = sum(map(len, data))
    return [member.tobuf(tarfile.USTAR_FORMAT), *data, bytes(-member.size % tarfile.BLOCKSIZE)]


def _npy_header(array: np.ndarray) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


def _array(tar: bytes, member: tarfile.TarInfo, spec: EncoderSpec) -> tuple[str, int, np.ndarray]:
    file = io.BytesIO(tar[member.offset_data : member.offset_data + 256])
    np.lib.format.read_magic(file)
    with _HEADER_LOCK:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    offset = member.offset_data + file.tell()
    if len(shape) != 3 or (shape[0], shape[2]) != (len(spec.layers), spec.width) or dtype != spec.dtype or fortran:
        raise ValueError(f"{member.name}: {dtype} {shape} is not of the spec")
    count = int(np.prod(shape))
    return member.name.removesuffix(HIDDEN), offset, np.frombuffer(tar, dtype, count, offset).reshape(shape)


@dataclass(frozen=True)
class Location:
    """Where one array lies, from the catalog."""

    shard: str
    offset: int
    num_frames: int
    sums_offset: int
    checksum: int


class Frames(Features):
    """A feature set of frames in one snapshot: `frames[key]` is (layers, frames, width), mapped and verified.

    Whole arrays and windows alike are checked against the block checksums of what they touch.
    """

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table, *, verify: bool = True) -> None:
        super().__init__(storage, spec, entries, verify=verify)
        self._open = functools.lru_cache(maxsize=256)(self._map)
        self._sums = functools.lru_cache(maxsize=1024)(self._read_sums)

    @functools.cached_property
    def _columns(self) -> dict[str, Any]:
        numbers = ("offset", "num_frames", "sums_offset", "checksum")
        columns: dict[str, Any] = {name: self._entries[name].to_numpy() for name in numbers}
        return columns | {"shard": self._entries["shard"].combine_chunks()}

    def locate(self, key: str) -> Location:
        """Where the array of `key` lies; `NotStored` if the snapshot has none."""
        row = self._row(key)
        columns = self._columns
        numbers = (int(columns[name][row]) for name in ("offset", "num_frames", "sums_offset", "checksum"))
        return Location(columns["shard"][row].as_py(), *numbers)

    def num_frames(self, key: str) -> int:
        """How many frames `key` has, from the catalog alone."""
        return self.locate(key).num_frames

    def __getitem__(self, key: str) -> Shaped[np.ndarray, "layers frames width"]:
        place = self.locate(key)
        layer_bytes = place.num_frames * self._row_bytes
        data = self._bytes(place.shard, place.offset, place.offset + len(self.spec.layers) * layer_bytes)
        if self.verify:
            sums = self._block_sums(key, place)
            for layer, expected in enumerate(sums):
                verify_blocks(
                    data[layer * layer_bytes : (layer + 1) * layer_bytes],
                    expected,
                    f"{place.shard}: {key} layer {layer}",
                )
        return data.view(self.spec.dtype).reshape(len(self.spec.layers), place.num_frames, self.spec.width)

    def window(
        self, key: str, *, layers: Sequence[int] | None = None, start: int = 0, stop: int | None = None
    ) -> Shaped[np.ndarray, "layers frames width"]:
        """Frames [start, stop) of the named hidden states; reads and verifies only the blocks that they touch."""
        place = self.locate(key)
        stop = place.num_frames if stop is None else stop
        if not 0 <= start <= stop <= place.num_frames:
            raise InvalidInput(f"{key}: frames {start} to {stop} asked for, {place.num_frames} are stored")
        wanted = self.spec.layers if layers is None else layers
        parts = [self._layer_window(key, place, self._layer_row(layer), start, stop) for layer in wanted]
        return np.stack(parts) if parts else np.empty((0, stop - start, self.spec.width), self.spec.dtype)

    @property
    def _row_bytes(self) -> int:
        return self.spec.width * self.spec.dtype.itemsize

    def _layer_row(self, layer: int) -> int:
        if layer not in self.spec.layers:
            raise InvalidInput(f"{self.fingerprint} holds the hidden states {self.spec.layers}, not {layer}")
        return self.spec.layers.index(layer)

    def _layer_window(self, key: str, place: Location, layer: int, start: int, stop: int) -> np.ndarray:
        layer_bytes = place.num_frames * self._row_bytes
        first, last = start * self._row_bytes // BLOCK_BYTES, -(-stop * self._row_bytes // BLOCK_BYTES)
        low, high = first * BLOCK_BYTES, min(last * BLOCK_BYTES, layer_bytes)
        base = place.offset + layer * layer_bytes
        data = self._bytes(place.shard, base + low, base + high)
        if self.verify:
            verify_blocks(data, self._block_sums(key, place)[layer, first:last], f"{place.shard}: {key} layer {layer}")
        cut = data[start * self._row_bytes - low : stop * self._row_bytes - low]
        return cut.view(self.spec.dtype).reshape(stop - start, self.spec.width)

    def _block_sums(self, key: str, place: Location) -> np.ndarray:
        blocks = blocks_per_layer(place.num_frames * self._row_bytes)
        part = self._sums(place.shard)[place.sums_offset : place.sums_offset + 8 * blocks * len(self.spec.layers)]
        if digest_of(part) != place.checksum:
            raise Damaged(
                f"{sums_path(place.shard)}: the checksums of {key} do not match the catalog's; run `speechclip repair`"
            )
        return np.frombuffer(part, "<u8").reshape(len(self.spec.layers), blocks)

    def _read_sums(self, shard: str) -> bytes:
        try:
            return self.storage.read(sums_path(shard))
        except FileNotFoundError:
            raise Damaged(f"{sums_path(shard)}: the checksum file is gone; run `speechclip repair`") from None

    def _map(self, shard: str) -> np.ndarray:
        address = self.storage.address(shard)
        # The system maps no empty file.
        return np.memmap(address, np.uint8, "r") if os.path.getsize(address) else np.empty(0, np.uint8)

    def _bytes(self, shard: str, start: int, end: int) -> np.ndarray:
        """The bytes of that range: a mapped view of a local file, one range request of a remote one."""
        try:
            if self.storage.is_local:
                data = self._open(shard)[start:end].view(np.ndarray)
            else:
                data = np.frombuffer(self.storage.read(shard, start, end), np.uint8)
        except FileNotFoundError:
            raise Damaged(f"{shard}: the catalog names this shard and it is gone; run `speechclip repair`") from None
        if len(data) != end - start:
            raise Damaged(
                f"{shard}: {end} bytes expected, the file ends at {start + len(data)}; run `speechclip repair`"
            )
        return data
