"""The cheap step between a decoded asset and its encoder.

It needs no weights, so it runs in the worker that decodes. It needs torch only for CLIP's tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from speechclip.encoders.families import find_family
from speechclip.encoders.windows import cut_crops
from speechclip.errors import BrokenImage, EmptyText, InvalidInput, NotFinite, TooLong, TooShort
from speechclip.spec import SAMPLE_RATE, EncoderSpec

# A strip of 80 million by 1 pixels, resized to a short side of 224, would take 12 TB.
MAX_RESIZED_PIXELS = 80_000_000
Prepared = np.ndarray[Any, Any]


def prepare(spec: EncoderSpec, key: str = "") -> Callable[[Any], Prepared]:
    """A function that turns a decoded asset into the input of `spec`'s encoder. It raises `Rejected` if it can't.

    Speech: float32 samples at 16 kHz (samples,), unchanged, or their crops if the spec has a window of crops. The
    asset's `key` determines where the crops begin. Image: an RGB picture becomes uint8 (size, size, 3). Text: a string
    becomes int32 (tokens,).

        (feature,) = encoder.encode([prepare(encoder.spec)(waveform)])
    """
    match find_family(spec.family).preparations[spec.modality]:
        case "waveform":
            return lambda waveform: cut_crops(spec, key, _check_waveform(spec, waveform))
        case "pixels":
            return functools.partial(crop_image, **_crop_sizes(spec))
        case "utf8":
            return _text_bytes
        case "clip-tokens":
            return functools.partial(clip_tokens, context_length=spec.architecture["text_cfg"]["context_length"])


def crop_image(picture: Image.Image, *, resize: int, size: int, interpolation: str) -> Prepared:
    """Pixels (size, size, 3) in uint8: the short side is resized to `resize`, and the centre is cropped.

    The result is equal to the last bit to that of torchvision and open_clip for PIL pictures. Resizing a tensor instead
    would differ by 1 %. `BrokenImage` if the resized picture would have more than `MAX_RESIZED_PIXELS`.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    new_width, new_height = (resize, new_long) if width <= height else (new_long, resize)
    if new_width * new_height > MAX_RESIZED_PIXELS:
        raise BrokenImage(
            f"{width} x {height} pixels would become {new_width} x {new_height}, more than {MAX_RESIZED_PIXELS}",
            "crop or drop the picture",
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
            f"{num_samples / SAMPLE_RATE:.1f} s of speech, but {spec.name} takes {longest // SAMPLE_RATE} s at most",
            "give the manifest segments of the recording",
        )
    if not np.isfinite(waveform).all():
        raise NotFinite(f"{np.count_nonzero(~np.isfinite(waveform))} of {num_samples} samples are not finite numbers")
    return waveform


def longest_samples(spec: EncoderSpec) -> int:
    """The most samples that the encoder takes, from its rule ``longest``, such as ``120s/1``."""
    return int(spec.rules["longest"].partition("s/")[0]) * SAMPLE_RATE


def _text_bytes(text: str) -> Prepared:
    _check_text(text)
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def _check_text(text: str) -> None:
    if not text.strip():
        raise EmptyText(f"{text!r} is only white space", "write the caption, or leave its cell empty")


def clip_tokens(text: str, *, context_length: int = 77) -> Prepared:
    """CLIP's token ids (context_length,): the start, those of the text, the end, then zeros.

    A longer text is cut, and the end stays. `EmptyText` if the text has no token.
    """
    _check_text(text)
    tokens = np.asarray(clip_tokenizer()([text], context_length)[0], dtype=np.int32)
    if tokens[1] == tokens.max():
        # The tokenizer removes entities and control characters. Here only the start and the end remain.
        raise EmptyText(f"{text!r} has no token", "write the caption, or leave its cell empty")
    return tokens


@functools.cache
def clip_tokenizer() -> Any:
    """CLIP's own tokenizer (BPE), read once in each process."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
