"""Shards: ordinary WebDataset tars whose arrays lie aligned and layer by layer, so that a reader can map the file.

A member `<key>.hidden.npy` is an uncompressed (layers, frames, width) array. USTAR's 512-byte blocks and NumPy's padded
header put its first number at a multiple of 64. Beside `<name>.tar` lies `<name>.xxh3`. It holds, for each array in
the order of the tar, the little-endian xxh3-64 of every 64 KiB block within each layer. Its last eight bytes are the
checksum of the whole tar.
"""

import io
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from tokenize import TokenError
from typing import Any, NamedTuple

import msgspec
import numpy as np

from speechclip.errors import Damaged
from speechclip.records import StoredAsset
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.codec import Member, Members, codec_of
from speechclip.store.grace import is_reusable
from speechclip.store.layout import shard_path, sums_path
from speechclip.store.shard_layout import member_places, member_sums, members_at, npy_header

# NumPy parses the header as Python text, which CPython 3.11 can't do in two threads (SystemError, seen).
_HEADER_LOCK = threading.Lock()


class ShardEntry(NamedTuple):
    """One utterance in a tar: its key, the first byte of its numbers, and views of its encoded arrays."""

    key: str
    offset: int
    num_frames: int
    members: Members


def pack_shard(spec: EncoderSpec, features: Iterable[tuple[str, np.ndarray]], provenance: dict[str, Any]) -> bytes:
    """The tar of these pairs of key and frames, in this order. Equal input gives equal bytes."""
    codec = codec_of(spec)
    return pack_members(spec, ((key, codec.encode(frames)) for key, frames in features), provenance)


def pack_members(spec: EncoderSpec, entries: Iterable[tuple[str, Members]], provenance: dict[str, Any]) -> bytes:
    """The same from arrays that are encoded already."""
    layout = codec_of(spec).members(spec.width)
    # Join the pieces at the end. A file in memory would copy each array three times, which takes longer than a GPU.
    pieces: list[bytes | memoryview] = []
    for key, members in entries:
        for member in layout:
            array = members[member.name]
            name = f"{key}{_suffix(member)}"
            pieces += _file(name, npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data)
        notes = {"key": key, "layers": spec.layers, "num_frames": members[layout[0].name].shape[1], **provenance}
        pieces += _file(f"{key}.json", msgspec.json.encode(notes, order="sorted"))
    # Two empty blocks, then zeros to a whole record, as `tarfile` ends a tar.
    num_bytes = sum(map(len, pieces)) + 2 * tarfile.BLOCKSIZE
    return b"".join([*pieces, bytes(2 * tarfile.BLOCKSIZE + -num_bytes % tarfile.RECORDSIZE)])


def describe_shard(tar: bytes, spec: EncoderSpec) -> tuple[bytes, tuple[StoredAsset, ...]]:
    """The checksum file that belongs beside this tar, and where each utterance lies in it.

    Both are read from the tar itself. Raises `Damaged` if it is no tar of frames of this spec.
    """
    sums, stored = bytearray(), []
    for entry in entries_in(tar, spec):
        own = member_sums(entry.members)
        stored.append(
            StoredAsset(
                key=entry.key,
                offset=entry.offset,
                num_frames=entry.num_frames,
                sums_offset=len(sums),
                checksum=digest_of(own),
            )
        )
        sums += own
    return bytes(sums) + tar_sum(tar), tuple(stored)


def is_as_packed(tar: bytes, spec: EncoderSpec) -> bool:
    """Whether `pack_shard` would write this very tar for its arrays, with the same headers and notes."""
    try:
        entries = [(entry.key, entry.members) for entry in entries_in(tar, spec)]
        return pack_members(spec, entries, provenance_in(tar)) == tar
    except Damaged:
        return False


