"""A small synthetic corpus: drawn pictures, captions, and vowel-like sounds that spell the captions.

It is not speech and shows nothing about quality. Each letter is a sound with formants of its own; each voice has a
pitch, a pace and a length of throat. The corpus tests the whole way from files to recall, with most audio formats.
"""

import csv
import io
import itertools
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from PIL import Image, ImageDraw

from speechclip.errors import InvalidInput
from speechclip.media.containers import ogg_checksum, ogg_pages

COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 180), "yellow": (240, 220, 40),
    "orange": (255, 127, 14), "purple": (128, 60, 180), "brown": (120, 72, 40), "pink": (245, 150, 200),
    "grey": (127, 127, 127), "black": (0, 0, 0),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar")
SIZES = {"": 52, "small ": 26}
MAX_CONCEPTS = len(COLOURS) * len(SHAPES) * len(SIZES)
# Extension, rate, channels and libsndfile subtype; voice 0 has the first, and so on in turn. No float wav, because
# libsndfile writes the time into it.
FORMATS = (
    ("wav", 16_000, 1, "PCM_16"), ("flac", 22_050, 1, "PCM_16"), ("ogg", 44_100, 2, "VORBIS"),
    ("wav", 48_000, 2, "PCM_24"), ("wav", 8_000, 1, "PCM_U8"), ("mp3", 24_000, 1, "MPEG_LAYER_III"),
)  # fmt: skip
_SYNTHESIS_RATE = 16_000
_PICTURE_PIXELS = 128


def make_synthetic(folder: str | Path, *, num_concepts: int = 60, num_voices: int = 4, seed: int = 0) -> Path:
    """Write recordings, pictures and `rows.csv` into `folder`; the path of `rows.csv`, for `speechclip ingest table`.

    If there are several voices, the last one is the split "test". Of the other rows one in ten is "dev". Equal
    arguments give equal bytes as long as the codecs' libraries stay the same.
    """
    if not (1 <= num_concepts <= MAX_CONCEPTS and num_voices >= 1):
        raise InvalidInput(
            f"{num_concepts} concepts and {num_voices} voices",
            f"give 1 to {MAX_CONCEPTS} concepts and at least one voice",
        )
    root = Path(folder).absolute()
    (root / "audio").mkdir(parents=True, exist_ok=True)
    (root / "pictures").mkdir(exist_ok=True)
    rows = []
    for concept, (size, colour, shape) in enumerate(_concepts(num_concepts, seed)):
        caption = f"a {size}{colour} {shape}"
        picture = f"pictures/{caption.replace(' ', '-')}.png"
        draw_picture(shape, COLOURS[colour], SIZES[size]).save(root / picture)
        for voice in range(num_voices):
            extension, _, _, _ = FORMATS[voice % len(FORMATS)]
            sound = f"audio/{caption.replace(' ', '-')}-{voice}.{extension}"
            (root / sound).write_bytes(_encode(pronounce(caption, voice=voice, seed=seed), voice))
            split = _split(concept, voice, num_voices)
            rows.append([Path(sound).stem, sound, picture, caption, split, f"synthetic-{voice}", "x-synthetic"])
    with (root / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "audio", "image", "text", "split", "speaker", "language"], *rows])
    return root / "rows.csv"


def pronounce(caption: str, *, voice: int, seed: int = 0) -> Float[np.ndarray, " samples"]:
    """The caption's letters one after the other, each as harmonics under three formants; 16 kHz, between -1 and 1."""
    chance = np.random.default_rng([seed, voice, *caption.encode()])
    traits = np.random.default_rng([seed, voice])
    pitch, pace, throat = traits.uniform(90, 260), traits.uniform(0.05, 0.09), traits.uniform(0.85, 1.2)
    sounds = [_letter(letter, pitch * chance.uniform(0.95, 1.05), pace, throat) for letter in caption.lower()]
    samples = np.concatenate([np.zeros(800), *sounds, np.zeros(800)])
    samples += 0.003 * chance.standard_normal(len(samples))
    return np.asarray(0.6 * samples / np.abs(samples).max(), dtype=np.float32)


