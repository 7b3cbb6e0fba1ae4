"""Find the format of a sound file and check that the file is complete.

A decoder turns a cut wav, ogg or mp3 into shorter audio without an error, so we read from the container how much should
be there. Only the bytes count, not the file's name.
"""

import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from speechclip.errors import DecoderMissing, MachineFailed, Truncated, Undecodable

AudioFormat = Literal["wav", "flac", "ogg", "mp3", "m4a", "webm"]

# A stated size from here on means "unknown": streaming writers put it there (ffmpeg 0xFFFFFFFF, sox near 0x7FFFFFFF).
UNKNOWN_RIFF_BYTES = 0x7FFF0000
RIFF_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"BW64")
OGG_LAST = 4  # the end-of-stream flag
# The formats that libsndfile can't read, each with the only demuxer that ffmpeg may use for it.
FFMPEG_DEMUXERS: dict[AudioFormat, str] = {"m4a": "mov", "webm": "matroska"}
FFMPEG_SECONDS = 600
_AGAIN = "download the file again"
# A program that crashes because of its input gets one of these signals. Any other signal comes from outside.
CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)

# A flac starts with its marker and a block of 34 bytes. No bytes inside a flac frame look like that.
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
# kbit/s of layer III for MPEG 1 (True) and for the others: ISO 11172-3 table 2.4.2.3, ISO 13818-3.
_MP3_KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def sniff_audio(data: bytes, name: str) -> AudioFormat:
    """The format by the first bytes; `Undecodable` if it is none that we read."""
    head = data[:12]
    if head[:4] in RIFF_MAGIC and (head[8:12] == b"WAVE" or len(head) < 12):
        return "wav"
    if head[:4] == b"OggS":
        return "ogg"
    if head[4:8] == b"ftyp":
        return "m4a"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    after_tag = _after_id3(data)
    if data[after_tag : after_tag + 4] == b"fLaC":
        return "flac"
    if head[:3] == b"ID3" or _mp3_frame_bytes(data, 0):
        return "mp3"
    raise Undecodable(
        f"{name}: starts with {head!r}, which is no wav, flac, ogg, mp3, m4a or webm", "convert it or delete its row"
    )


def check_complete(audio_format: AudioFormat, data: bytes, name: str) -> None:
    """Raise `Truncated` if the container states more than is there, and `Undecodable` if an Ogg page is damaged.

    A cut flac is found only when it is decoded: each frame has a checksum, and the header states the number of samples.
    Two recordings in one file are `Undecodable`, because decoders read the first and ignore the second.
    """
    if check := _CHECKS.get(audio_format):
        check(data, name)


