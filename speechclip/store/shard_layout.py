"""Where the arrays of one utterance and their checksums lie in a shard.

The tar holds for each utterance one `.npy` file for each member of the codec, and then its notes in a `.json` file. The
catalog states where the first number of the first member lies. All other places follow from it, from the spec and from
the number of frames, because tar headers and NumPy headers have known sizes.
"""

import io
import tarfile
from typing import Any, NamedTuple

import numpy as np

from speechclip.spec import EncoderSpec
from speechclip.store.checksums import blocks_per_layer, sums_of
from speechclip.store.codec import Member, Members, codec_of

SUM_BYTES = 8


class MemberPlace(NamedTuple):
    """Where one member of an utterance lies.

    `offset` is the first byte of its numbers, counted from the first number of the utterance. `blocks` is how many
    blocks each layer has. `first_sum` is how many checksums of the utterance come before those of this member.
    """

    member: Member
    offset: int
    num_rows: int
    layer_bytes: int
    blocks: int
    first_sum: int


def member_places(spec: EncoderSpec, num_frames: int) -> list[MemberPlace]:
    """The place of each member of an utterance with so many frames, in their order in the shard."""
    places: list[MemberPlace] = []
    for member in codec_of(spec).members(spec.width):
        num_rows = member.rows(0, num_frames)[1]
        layer_bytes = num_rows * member.row_bytes
        offset, first_sum = _after(spec, places, member, num_rows) if places else (0, 0)
        places.append(MemberPlace(member, offset, num_rows, layer_bytes, blocks_per_layer(layer_bytes), first_sum))
    return places


def sums_length(spec: EncoderSpec, num_frames: int) -> int:
    """The bytes that the checksums of one utterance take in the checksum file."""
    last = member_places(spec, num_frames)[-1]
    return SUM_BYTES * (last.first_sum + len(spec.layers) * last.blocks)


def notes_offset(spec: EncoderSpec, offset: int, num_frames: int) -> int:
    """Where the notes of the utterance that lies at `offset` begin in the tar: the first byte of their tar header."""
    last = member_places(spec, num_frames)[-1]
    return _whole_blocks(offset + last.offset + len(spec.layers) * last.layer_bytes)


def members_at(tar: bytes, spec: EncoderSpec, offset: int, num_frames: int) -> Members | None:
    """Views of the arrays of the utterance that lies at `offset`, whole or damaged. None if the tar ends too early."""
    found = {}
    for place in member_places(spec, num_frames):
        shape = (len(spec.layers), place.num_rows, place.member.width)
        start = offset + place.offset
        if start + len(spec.layers) * place.layer_bytes > len(tar):
            return None
        array = np.frombuffer(tar, place.member.dtype, int(np.prod(shape)), start)
        found[place.member.name] = array.reshape(shape)
    return found


def empty_members(spec: EncoderSpec, num_frames: int) -> Members:
    """Arrays of zeros in the place of an utterance with so many frames."""
    return {
        place.member.name: np.zeros((len(spec.layers), place.num_rows, place.member.width), place.member.dtype)
        for place in member_places(spec, num_frames)
    }


def member_sums(members: Members) -> bytes:
    """The block checksums of one utterance, as they lie in the checksum file."""
    return b"".join(sums_of(array.view(np.uint8).reshape(len(array), -1)) for array in members.values())


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of a `.npy` file, as NumPy writes it."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _after(spec: EncoderSpec, places: list[MemberPlace], member: Member, num_rows: int) -> tuple[int, int]:
    """The offset and the first checksum of a member that follows these."""
    last, first = places[-1], places[0]
    # Tar blocks count from the start of the file, and the first number lies behind a NumPy header.
    header = len(_header_of(spec, first.member, first.num_rows))
    end = _whole_blocks(header + last.offset + len(spec.layers) * last.layer_bytes) - header
    offset = end + tarfile.BLOCKSIZE + len(_header_of(spec, member, num_rows))
    return offset, last.first_sum + len(spec.layers) * last.blocks


def _header_of(spec: EncoderSpec, member: Member, num_rows: int) -> bytes:
    return npy_header(member.dtype, (len(spec.layers), num_rows, member.width))


def _whole_blocks(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