def draw_picture(shape: str, colour: tuple[int, int, int], radius: int) -> Image.Image:
    """The shape in that colour, `radius` pixels large, in the middle of a transparent square."""
    picture = Image.new("RGBA", (_PICTURE_PIXELS, _PICTURE_PIXELS), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    middle = _PICTURE_PIXELS / 2
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=radius // 4)
    else:
        draw.polygon([(middle + radius * x, middle + radius * y) for x, y in _outline(shape)], fill=colour)
    return picture


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.4)
        return list(zip((reach * np.cos(turns)).tolist(), (reach * np.sin(turns)).tolist(), strict=True))
    if shape == "cross":
        a = 0.3
        return [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    return {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
        "diamond": [(0.0, -1.0), (0.65, 0.0), (0.0, 1.0), (-0.65, 0.0)],
        "bar": [(-1.0, -0.25), (1.0, -0.25), (1.0, 0.25), (-1.0, 0.25)],
    }[shape]


def _concepts(num_concepts: int, seed: int) -> list[tuple[str, str, str]]:
    """(size, colour, shape) of the first concepts: large ones first, then small ones, each shuffled by the seed."""
    chance = np.random.default_rng([seed, 1])
    ordered: list[tuple[str, str, str]] = []
    for size in SIZES:
        pairs = list(itertools.product(COLOURS, SHAPES))
        ordered += [(size, *pairs[index]) for index in chance.permutation(len(pairs))]
    return ordered[:num_concepts]


def _letter(letter: str, pitch: float, pace: float, throat: float) -> Float[np.ndarray, " samples"]:
    if not letter.isalpha():
        return np.zeros(round(0.6 * pace * _SYNTHESIS_RATE))
    index = ord(letter) % 26
    formants = throat * np.array([280 + 110 * (index % 5), 850 + 260 * (index // 5), 2400 + 200 * (index % 3)])
    harmonics = pitch * np.arange(1, int(3_900 / pitch) + 1)
    gains = (1 / (1 + ((harmonics[:, None] - formants) / 90) ** 2)).sum(axis=1)
    times = np.arange(round(pace * _SYNTHESIS_RATE)) / _SYNTHESIS_RATE
    return np.asarray(gains @ np.sin(2 * np.pi * harmonics[:, None] * times) * np.hanning(len(times)))


def _encode(samples: Float[np.ndarray, " samples"], voice: int) -> bytes:
    extension, rate, num_channels, subtype = FORMATS[voice % len(FORMATS)]
    if rate != _SYNTHESIS_RATE:
        samples = soxr.resample(samples, _SYNTHESIS_RATE, rate, quality="HQ")
    buffer = io.BytesIO()
    channels = np.repeat(samples[:, None], num_channels, axis=1)
    soundfile.write(buffer, channels, rate, format=extension.upper(), subtype=subtype)
    return _with_serial_zero(buffer.getvalue()) if extension == "ogg" else buffer.getvalue()


def _with_serial_zero(data: bytes) -> bytes:
    """The Ogg file with stream number 0 instead of libsndfile's random one, so that its content key is always equal."""
    pages = []
    for page in ogg_pages(data, "synthetic ogg"):
        blank = data[page.start : page.start + 14] + bytes(4) + data[page.start + 18 : page.start + 22]
        rest = data[page.start + 26 : page.end]
        pages.append(blank + ogg_checksum(blank + bytes(4) + rest).to_bytes(4, "little") + rest)
    return b"".join(pages)


def _split(concept: int, voice: int, num_voices: int) -> str:
    if num_voices > 1 and voice == num_voices - 1:
        return "test"
    return "dev" if (concept + voice) % 10 == 0 else "train"
