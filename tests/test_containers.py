import io
import struct

import numpy as np
import pytest
import soundfile

from speechclip.containers import check_complete, ogg_checksum, ogg_pages, sniff_audio
from speechclip.errors import Truncated, Undecodable


def ogg(num_samples: int = 100_000) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples)
    soundfile.write(buffer, noise, 44_100, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def with_flags(data: bytes, page: int, flags: int) -> bytes:
    """The stream with one page's flags changed and its checksum made right."""
    start, end = list(ogg_pages(data, "x"))[page][:2]
    header = data[start : start + 5] + bytes([flags]) + data[start + 6 : start + 22]
    rest = data[start + 26 : end]
    return data[:start] + header + struct.pack("<I", ogg_checksum(header + bytes(4) + rest)) + rest + data[end:]


def test_the_ogg_checksum_is_that_of_the_encoder() -> None:
    data = ogg()
    pages = list(ogg_pages(data, "x"))
    assert len(pages) > 5
    for page in pages:
        blank = data[page.start : page.start + 22] + bytes(4) + data[page.start + 26 : page.end]
        assert ogg_checksum(blank) == int.from_bytes(data[page.start + 22 : page.start + 26], "little")


def test_an_ogg_cut_between_two_pages_lacks_its_last() -> None:
    data = ogg()
    for page in list(ogg_pages(data, "x"))[:-1]:
        with pytest.raises(Truncated, match="end-of-stream"):
            check_complete("ogg", data[: page.end], "cut.ogg")


def test_an_ogg_without_a_page_in_the_middle_is_damaged() -> None:
    data = ogg()
    page = list(ogg_pages(data, "x"))[3]
    with pytest.raises(Undecodable, match="missing"):
        check_complete("ogg", data[: page.start] + data[page.end :], "gap.ogg")


def test_one_flipped_bit_in_an_ogg_is_seen() -> None:
    data = bytearray(ogg())
    data[len(data) // 2] ^= 1
    with pytest.raises(Undecodable, match="checksum"):
        check_complete("ogg", bytes(data), "bit.ogg")


def test_bytes_after_the_last_ogg_page_do_not_matter() -> None:
    check_complete("ogg", ogg() + b"TAG" + bytes(125), "tagged.ogg")
    check_complete("ogg", ogg() + ogg(), "chained.ogg")


def test_an_ogg_that_never_says_it_ends_is_truncated() -> None:
    check_complete("ogg", with_flags(ogg(), -1, 4), "whole.ogg")
    with pytest.raises(Truncated):
        check_complete("ogg", with_flags(ogg(), -1, 0), "open.ogg")


def test_other_formats_are_named_by_their_first_bytes() -> None:
    for head in (b"FORM\x00\x00\x00\x00AIFF", b".snd", b"#!AMR\n", b"RIFF\x00\x00\x00\x00AVI "):
        with pytest.raises(Undecodable, match="convert"):
            sniff_audio(head + bytes(100), "other")
