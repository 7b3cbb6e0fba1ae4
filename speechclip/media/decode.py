"""Decode bytes to 16 kHz mono audio or to an RGB picture.

The names of the rules used here are part of an encoder's fingerprint. If a change here changes values, give the rule a
higher number in spec.py.
"""

import contextlib
import io
import re
import struct
import threading
import warnings

import numpy as np
import PIL
import soundfile
import soxr
from jaxtyping import Float
from PIL import Image, ImageOps

from speechclip.errors import (
    BrokenImage,
    EmptyAudio,
    MachineFailed,
    NotFinite,
    Silent,
    TooLong,
    Truncated,
    Undecodable,
)
from speechclip.media.containers import (
    FFMPEG_DEMUXERS,
    AudioFormat,
    check_complete,
    first_mp3_frame,
    sniff_audio,
    transcode,
)
from speechclip.records import Modality, Record
from speechclip.spec import SAMPLE_RATE

# Tux Paint has a recording at 5 kHz. A damaged header could say 1 Hz and so make 16,000 samples of each one.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
# The header says how much memory is reserved, and it can be wrong. This limit is 4 GiB, or 6.7 hours of 44.1 kHz mono.
MAX_READ_NUMBERS = 1 << 30
# Half a 16-bit step, the smallest that our codecs can make. A-law has no zero, so any constant counts as silence.
SILENT_SWING = 2**-16
# 240 MB as RGB. Pillow warns at 89 million pixels and raises at twice that; below both there is one outcome.
MAX_PIXELS = 80_000_000

_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
# As in "Error opening <_io.BytesIO object at 0x7f...>: Format not recognised".
_BUFFER = re.compile(r".*<_io\.BytesIO object at 0x[0-9a-f]+>: | ?<_io\.BytesIO object at 0x[0-9a-f]+>")
# warnings.catch_warnings changes the filters of the whole process, so two threads would restore each other's.
_FILTERS_LOCK = threading.Lock()


class AudioInfo(Record, frozen=True):
    """The length of a recording at its own rate, and its format. `num_samples` is that of one channel."""

    num_samples: int
    sample_rate: int
    num_channels: int
    format: AudioFormat


def decoder(modality: Modality) -> str:
    """The library that decodes this modality, with its version, for the reason of a rejection. Empty for texts."""
    return {
        "speech": f"libsndfile {soundfile.__libsndfile_version__}",
        "image": f"Pillow {PIL.__version__}",
        "text": "",
    }[modality]


def probe_audio(data: bytes, name: str) -> AudioInfo:
    """The recording's exact length, rate and number of channels.

    For wav and flac they come from the header. Any other format is decoded, because its header may be wrong or missing.
    Raises what `decode_audio` raises, except the errors about the samples' values.
    """
    audio_format, readable = _open(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(readable)) as file:
            num_samples = file.frames
            if audio_format not in ("wav", "flac") or num_samples <= 0:
                num_samples = len(_read(file, file.frames, name))
            info = AudioInfo(
                num_samples=num_samples, sample_rate=file.samplerate, num_channels=file.channels, format=audio_format
            )
    except soundfile.SoundFileError as error:
        _check_memory(error, name)
        raise Undecodable(f"{name}: {_sentence(error)}", "convert the file or delete its row") from None
    if info.num_samples == 0:
        raise EmptyAudio(f"{name}: a {audio_format} without samples", "record it again or delete the row")
    _check_rate(info.sample_rate, name)
    return info


def decode_audio(
    data: bytes,
    *,
    name: str,
    start_sample: int | None = None,
    end_sample: int | None = None,
    max_seconds: float | None = None,
) -> Float[np.ndarray, " samples"]:
    """The waveform in float32 at 16 kHz, the average of its channels. `name` is only for messages.

    `start_sample` and `end_sample`, at the file's own rate, cut out a segment. It is cut before resampling, so it
    equals a file of these samples.

    Raises `TooLong` if there are more than `max_seconds`, after decoding no more than that; `Silent` if no two samples
    differ by half a 16-bit step, as in a constant; `DecoderMissing` for m4a and webm without ffmpeg; and `EmptyAudio`,
    `Undecodable`, `Truncated` or `NotFinite`.
    """
    audio_format, readable = _open(data, name)
    channels, sample_rate = _read_samples(
        readable, audio_format, name, start=start_sample, end=end_sample, max_seconds=max_seconds
    )
    _check_rate(sample_rate, name)
    with np.errstate(invalid="ignore", over="ignore"):
        mono = channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        num_bad = int((~np.isfinite(mono)).sum())
        raise NotFinite(f"{name}: {num_bad} of {len(mono)} samples are NaN or infinite", "record it again")
    # A single sample is too short, not silent.
    is_silent = len(mono) > 1 and float(mono.max()) - float(mono.min()) < SILENT_SWING
    if sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, sample_rate, SAMPLE_RATE, quality="HQ")
    if len(mono) == 0:
        raise EmptyAudio(f"{name}: {len(channels)} samples at {sample_rate} Hz give none at 16 kHz", "delete the row")
    if is_silent:
        raise Silent(f"{name}: {len(channels)} samples of digital silence", "record it again or delete the row")
    return np.ascontiguousarray(mono, dtype=np.float32)


