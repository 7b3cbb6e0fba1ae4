"""The cheap step before an encoder, run where bytes are decoded: no weights, and no torch but for CLIP's tokens."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from speechclip.encoders.windows import cut_crops
from speechclip.errors import BrokenImage, EmptyText, InvalidInput, NotFinite, TooLong, TooShort
from speechclip.spec import SAMPLE_RATE, EncoderSpec

# What a strip of 80 million by 1 would become with a short side of 224 takes 12 TB.
MAX_RESIZED_PIXELS = 80_000_000
Prepared = np.ndarray[Any, Any]


def prepare(spec: EncoderSpec, key: str = "") -> Callable[[Any], Prepared]:
    """The function from a decoded asset to what `spec`'s encoder takes; `Rejected` where there is none.

    Speech: float32 (samples,) at 16 kHz, unchanged, or the crops that the asset's `key` gives by a window of crops.
    Image: RGB picture to uint8 (S, S, 3). Text: to int32 (tokens,).
    """
    match spec.modality:
        case "speech":
            return lambda waveform: cut_crops(spec, key, _check_waveform(spec, waveform))
        case "image":
            return functools.partial(crop_image, **_crop_sizes(spec))
        case "text" if spec.family == "toy":
            return _text_bytes
        case "text":
            return functools.partial(clip_tokens, context_length=spec.architecture["text_cfg"]["context_length"])


def crop_image(picture: Image.Image, *, resize: int, size: int, interpolation: str) -> Prepared:
    """Pixels (size, size, 3), uint8: short side resized to `resize` with antialiasing, then the centre cropped.

    Equal to the PIL road of torchvision and open_clip to the last bit; resizing a tensor instead differs by 1 %. A
    strip that would grow beyond `MAX_RESIZED_PIXELS` is `BrokenImage`.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    new_width, new_height = (resize, new_long) if width <= height else (new_long, resize)
    if new_width * new_height > MAX_RESIZED_PIXELS:
        raise BrokenImage(
            f"{width} x {height} pixels would become {new_width} x {new_height}, more than {MAX_RESIZED_PIXELS}; "
            "crop or drop the picture"
        )
    if (new_width, new_height) != (width, height):
        picture = picture.resize((new_width, new_height), _filter(interpolation))
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return np.array(picture.convert("RGB").crop((left, top, left + size, top + size)), dtype=np.uint8)


def _filter(interpolation: str) -> Image.Resampling:
    return Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR


def _crop_sizes(spec: EncoderSpec) -> dict[str, Any]:
    preprocess = spec.architecture["preprocess"]
    return {name: preprocess[name] for name in ("resize", "size", "interpolation")}


def _check_waveform(spec: EncoderSpec, waveform: Prepared) -> Prepared:
    if waveform.ndim != 1 or waveform.dtype != np.float32:
        raise InvalidInput(f"expected float32 samples of one channel, got {waveform.dtype} of shape {waveform.shape}")
    num_samples, longest = len(waveform), longest_samples(spec)
    if num_samples < spec.window_samples:
        raise TooShort(f"{num_samples} samples at 16 kHz, but {spec.name} needs {spec.window_samples} for one frame")
    if num_samples > longest:
        raise TooLong(
            f"{num_samples / SAMPLE_RATE:.1f} s of speech, but {spec.name} takes {longest // SAMPLE_RATE} s at most; "
            "give the manifest segments of the recording"
        )
    if not np.isfinite(waveform).all():
        raise NotFinite(f"{np.count_nonzero(~np.isfinite(waveform))} of {num_samples} samples are not finite numbers")
    return waveform


def longest_samples(spec: EncoderSpec) -> int:
    """The most samples that the encoder takes: its rule ``longest``, such as ``120s/1``."""
    return int(spec.rules["longest"].partition("s/")[0]) * SAMPLE_RATE


def _text_bytes(text: str) -> Prepared:
    if not text.strip():
        raise EmptyText(f"nothing but white space: {text!r}; write the caption or leave its cell out")
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def clip_tokens(text: str, *, context_length: int = 77) -> Prepared:
    """CLIP's ids (context_length,): start, the text's, end, then zeros; `EmptyText` where no token is left of it."""
    if not text.strip():
        raise EmptyText(f"nothing but white space: {text!r}; write the caption or leave its cell out")
    tokens = np.asarray(clip_tokenizer()([text], context_length)[0], dtype=np.int32)
    if tokens[1] == tokens.max():
        # Entities and control characters are cleaned away: only start and end are left.
        raise EmptyText(f"no token is left of {text!r}")
    return tokens


@functools.cache
def clip_tokenizer() -> Any:
    """CLIP's own BPE, read once a process."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
