"""Bytes to 16 kHz mono or RGB.

The rules here enter an encoder's fingerprint by their names; a rule whose values change gets a higher number.
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

# Tux Paint has a recording at 5 kHz; a header that says 1 Hz would make one sample into 16,000.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
# Memory is reserved by what the header promises, and headers lie: 4 GiB at most, 6.7 hours of mono at 44.1 kHz.
MAX_READ_NUMBERS = 1 << 30
# Half a 16-bit step: no codec of ours makes one sound of less, and A-law has no zero, so a constant is silence too.
SILENT_SWING = 2**-16
# Below Pillow's own limit (89 million), so that a bomb has one outcome: 240 MB as RGB.
MAX_PIXELS = 80_000_000

_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
# As in "Error opening <_io.BytesIO object at 0x7f...>: Format not recognised".
_BUFFER = re.compile(r".*<_io\.BytesIO object at 0x[0-9a-f]+>: | ?<_io\.BytesIO object at 0x[0-9a-f]+>")
# warnings.catch_warnings swaps the filters of the whole process: two threads would restore each other's.
_FILTERS_LOCK = threading.Lock()


class AudioInfo(Record, frozen=True):
    """What a recording holds, at its own rate. `num_samples` counts each channel."""

    num_samples: int
    sample_rate: int
    num_channels: int
    format: AudioFormat


def decoder(modality: Modality) -> str:
    """The decoder and its version, as a rejection by the bytes names it; texts have none."""
    return {
        "speech": f"libsndfile {soundfile.__libsndfile_version__}",
        "image": f"Pillow {PIL.__version__}",
        "text": "",
    }[modality]


def probe_audio(data: bytes, name: str) -> AudioInfo:
    """The recording's exact length, rate and channels; raises as `decode_audio` does, but for what the samples say.

    A wav or flac is believed by its header; every other format is decoded, for there the header may lie or be absent.
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
        raise Undecodable(f"{name}: {_sentence(error)}; convert or drop the file") from None
    if info.num_samples == 0:
        raise EmptyAudio(f"{name}: a {audio_format} without samples; record it again or drop the row")
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
    """The waveform in float32 at 16 kHz, channels averaged; `name` only serves the errors.

    A segment, [start_sample, end_sample) at the file's own rate, is cut before resampling, so it equals a file of those
    samples. More than `max_seconds` is `TooLong`, and no more than that is decoded. Digital silence is `Silent`: no two
    samples differ by half a 16-bit step, so a constant is silent and one sample of one step is not. Raises too
    `EmptyAudio`, `Undecodable`, `Truncated`, `NotFinite`, or `DecoderMissing` (m4a, webm: ffmpeg).
    """
    audio_format, readable = _open(data, name)
    channels, sample_rate = _read_samples(
        readable, audio_format, name, start=start_sample, end=end_sample, max_seconds=max_seconds
    )
    _check_rate(sample_rate, name)
    with np.errstate(invalid="ignore", over="ignore"):
        mono = channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise NotFinite(f"{name}: {int((~np.isfinite(mono)).sum())} of {len(mono)} samples are NaN or infinite")
    # One sample alone is short, not silent.
    is_silent = len(mono) > 1 and float(mono.max()) - float(mono.min()) < SILENT_SWING
    if sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, sample_rate, SAMPLE_RATE, quality="HQ")
    if len(mono) == 0:
        raise EmptyAudio(f"{name}: {len(channels)} samples at {sample_rate} Hz leave none at 16 kHz; drop the row")
    if is_silent:
        raise Silent(f"{name}: {len(channels)} samples of digital silence; record it again or drop the row")
    return np.ascontiguousarray(mono, dtype=np.float32)


def decode_image(data: bytes, *, name: str) -> Image.Image:
    """The picture in RGB, upright by its EXIF orientation, over white where it is transparent; the first if animated.

    More than `MAX_PIXELS`, a cut file, or anything that isn't a picture in 8 or 16 bits is `BrokenImage`.
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
        raise BrokenImage(f"{name}: {len(data)} bytes give no picture ({_sentence(error)}); mend or drop it") from None


def _open(data: bytes, name: str) -> tuple[AudioFormat, bytes]:
    """The format, and bytes that libsndfile can read, known to be complete as far as the container tells."""
    if not data:
        raise EmptyAudio(f"{name}: no bytes; fetch the file again or drop the row")
    audio_format = sniff_audio(data, name)
    check_complete(audio_format, data, name)
    if audio_format == "mp3":
        # libsndfile knows no padding between the tag and the first frame.
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
                # One sample beyond is enough to tell.
                stop = min(stop, (start or 0) + int(max_seconds * rate) + 1)
            # Only here is a seek exact to the sample; elsewhere the decoder must come from the beginning.
            can_seek = audio_format in ("wav", "flac") and start is not None and 0 < start < promised
            skipped = file.seek(start) if can_seek else 0
            samples = _read(file, stop - skipped, name)
    except soundfile.SoundFileError as error:
        _check_memory(error, name)
        raise Undecodable(f"{name}: {_sentence(error)}; the file is damaged or cut, fetch it again") from None
    num_samples = skipped + len(samples)
    if audio_format == "flac" and num_samples < min(promised, stop):
        raise Truncated(f"{name}: {num_samples} samples of {promised} are there; fetch the file again")
    if max_seconds is not None and num_samples - (start or 0) > max_seconds * rate:
        length = (promised if end is None else end) - (start or 0)
        raise TooLong(
            f"{name}: {length} samples at {rate} Hz, more than the {max_seconds:g} s that the encoder takes; "
            "give the manifest segments of the recording"
        )
    if end is not None and num_samples < end:
        raise Truncated(f"{name}: the segment ends at sample {end}, the recording before; ingest it again")
    segment = samples[(start or 0) - skipped : None if end is None else end - skipped]
    if len(segment) == 0:
        raise EmptyAudio(f"{name}: no samples in [{start or 0}, {num_samples if end is None else end}); drop the row")
    return segment, rate


def _read(file: soundfile.SoundFile, num_wanted: int, name: str) -> Float[np.ndarray, "samples channels"]:
    """The next samples, in one read: soundfile seeks after each, and a sought mp3 decodes to other samples."""
    if num_wanted * file.channels > MAX_READ_NUMBERS:
        raise Undecodable(
            f"{name}: {num_wanted} samples in {file.channels} channels, more than {MAX_READ_NUMBERS} at once; "
            "cut the recording into parts"
        )
    return np.asarray(file.read(num_wanted, dtype="float32", always_2d=True))


def _check_memory(error: Exception, name: str) -> None:
    """Raise `MachineFailed` where a decoder's own error means that it got no memory."""
    if "out of memory" in str(error) or "malloc () failed" in str(error):
        raise MachineFailed(f"{name}: no memory left to decode it; give the machine more and run again") from None


def _check_rate(sample_rate: int, name: str) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise Undecodable(
            f"{name}: {sample_rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}; convert the file"
        )


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no 8-bit meaning")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colour).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The high byte of each grey value: Pillow's own conversion clips at 255 and gives a white picture."""
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