def transcode(data: bytes, audio_format: AudioFormat, name: str) -> bytes:
    """The first sound track as a wav at its own rate, made by the program `ffmpeg`.

    `DecoderMissing` if there is no ffmpeg, `MachineFailed` if it was killed or the disk is full.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise DecoderMissing(
            f"{name}: {audio_format} needs the program ffmpeg", "install it or convert the file to flac"
        )
    with tempfile.TemporaryDirectory(prefix="speechclip-") as folder:
        # m4a keeps its index at the end, so ffmpeg needs a file in which it can seek. It may use only one
        # demuxer and protocol, so that it does not follow a playlist to other files.
        source, target = Path(folder, "source"), Path(folder, "target.wav")
        source.write_bytes(data)
        command = [program, "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file"]
        command += ["-f", FFMPEG_DEMUXERS[audio_format], "-i", str(source), "-map", "0:a:0"]
        command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-c:a", "pcm_f32le", "-threads", "1", str(target)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FFMPEG_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Undecodable(
                f"{name}: ffmpeg took longer than {FFMPEG_SECONDS} s", "convert the file to flac"
            ) from None
        output = done.stderr.decode(errors="replace").strip()
        if done.returncode < 0 and -done.returncode not in CRASH_SIGNALS:
            raise MachineFailed(
                f"{name}: signal {-done.returncode} ended ffmpeg (out of memory?)", "give it more memory and run again"
            )
        if os.strerror(errno.ENOSPC) in output:
            raise MachineFailed(f"{name}: ffmpeg found no space left in {folder}", "make room and run again")
        if done.returncode != 0 or not target.exists():
            words = output.rpartition("\n")[2] or done.returncode
            raise Undecodable(f"{name}: ffmpeg {_ffmpeg_version(program)} can't decode it ({words})", "convert it")
        return target.read_bytes()


def _ffmpeg_version(program: str) -> str:
    """The third word of what it prints: `ffmpeg version 7.1.1 Copyright (c) ...`."""
    done = subprocess.run([program, "-version"], capture_output=True, timeout=FFMPEG_SECONDS, check=False)
    return (done.stdout.decode(errors="replace").split()[2:3] or ["of unknown version"])[0]


class OggPage(NamedTuple):
    """One page of an Ogg file: where it starts and ends, and the fields of its header (RFC 3533, section 6)."""

    start: int
    end: int
    flags: int
    serial: int
    sequence: int


def ogg_pages(data: bytes, name: str) -> Iterator[OggPage]:
    """The pages, up to the end of the bytes or to the first that is no page after all streams have ended.

    `Truncated` if the last page is cut, `Undecodable` if there is no page where one must start.
    """
    start = 0
    open_streams: set[int] = set()
    while start < len(data):
        if data[start : start + 4] != b"OggS"[: len(data) - start]:
            if not open_streams:
                return
            raise Undecodable(f"{name}: no Ogg page starts at byte {start}, the file is damaged", _AGAIN)
        header = data[start : start + 27]
        num_segments = header[26] if len(header) == 27 else 0
        end = start + 27 + num_segments + sum(data[start + 27 : start + 27 + num_segments])
        if len(header) < 27 or start + 27 + num_segments > len(data) or end > len(data):
            raise Truncated(f"{name}: the last Ogg page, at byte {start}, is cut at byte {len(data)}", _AGAIN)
        flags, serial, sequence = header[5], *struct.unpack_from("<II", header, 14)
        (open_streams.discard if flags & OGG_LAST else open_streams.add)(serial)
        yield OggPage(start, end, flags, serial, sequence)
        start = end


def ogg_checksum(page: bytes) -> int:
    """The checksum of a page whose checksum field is zero: CRC-32 of polynomial 0x04C11DB7, highest bit first.

    zlib computes it with the bits in the opposite order, so we reverse the bits of its input and of its result.
    """
    mirrored = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_BITS_REVERSED), "big")


def _check_ogg(data: bytes, name: str) -> None:
    next_sequence: dict[int, int] = {}
    open_streams: set[int] = set()
    for page in ogg_pages(data, name):
        if next_sequence and not open_streams:
            raise _joined(name, page.start)
        stored = int.from_bytes(data[page.start + 22 : page.start + 26], "little")
        if stored != ogg_checksum(data[page.start : page.start + 22] + bytes(4) + data[page.start + 26 : page.end]):
            raise Undecodable(f"{name}: the Ogg page at byte {page.start} does not match its checksum", _AGAIN)
        if page.sequence != next_sequence.get(page.serial, page.sequence):
            raise Undecodable(f"{name}: pages before byte {page.start} are missing", _AGAIN)
        next_sequence[page.serial] = page.sequence + 1
        (open_streams.discard if page.flags & OGG_LAST else open_streams.add)(page.serial)
    if open_streams:
        raise Truncated(f"{name}: no last page (end-of-stream flag) in {len(data)} bytes", _AGAIN)


def _check_flac(data: bytes, name: str) -> None:
    second = _FLAC_START.search(data, _after_id3(data) + 1)
    if second:
        raise _joined(name, second.start())


def _check_wav(data: bytes, name: str) -> None:
    order = ">" if data[:4] == b"RIFX" else "<"
    wide_bytes = None
    position = 12
    while position + 8 <= len(data):
        chunk, num_bytes = struct.unpack_from(f"{order}4sI", data, position)
        position += 8
        if chunk == b"ds64" and position + 16 <= len(data):
            wide_bytes = struct.unpack_from(f"{order}Q", data, position + 8)[0]
        is_wide = wide_bytes is not None and num_bytes == 0xFFFFFFFF
        declared = wide_bytes if is_wide and wide_bytes is not None else num_bytes
        there = len(data) - position
        if chunk == b"data":
            if declared > there and (is_wide or declared < UNKNOWN_RIFF_BYTES) and not _is_miscounted(data):
                raise Truncated(f"{name}: the header states {declared} bytes of samples, {there} are there", _AGAIN)
            after = position + declared + declared % 2
            if data[after : after + 4] in RIFF_MAGIC and data[after + 8 : after + 12] == b"WAVE":
                raise _joined(name, after)
            return
        position += declared + declared % 2
    raise Truncated(f"{name}: ends after {len(data)} bytes, before the samples start", _AGAIN)


def _is_miscounted(data: bytes) -> bool:
    """Whether a wav is whole although its header states more samples, as in some recordings of Flickr8k.

    The header also states the length of the whole file. In a cut file both lengths are wrong. If the length of the file
    is right, then only the number of samples was written wrong, and all samples are there.
    """
    (num_after,) = struct.unpack_from(">I" if data[:4] == b"RIFX" else "<I", data, 4)
    # Some writers don't count the byte that pads a chunk of odd length.
    return num_after + 8 in (len(data), len(data) - 1)


def _check_mp3(data: bytes, name: str) -> None:
    """Count the frames by their headers and compare with the Xing or Info tag, if there is one."""
    first = position = first_mp3_frame(data)
    num_frames = 0
    while (num_bytes := _mp3_frame_bytes(data, position)) and position + num_bytes <= len(data):
        position += num_bytes
        num_frames += 1
    is_cut = num_bytes > 0 or 0 < len(data) - position < 4
    promised = _xing_frames(data[first : first + 256])
    if first == len(data) and _after_id3(data) < len(data):
        raise Undecodable(
            f"{name}: starts like an mp3, but no two frames follow each other", "convert it or delete its row"
        )
    if num_frames == 0:
        raise Truncated(f"{name}: no whole mp3 frame in {len(data)} bytes", _AGAIN)
    # Most encoders don't count the tag's own frame, but a few do. So one frame more or less is allowed.
    if (promised is None and is_cut) or (promised is not None and num_frames - (1 if is_cut else 0) < promised):
        raise Truncated(f"{name}: {num_frames} whole mp3 frames of {promised or 'an unknown number'}", _AGAIN)
    if promised is not None and num_frames > promised + 1:
        raise _joined(name, position)


def _mp3_frame_bytes(data: bytes, position: int) -> int:
    """The length of the frame whose header is at `position`, 0 if there is no header."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
        return 0
    version, is_layer_3 = data[position + 1] >> 3 & 3, data[position + 1] >> 1 & 3 == 1
    bitrate, rate, padding = data[position + 2] >> 4, data[position + 2] >> 2 & 3, data[position + 2] >> 1 & 1
    if version == 1 or not is_layer_3 or bitrate in (0, 15) or rate == 3:
        return 0
    return (144 if version == 3 else 72) * 1000 * _MP3_KILOBITS[version == 3][bitrate] // _MP3_RATES[version][
        rate
    ] + padding


