"""Hostile inputs by name: how to make each one, what ingest must say, and its outcome in the ledger."""

import contextlib
import ctypes
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from PIL import Image

Make = Callable[[Path], Any]
KEPT = "accepted"
STORED = "stored"


@dataclass(frozen=True)
class Case:
    """One row of the table that is ingested. `make` puts a file at a path; `later` changes it after ingest."""

    name: str
    column: Literal["audio", "image", "text"]
    make: Make
    outcome: str
    at_ingest: str = KEPT
    file: str = ""
    later: Make | None = None
    start: float | None = None
    end: float | None = None
    text: str = ""


def tone(num_samples: int = 4_800, rate: int = 16_000) -> np.ndarray:
    """A sine, each call at another pitch, so that no two files have one key."""
    return (0.5 * np.sin(2 * np.pi * next(_PITCHES) * np.arange(num_samples) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16", **more: str) -> bytes:
    """A sound file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, **more)
    return buffer.getvalue()


def wav(num_samples: int = 4_800, rate: int = 16_000, subtype: str = "PCM_16", **more: str) -> bytes:
    """A tone as wav."""
    return encoded(tone(num_samples, rate), rate, "WAV", subtype, **more)


def flac(num_samples: int = 48_000) -> bytes:
    """A tone as flac."""
    return encoded(tone(num_samples), kind="FLAC")


def ogg() -> bytes:
    """A tone as Ogg Vorbis."""
    return encoded(tone(48_000), kind="OGG", subtype="VORBIS")


def mp3() -> bytes:
    """A tone as mp3."""
    return encoded(tone(48_000), kind="MP3", subtype="MPEG_LAYER_III")


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """A picture of noise, each call another one."""
    generator = np.random.default_rng(next(_PITCHES))
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Make root obey file permissions as other users do (Linux, man 2 capset)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, kept) == 0
    lowered = (ctypes.c_uint32 * 6)(*kept)
    # The first number holds the effective capabilities; bits 1 and 2 are CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    lowered[0] &= ~0b110
    assert libc.capset(header, lowered) == 0
    try:
        yield
    finally:
        assert libc.capset(header, kept) == 0


@contextlib.contextmanager
def ended_pipes(folder: Path, seconds: float = 20) -> Iterator[None]:
    """Close the pipes of the folder after some seconds, so that a reader gets no data and the test fails, not hangs."""
    ends = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in folder.iterdir() if path.is_fifo()]
    timer = threading.Timer(seconds, lambda: [os.close(end) for end in ends])
    timer.start()
    yield
    if timer.is_alive():
        timer.cancel()
        for end in ends:
            os.close(end)


def _file(make: Callable[[], bytes]) -> Make:
    return lambda path: path.write_bytes(make())


def sound(name: str, make: Callable[[], bytes], outcome: str, **more: Any) -> Case:
    return Case(name, "audio", _file(make), outcome, **more)


def image(name: str, make: Callable[[], bytes], outcome: str, **more: Any) -> Case:
    return Case(name, "image", _file(make), outcome, **more)


def caption(name: str, text: str, outcome: str) -> Case:
    return Case(name, "text", lambda path: None, outcome, text=text)


def place(name: str, make: Make, at_ingest: str, **more: Any) -> Case:
    """A source without bytes that can be read."""
    return Case(name, "audio", make, at_ingest, at_ingest, **more)


def _nothing(path: Path) -> None:
    pass


def _forbidden(path: Path) -> None:
    path.write_bytes(wav())
    path.chmod(0)


def _sparse_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _link_to_a_file(path: Path) -> None:
    path.with_suffix(".target").write_bytes(wav())
    path.symlink_to(path.with_suffix(".target"))


def _linked_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _one_step() -> np.ndarray:
    samples = np.zeros(4_800, np.int16)
    samples[777] = 1
    return samples


def _with(samples: np.ndarray, value: float) -> np.ndarray:
    changed = samples.astype(np.float64)
    changed[len(changed) // 2] = value
    return changed


def _zeroed(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def _silent_inside() -> np.ndarray:
    samples = tone()
    samples[1_600:3_200] = 0
    return samples


def _animation(kind: str) -> bytes:
    return saved(picture(), kind, save_all=True, append_images=[picture(), picture()], duration=50)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(), "JPEG", exif=exif)


def _palette() -> bytes:
    return saved(picture().quantize(16), "PNG", transparency=bytes([0, 128, 255]))


def _overstated() -> bytes:
    """A wav whose length of the samples is wrong and whose length of the file is right."""
    data = wav()
    at = data.index(b"data") + 4
    return data[:at] + (9_700).to_bytes(4, "little") + data[at + 4 :]


_PITCHES = itertools.count(200)
_ID3 = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
_M4A = b"\x00\x00\x00\x10ftypM4A \x00\x00\x00\x00"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'

# fmt: off
CASES = (
    # How much sound there is.
    sound("a good recording", wav, STORED),
    sound("zero bytes", lambda: b"", "empty-audio"),
    sound("a header without samples", lambda: wav(0), "empty-audio"),
    sound("half a header", lambda: wav()[:20], "truncated"),
    sound("one sample", lambda: encoded(np.array([0.3])), "too-short"),
    sound("399 samples", lambda: wav(399), "too-short"),
    sound("400 samples", lambda: wav(400), STORED),
    sound("three hours", lambda: wav(3 * 3600 * 1_000, 1_000, "PCM_U8"), "too-long"),
    sound("three hours, a minute of it wanted", lambda: wav(3 * 3600 * 1_000, 1_000, "PCM_U8"), STORED,
          start=10_000, end=10_060),
    sound("120 seconds", lambda: wav(120 * 16_000), STORED),
    sound("120 seconds and a sample", lambda: wav(120 * 16_000 + 1), "too-long"),
    sound("120 seconds and a sample at 8 kHz", lambda: wav(120 * 8_000 + 1, 8_000), "too-long"),
    # Values of the samples.
    sound("NaN", lambda: encoded(_with(tone(), np.nan), subtype="FLOAT"), "not-finite"),
    sound("infinity", lambda: encoded(_with(tone(), -np.inf), subtype="FLOAT"), "not-finite"),
    sound("float64 beyond float32", lambda: encoded(_with(tone(), 1e300), subtype="DOUBLE"), "not-finite"),
    sound("digital silence", lambda: encoded(np.zeros(4_800)), "silent"),
    sound("digital silence in A-law, which has no zero", lambda: encoded(np.zeros(4_800), subtype="ALAW"), "silent"),
    sound("a constant, never zero", lambda: encoded(np.full(4_800, 0.25)), "silent"),
    sound("two channels that cancel", lambda: encoded(np.outer(tone(), [1, -1]), subtype="FLOAT"), "silent"),
    sound("a silent segment of a loud file", lambda: encoded(_silent_inside()), "silent", start=0.1, end=0.2),
    sound("one sample of one 16-bit step", lambda: encoded(_one_step()), STORED),
    sound("clipping", lambda: encoded(np.sign(tone())), STORED),
    # Number formats, rates and channels.
    sound("8-bit", lambda: wav(subtype="PCM_U8"), STORED),
    sound("24-bit", lambda: wav(subtype="PCM_24"), STORED),
    sound("32-bit integers", lambda: wav(subtype="PCM_32"), STORED),
    sound("float32", lambda: wav(subtype="FLOAT"), STORED),
    sound("float64", lambda: wav(subtype="DOUBLE"), STORED),
    sound("A-law", lambda: wav(subtype="ALAW"), STORED),
    sound("mu-law", lambda: wav(subtype="ULAW"), STORED),
    sound("ADPCM", lambda: wav(subtype="IMA_ADPCM"), STORED),
    sound("big-endian", lambda: wav(endian="BIG"), STORED),
    sound("96 kHz", lambda: wav(48_000, 96_000), STORED),
    sound("8 kHz", lambda: wav(4_000, 8_000), STORED),
    sound("500 Hz", lambda: wav(4_000, 500), "undecodable"),
    sound("5.1", lambda: encoded(np.outer(tone(), np.ones(6)), kind="WAVEX"), STORED),
    sound("5.1 with NaN in one channel", lambda: encoded(
        np.stack([tone(), _with(tone(), np.nan), *[tone()] * 4], 1), kind="WAVEX", subtype="FLOAT"), "not-finite"),
    # Containers.
    sound("RF64", lambda: encoded(tone(), kind="RF64"), STORED),
    sound("W64", lambda: encoded(tone(), kind="W64"), "undecodable"),
    sound("AIFF", lambda: encoded(tone(), kind="AIFF"), "undecodable"),
    sound("m4a where ffmpeg is missing", lambda: _M4A, "decoder-missing"),
    sound("mp3 after an ID3 tag", lambda: _ID3 + mp3(), STORED),
    sound("mp3 after a tag and padding", lambda: _ID3 + bytes(3_000) + mp3(), STORED),
    sound("a cut wav", lambda: wav()[:-400], "truncated"),
    sound("a cut flac", lambda: flac()[:-400], "undecodable"),
    sound("a cut ogg", lambda: ogg()[:-400], "truncated"),
    sound("a cut opus", lambda: encoded(tone(48_000), kind="OGG", subtype="OPUS")[:-400], "truncated"),
    sound("a cut mp3", lambda: mp3()[:-400], "truncated"),
    sound("a flac with a zeroed middle", lambda: _zeroed(flac()), "undecodable"),
    sound("an ogg with a zeroed middle", lambda: _zeroed(ogg()), "undecodable"),
    sound("a whole wav whose header states more", _overstated, STORED),
    sound("a wav with garbage after it", lambda: wav() + b"garbage" * 99, STORED),
    sound("an ogg with garbage after it", lambda: ogg() + b"garbage" * 99, STORED),
    sound("a flac with garbage after it", lambda: flac() + b"garbage" * 99, STORED),
    sound("two wavs in one file", lambda: wav() + wav(), "undecodable"),
    sound("two oggs in one file", lambda: ogg() + ogg(), "undecodable"),
    sound("two flacs in one file", lambda: flac() + flac(), "undecodable"),
    sound("two mp3s in one file", lambda: mp3() + mp3(), "undecodable"),
    # Names.
    sound("an mp3 named wav", mp3, STORED, file="mp3.wav"),
    sound("a text named wav", lambda: b"This is no recording.\n" * 99, "undecodable", file="text.wav"),
    sound("a picture named wav", lambda: saved(picture()), "undecodable", file="picture.wav"),
    sound("no extension", wav, STORED, file="recording"),
    sound("unicode in the name", wav, STORED, file="Übung 日本 🐧 \u202e.wav"),
    sound("a newline in the name", wav, STORED, file="two\nlines.wav"),
    sound("spaces in the name", wav, STORED, file="a b  c.wav"),
    sound("a leading dash", wav, STORED, file="-rf.wav"),
    sound("%20 in the name", wav, STORED, file="a%20b.wav"),
    sound("a pattern in the name", wav, STORED, file="[a-z]*?.wav"),
    sound("a tilde in the name", wav, STORED, file="~root.wav"),
    sound("a name of 255 bytes", wav, STORED, file="x" * 251 + ".wav"),
    place("a name of 256 bytes", _nothing, "source-unreadable", file="x" * 252 + ".wav"),
    place("a zero byte in the name", _nothing, "source-unreadable", file="zero\0byte.wav"),
    # Not a file.
    place("a missing file", _nothing, "source-missing"),
    place("a file as a folder", _nothing, "source-missing", file="recording/below.wav"),
    place("a folder", Path.mkdir, "source-unreadable"),
    place("a link to nothing", lambda path: path.symlink_to("nowhere"), "source-missing"),
    place("a loop of links", lambda path: path.symlink_to(path), "source-unreadable"),
    place("a pipe that nobody writes", _fifo, "source-unreadable"),
    place("a device", lambda path: path.symlink_to("/dev/zero"), "source-unreadable"),
    place("a file that nobody may read", _forbidden, "source-unreadable"),
    place("a sparse terabyte", _sparse_terabyte, "source-unreadable"),
    Case("a link to a file", "audio", _link_to_a_file, STORED),
    sound("a segment after the end", wav, "segment-outside", at_ingest="segment-outside", start=50, end=60),
    # Changed after ingest.
    sound("another recording since ingest", wav, "source-changed", later=_file(wav)),
    sound("emptied since ingest", wav, "source-changed", later=lambda path: path.write_bytes(b"")),
    sound("deleted since ingest", wav, "source-missing", later=Path.unlink),
    sound("a folder since ingest", wav, "source-unreadable", later=_linked_folder),
    sound("a pipe since ingest", wav, "source-unreadable", later=_fifo),
    sound("forbidden since ingest", wav, "source-unreadable", later=lambda path: path.chmod(0)),
    sound("mended since ingest", lambda: wav()[:-400], "source-changed", later=_file(wav)),
    # Pictures.
    image("a good picture", lambda: saved(picture()), STORED),
    image("a picture of zero bytes", lambda: b"", "broken-image"),
    image("CMYK", lambda: saved(picture(mode="CMYK"), "JPEG"), STORED),
    image("16-bit", lambda: saved(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)), STORED),
    image("an animated gif", lambda: _animation("GIF"), STORED),
    image("an animated webp", lambda: _animation("WEBP"), STORED),
    image("1x1", lambda: saved(picture(1, 1)), STORED),
    image("20,000 pixels wide", lambda: saved(picture(20_000, 20)), STORED),
    image("20,000 x 4,001 pixels", lambda: saved(Image.new("1", (20_000, 4_001))), "broken-image"),
    image("a strip of 1,500,000 x 1", lambda: saved(Image.new("L", (1_500_000, 1))), "broken-image"),
    image("a decompression bomb", lambda: saved(Image.new("1", (30_000, 30_000))), "broken-image"),
    image("a palette with transparency", _palette, STORED),
    image("grey and transparent", lambda: saved(picture(mode="LA")), STORED),
    image("EXIF rotated", _turned, STORED),
    image("a cut jpeg", lambda: saved(picture(), "JPEG")[:-200], "broken-image"),
    image("a cut png", lambda: saved(picture())[:-200], "broken-image"),
    image("a jpeg with garbage after it", lambda: saved(picture(), "JPEG") + b"garbage" * 99, STORED),
    image("two jpegs of one camera", lambda: saved(picture(), "MPO", save_all=True, append_images=[picture()]), STORED),
    image("bmp", lambda: saved(picture(), "BMP"), STORED),
    image("ico", lambda: saved(picture(), "ICO"), "broken-image"),
    image("svg", lambda: _SVG, "broken-image"),
    image("float tiff", lambda: saved(picture(mode="F"), "TIFF"), "broken-image"),
    image("a recording named png", wav, "broken-image", file="recording.png"),
    image("a png named wav", lambda: saved(picture()), STORED, file="really-a-picture.wav"),
    image("a picture changed since ingest", lambda: saved(picture()), "source-changed", later=_file(lambda: b"x")),
    # Texts.
    caption("a good text", "a red circle", STORED),
    caption("white space", " \t\u2003\n", "empty-text"),
    caption("a zero byte", "a red\0circle", STORED),
    caption("100,000 characters", "word " * 20_000, STORED),
    caption("emoji", "👩‍🚀🏳️‍🌈", STORED),
    caption("right to left", "\u05e2\u05d9\u05d2\u05d5\u05dc \u202e\u05d0\u05d3\u05d5\u05dd", STORED),
    caption("line breaks", "a\r\nred\u2028circle\x85", STORED),
)
# fmt: on