def provenance_in(tar: bytes) -> dict[str, Any]:
    """How a shard was made, according to its first notes. Raises `Damaged` if they can't be read."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            first = next(member for member in members if member.name.endswith(".json"))
        notes = msgspec.json.decode(tar[first.offset_data : first.offset_data + first.size], type=dict[str, Any])
    except (tarfile.TarError, StopIteration, ValueError, OverflowError) as error:
        raise Damaged(f"the notes in a shard can't be read ({error})") from None
    return provenance_of(notes)


def provenance_of(notes: dict[str, Any]) -> dict[str, Any]:
    """How an array was made, according to its notes: all fields but those that describe the array."""
    return {name: value for name, value in notes.items() if name not in ("key", "layers", "num_frames")}


def tar_sum(tar: bytes) -> bytes:
    """The last eight bytes of a checksum file: the little-endian xxh3-64 of the whole tar, headers and all."""
    return digest_of(tar).to_bytes(8, "little", signed=True)


def write_shard(
    storage: Storage, spec: EncoderSpec, task: str, tar: bytes, keys: Sequence[str], *, is_exact: bool = False
) -> tuple[str, tuple[StoredAsset, ...]]:
    """Put the shard and its checksums on storage. Returns its path and where each utterance lies in it.

    A shard of that name may be there already. It is reused if it is whole and its bytes match its checksums, even if
    another machine encoded slightly other numbers; with `is_exact` only if its bytes are these. Otherwise it stays as
    it is, and this shard gets the next generation. So it is if `gc` may delete the old shard soon.
    """
    sums, stored = describe_shard(tar, spec)
    for generation in range(1000):
        path = shard_path(spec.fingerprint, task, keys, generation)
        if storage.create(path, tar) or (is_reusable(storage, path) and storage.read(path) == tar):
            if storage.create(sums_path(path), sums):
                return path, stored
            if is_reusable(storage, sums_path(path)) and storage.read(sums_path(path)) == sums:
                return path, stored
        found = None if is_exact else find_shard(storage, spec, path, keys)
        if found is not None:
            return path, found
    raise Damaged(f"{task}: a thousand damaged shards of that name")


def find_shard(storage: Storage, spec: EncoderSpec, path: str, keys: Sequence[str]) -> tuple[StoredAsset, ...] | None:
    """Where each utterance lies in the shard at `path`, if that shard can be reused; None otherwise.

    It can be reused if it is young, matches its checksums and holds exactly these keys in this order.
    """
    if not is_reusable(storage, path, sums_path(path)):
        return None
    try:
        sums, stored = describe_shard(storage.read(path), spec)
    except Damaged:
        return None
    is_whole = [entry.key for entry in stored] == list(keys) and storage.read(sums_path(path)) == sums
    return stored if is_whole else None


def entries_in(tar: bytes, spec: EncoderSpec) -> Iterator[ShardEntry]:
    """Yield each utterance of the tar. Raises `Damaged` if an array does not have the shape that the spec states."""
    first = codec_of(spec).members(spec.width)[0]
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as files:
            for file in files:
                if file.name.endswith(_suffix(first)):
                    yield _entry(tar, file, spec, first)
    # A damaged NumPy header is Python text that does not parse.
    except (tarfile.TarError, ValueError, SyntaxError, TokenError, OverflowError) as error:
        raise Damaged(f"no shard of {spec.fingerprint} ({error})") from None


def _suffix(member: Member) -> str:
    return f".{member.name}.npy"


def _file(name: str, *data: bytes | memoryview) -> list[bytes | memoryview]:
    """A file of a tar in pieces: its header, its bytes, and zeros to a whole block."""
    header = tarfile.TarInfo(name)
    header.size = sum(map(len, data))
    return [header.tobuf(tarfile.USTAR_FORMAT), *data, bytes(-header.size % tarfile.BLOCKSIZE)]


def _entry(tar: bytes, file: tarfile.TarInfo, spec: EncoderSpec, first: Member) -> ShardEntry:
    header = io.BytesIO(tar[file.offset_data : file.offset_data + 256])
    np.lib.format.read_magic(header)
    with _HEADER_LOCK:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    expected = (len(spec.layers), first.width)
    if len(shape) != 3 or (shape[0], shape[2]) != expected or dtype != first.dtype or fortran:
        raise ValueError(f"{file.name}: {dtype} {shape} is not of the spec")
    offset, num_frames = file.offset_data + header.tell(), shape[1]
    for place in member_places(spec, num_frames)[1:]:
        wanted = npy_header(place.member.dtype, (len(spec.layers), place.num_rows, place.member.width))
        end = offset + place.offset
        if tar[end - len(wanted) : end] != wanted:
            raise ValueError(f"{file.name}: no {place.member.name} of the spec follows it")
    members = members_at(tar, spec, offset, num_frames)
    if members is None:
        raise ValueError(f"{file.name}: the tar ends before its numbers do")
    return ShardEntry(file.name.removesuffix(_suffix(first)), offset, num_frames, members)