def first_mp3_frame(data: bytes) -> int:
    """Where the frames start: after the ID3 tag, and after the padding that some writers add to it."""
    position = _after_id3(data)
    while position >= 0:
        num_bytes = _mp3_frame_bytes(data, position)
        if num_bytes and (_mp3_frame_bytes(data, position + num_bytes) or position + num_bytes >= len(data)):
            return position
        position = data.find(b"\xff", position + 1)
    return len(data)


def _xing_frames(frame: bytes) -> int | None:
    for tag in (b"Xing", b"Info"):
        at = frame.find(tag)
        if at >= 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int.from_bytes(frame[at + 8 : at + 12], "big")
    return None


def _after_id3(data: bytes) -> int:
    """The position after an ID3v2 tag, 0 if there is none. The size of the tag is in four bytes of seven bits."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    footer = 10 if data[5] & 0x10 else 0
    return 10 + footer + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])


def _check_m4a(data: bytes, name: str) -> None:
    position = 0
    while position + 8 <= len(data):
        num_bytes, kind = struct.unpack_from(">I4s", data, position)
        if num_bytes == 1 and position + 16 <= len(data):
            num_bytes = struct.unpack_from(">Q", data, position + 8)[0]
        if num_bytes == 0:
            return
        if num_bytes < 8 or position + num_bytes > len(data):
            raise Truncated(
                f"{name}: box {kind!r} at byte {position} needs {num_bytes} bytes, the file has {len(data)}", _AGAIN
            )
        position += num_bytes


def _check_webm(data: bytes, name: str) -> None:
    position = 0
    for id_bytes in (4, 4):
        first = data[position + id_bytes : position + id_bytes + 1]
        width = 9 - first[0].bit_length() if first and first[0] else 8
        size = int.from_bytes(data[position + id_bytes : position + id_bytes + width], "big") & ((1 << 7 * width) - 1)
        position += id_bytes + width
        if size == (1 << 7 * width) - 1:
            return
        position += size
        if position > len(data):
            raise Truncated(f"{name}: the header states {position} bytes, {len(data)} are there", _AGAIN)


def _joined(name: str, position: int) -> Undecodable:
    return Undecodable(
        f"{name}: a second recording follows the first, before byte {position}, and decoders would ignore it",
        "split the file, or join the two by an audio program",
    )


_CHECKS: dict[AudioFormat, Callable[[bytes, str], None]] = {
    "wav": _check_wav,
    "flac": _check_flac,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
    "m4a": _check_m4a,
    "webm": _check_webm,
}
