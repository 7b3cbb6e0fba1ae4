import io
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechclip.errors import MachineFailed, Truncated, Undecodable
from speechclip.media.containers import (
    AudioFormat,
    check_complete,
    first_mp3_frame,
    ogg_checksum,
    ogg_pages,
    sniff_audio,
    transcode,
)


def ogg(num_samples: int = 100_000) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples)
    soundfile.write(buffer, noise, 44_100, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def encoded(kind: str, subtype: str, num_samples: int = 40_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(num_samples) / 9), 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_flags(data: bytes, page: int, flags: int) -> bytes:
    """The file with the flags of one page changed and its checksum computed again."""
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


def test_an_ogg_that_never_says_it_ends_is_truncated() -> None:
    check_complete("ogg", with_flags(ogg(), -1, 4), "whole.ogg")
    with pytest.raises(Truncated):
        check_complete("ogg", with_flags(ogg(), -1, 0), "open.ogg")


def test_other_formats_are_named_by_their_first_bytes() -> None:
    for head in (b"FORM\x00\x00\x00\x00AIFF", b".snd", b"#!AMR\n", b"RIFF\x00\x00\x00\x00AVI "):
        with pytest.raises(Undecodable, match="convert"):
            sniff_audio(head + bytes(100), "other")


@pytest.mark.parametrize(
    ("audio_format", "kind", "subtype"),
    [
        ("wav", "RF64", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("ogg", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_two_recordings_in_one_file_are_not_taken_for_the_first(
    audio_format: AudioFormat, kind: str, subtype: str
) -> None:
    first, second = encoded(kind, subtype), encoded(kind, subtype, 30_000)
    with soundfile.SoundFile(io.BytesIO(first + second)) as file:
        assert len(file.read()) < 60_000, "the decoder reads both: the rule can go"
    check_complete(audio_format, first, "one")
    with pytest.raises(Undecodable, match="a second recording follows"):
        check_complete(audio_format, first + second, "two")


def test_an_mp3_of_one_frame_more_than_its_tag_says_is_whole() -> None:
    """Some encoders count the tag's own frame, others do not."""
    data = bytearray(encoded("MP3", "MPEG_LAYER_III"))
    tag = first_mp3_frame(data) + max(data.find(b"Xing"), data.find(b"Info"))
    promised = int.from_bytes(data[tag + 8 : tag + 12], "big")
    for count, is_whole in ((promised, True), (promised + 1, True), (promised - 1, False)):
        data[tag + 8 : tag + 12] = count.to_bytes(4, "big")
        if is_whole:
            check_complete("mp3", bytes(data), "x")
        else:
            with pytest.raises(Undecodable):
                check_complete("mp3", bytes(data), "x")


def ffmpeg_that(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script called ffmpeg that prints a version if asked, and otherwise ends as given."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\n[ "$1" = -version ] && echo "ffmpeg version 7.1 Copyright" && exit 0\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_an_ffmpeg_that_was_killed_says_nothing_of_the_file(
    ended_by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg_that(f"kill -{ended_by.value} $$", tmp_path, monkeypatch)
    with pytest.raises(MachineFailed, match=rf"^clip: .*signal {ended_by.value} .*run again"):
        transcode(b"x", "m4a", "clip")


def test_a_full_disk_says_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg_that("echo 'Error writing trailer: No space left on device' >&2; exit 228", tmp_path, monkeypatch)
    with pytest.raises(MachineFailed, match="make room"):
        transcode(b"x", "webm", "clip")


@pytest.mark.parametrize("script", ["kill -SEGV $$", "echo 'moov atom not found' >&2; exit 1", "exit 0"])
def test_an_ffmpeg_that_fails_or_crashes_is_named_with_its_version(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg_that(script, tmp_path, monkeypatch)
    with pytest.raises(Undecodable, match=r"ffmpeg 7\.1 can't decode it"):
        transcode(b"x", "m4a", "clip")
