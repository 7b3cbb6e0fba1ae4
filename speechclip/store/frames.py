"""Frames: the speech features of one snapshot, read from shards and verified."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from speechclip.errors import Damaged, InvalidInput
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import BLOCK_BYTES, digest_of, verify_blocks
from speechclip.store.codec import Members, codec_of
from speechclip.store.features import Features
from speechclip.store.layout import sums_path
from speechclip.store.shard_layout import SUM_BYTES, MemberPlace, member_places, sums_length


@dataclass(frozen=True)
class Location:
    """Where one utterance lies, according to the catalog. `StoredAsset` explains the numbers."""

    key: str
    shard: str
    offset: int
    num_frames: int
    sums_offset: int
    checksum: int


class Frames(Features):
    """A feature set of frames in one snapshot: `frames[key]` is (layers, frames, width).

    Each read, of a whole utterance or of a window, checks the block checksums of the bytes that it touches. An array
    of a local store is a view of the mapped file.
    """

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table) -> None:
        super().__init__(storage, spec, entries)
        self._codec = codec_of(spec)
        self._open = functools.lru_cache(maxsize=256)(self._map)
        self._sums = functools.lru_cache(maxsize=1024)(self._read_sums)

    @functools.cached_property
    def _columns(self) -> dict[str, Any]:
        numbers = ("offset", "num_frames", "sums_offset", "checksum")
        columns: dict[str, Any] = {name: self._entries[name].to_numpy() for name in numbers}
        return columns | {"shard": self._entries["shard"].combine_chunks()}

    def locate(self, key: str) -> Location:
        """Where the utterance lies. Raises `NotStored` if the snapshot does not have it."""
        row = self._row(key)
        columns = self._columns
        numbers = (int(columns[name][row]) for name in ("offset", "num_frames", "sums_offset", "checksum"))
        return Location(key, columns["shard"][row].as_py(), *numbers)

    def num_frames(self, key: str) -> int:
        """How many frames the utterance has, from the catalog alone."""
        return self.locate(key).num_frames

    def __getitem__(self, key: str) -> Shaped[np.ndarray, "layers frames width"]:
        location = self.locate(key)
        return self._codec.decode(self._members(location), 0, location.num_frames)

    def members(self, key: str) -> Members:
        """The encoded arrays of the utterance, as they lie in the shard."""
        return self._members(self.locate(key))

    def window(
        self, key: str, *, layers: Sequence[int] | None = None, start: int = 0, stop: int | None = None
    ) -> Shaped[np.ndarray, "layers frames width"]:
        """Frames [start, stop) of the named hidden states. Only the blocks that hold them are read and verified."""
        location = self.locate(key)
        stop = location.num_frames if stop is None else stop
        if not 0 <= start <= stop <= location.num_frames:
            raise InvalidInput(f"{key}: frames {start} to {stop} asked for, {location.num_frames} are stored")
        numbers = [self._layer_number(layer) for layer in (self.spec.layers if layers is None else layers)]
        if not numbers:
            return np.empty((0, stop - start, self.spec.width), self._codec.dtype)
        members = {
            place.member.name: np.stack(
                [self._rows(location, place, layer, *place.member.rows(start, stop)) for layer in numbers]
            )
            for place in member_places(self.spec, location.num_frames)
        }
        return self._codec.decode(members, start, stop)

    def _layer_number(self, layer: int) -> int:
        if layer not in self.spec.layers:
            raise InvalidInput(f"{self.fingerprint} holds the hidden states {self.spec.layers}, not {layer}")
        return self.spec.layers.index(layer)

    def _members(self, location: Location) -> Members:
        places = member_places(self.spec, location.num_frames)
        return {place.member.name: self._whole(location, place) for place in places}

    def _whole(self, location: Location, place: MemberPlace) -> np.ndarray:
        """All rows of one member, verified."""
        num_layers, layer_bytes = len(self.spec.layers), place.layer_bytes
        begin = location.offset + place.offset
        data = self._bytes(location.shard, begin, begin + num_layers * layer_bytes)
        for layer, expected in enumerate(self._block_sums(location, place)):
            what = f"{location.shard}: {location.key} layer {layer}"
            verify_blocks(data[layer * layer_bytes : (layer + 1) * layer_bytes], expected, what)
        return data.view(place.member.dtype).reshape(num_layers, place.num_rows, place.member.width)

    def _rows(self, location: Location, place: MemberPlace, layer: int, start: int, stop: int) -> np.ndarray:
        """The rows [start, stop) of one layer of one member, verified."""
        begin, end = start * place.member.row_bytes, stop * place.member.row_bytes
        first, last = begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        low, high = first * BLOCK_BYTES, min(last * BLOCK_BYTES, place.layer_bytes)
        base = location.offset + place.offset + layer * place.layer_bytes
        data = self._bytes(location.shard, base + low, base + high)
        expected = self._block_sums(location, place)[layer, first:last]
        verify_blocks(data, expected, f"{location.shard}: {location.key} layer {layer}")
        return data[begin - low : end - low].view(place.member.dtype).reshape(stop - start, place.member.width)

    def _block_sums(self, location: Location, place: MemberPlace) -> np.ndarray:
        """The checksums (layers, blocks) of one member, proved by the catalog's checksum of them."""
        length = sums_length(self.spec, location.num_frames)
        own = self._sums(location.shard)[location.sums_offset : location.sums_offset + length]
        if digest_of(own) != location.checksum:
            raise Damaged(f"{sums_path(location.shard)}: the checksums of {location.key} do not match the catalog's")
        count = len(self.spec.layers) * place.blocks
        sums = np.frombuffer(own, "<u8", count, place.first_sum * SUM_BYTES)
        return sums.reshape(len(self.spec.layers), place.blocks)

    def _read_sums(self, shard: str) -> bytes:
        try:
            return self.storage.read(sums_path(shard))
        except FileNotFoundError:
            raise Damaged(f"{sums_path(shard)}: the checksum file is gone") from None

    def _map(self, shard: str) -> np.ndarray:
        address = self.storage.address(shard)
        # The system maps no empty file.
        return np.memmap(address, np.uint8, "r") if os.path.getsize(address) else np.empty(0, np.uint8)

    def _bytes(self, shard: str, start: int, end: int) -> np.ndarray:
        """The bytes [start, end): a mapped view of a local file, or one range request to a remote one."""
        try:
            if self.storage.is_local:
                data = self._open(shard)[start:end].view(np.ndarray)
            else:
                data = np.frombuffer(self.storage.read(shard, start, end), np.uint8)
        except FileNotFoundError:
            raise Damaged(f"{shard}: the catalog names this shard and it is gone") from None
        if len(data) != end - start:
            raise Damaged(f"{shard}: {end} bytes expected, the file ends at {start + len(data)}")
        return data