def decode_image(data: bytes, *, name: str) -> Image.Image:
    """The picture in RGB, upright by its EXIF orientation, over white where it is transparent.

    Of an animation it is the first frame. Raises `BrokenImage` for more than `MAX_PIXELS`, for a cut file, and for
    anything that is not a picture in 8 or 16 bits.
    """
    try:
        with _FILTERS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
                _turn_upright(image)
                return _over_white(image)
    except _IMAGE_ERRORS as error:
        _check_memory(error, name)
        raise BrokenImage(
            f"{name}: {len(data)} bytes give no picture ({_sentence(error)})", "convert the file or delete its row"
        ) from None


def _open(data: bytes, name: str) -> tuple[AudioFormat, bytes]:
    """The format, and bytes that libsndfile can read, after a check that the file is complete."""
    if not data:
        raise EmptyAudio(f"{name}: no bytes", "download the file again or delete its row")
    audio_format = sniff_audio(data, name)
    check_complete(audio_format, data, name)
    if audio_format == "mp3":
        # libsndfile does not skip the padding between the tag and the first frame.
        return audio_format, data[first_mp3_frame(data) :]
    return audio_format, transcode(data, audio_format, name) if audio_format in FFMPEG_DEMUXERS else data


def _read_samples(
    readable: bytes,
    audio_format: AudioFormat,
    name: str,
    *,
    start: int | None,
    end: int | None,
    max_seconds: float | None,
) -> tuple[Float[np.ndarray, "samples channels"], int]:
    try:
        with soundfile.SoundFile(io.BytesIO(readable)) as file:
            promised, rate = file.frames, int(file.samplerate)
            stop = promised if end is None else end
            if max_seconds is not None:
                # One sample more is enough to know that it is too long.
                stop = min(stop, (start or 0) + int(max_seconds * rate) + 1)
            # Only in these formats is a seek exact to the sample. The others are decoded from the beginning.
            can_seek = audio_format in ("wav", "flac") and start is not None and 0 < start < promised
            skipped = file.seek(start) if can_seek else 0
            samples = _read(file, stop - skipped, name)
    except soundfile.SoundFileError as error:
        _check_memory(error, name)
        raise Undecodable(f"{name}: {_sentence(error)}; the file is damaged or cut", "download it again") from None
    num_samples = skipped + len(samples)
    if audio_format == "flac" and num_samples < min(promised, stop):
        raise Truncated(f"{name}: only {num_samples} of {promised} samples are there", "download the file again")
    if max_seconds is not None and num_samples - (start or 0) > max_seconds * rate:
        length = (promised if end is None else end) - (start or 0)
        raise TooLong(
            f"{name}: {length} samples at {rate} Hz, more than the {max_seconds:g} s that the encoder takes",
            "make segments of it in the table, by start and end",
        )
    if end is not None and num_samples < end:
        raise Truncated(f"{name}: the segment ends at sample {end}, the recording before that", "ingest it again")
    segment = samples[(start or 0) - skipped : None if end is None else end - skipped]
    if len(segment) == 0:
        bounds = f"[{start or 0}, {num_samples if end is None else end})"
        raise EmptyAudio(f"{name}: no samples in {bounds}", "delete the row")
    return segment, rate


def _read(file: soundfile.SoundFile, num_wanted: int, name: str) -> Float[np.ndarray, "samples channels"]:
    """The next samples, in one read. soundfile seeks after every read, and mp3 decodes to other values after a seek."""
    if num_wanted * file.channels > MAX_READ_NUMBERS:
        raise Undecodable(
            f"{name}: {num_wanted} samples in {file.channels} channels, more than the {MAX_READ_NUMBERS} read at once",
            "cut the recording into parts",
        )
    return np.asarray(file.read(num_wanted, dtype="float32", always_2d=True))


def _check_memory(error: Exception, name: str) -> None:
    """Raise `MachineFailed` if a decoder's error means that it got no memory."""
    if "out of memory" in str(error) or "malloc () failed" in str(error):
        raise MachineFailed(f"{name}: no memory left to decode it", "give the machine more and run again") from None


def _check_rate(sample_rate: int, name: str) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise Undecodable(
            f"{name}: {sample_rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}", "convert the file"
        )


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} can't be made 8-bit")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colour).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The high byte of each grey value. Pillow's own conversion clips at 255 and so gives a white picture."""
    values = np.asarray(image).astype(np.int64)
    grey = (values >> 8).clip(0, 255).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")


def _turn_upright(image: Image.Image) -> None:
    """Turn the picture in place as its EXIF orientation says."""
    image.load()
    # Broken EXIF beside whole pixels is common on the web. Such a picture stays as it is stored.
    with contextlib.suppress(*_IMAGE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def _sentence(error: BaseException) -> str:
    """The error's words without the address of the buffer in memory, which differs in every run."""
    words = _BUFFER.sub("", str(error))
    return words.strip().rstrip(".") or type(error).__name__
