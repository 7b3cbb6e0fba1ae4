"""The table of encoder families: how to name an encoder, what it encodes and which function loads it.

Everything that depends on the family reads this table. Importing it loads neither torch nor a model library.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from speechclip.encoders.base import Choices, Encoder
from speechclip.errors import InvalidInput
from speechclip.records import Modality

# What `prepare` makes of a decoded asset: checked samples, a square crop of pixels, UTF-8 bytes or CLIP's token ids.
Preparation = Literal["waveform", "pixels", "utf8", "clip-tokens"]


@dataclass(frozen=True)
class Form:
    """One way to write an encoder name, what it means, and an example."""

    pattern: str
    meaning: str
    example: str


@dataclass(frozen=True)
class Family:
    """The encoders that one library loads in one way.

    `loader` is ``module:function``. `load` imports the module, and with it the library, at the first call.
    `has_crops` is true if ``--window crops=K`` applies.
    """

    name: str
    preparations: dict[Modality, Preparation]
    forms: tuple[Form, ...]
    loader: str
    has_crops: bool = False

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the family encodes."""
        return tuple(self.preparations)

    @property
    def takes_rest(self) -> bool:
        """Whether something must follow the family and a colon, as in ``hubert:…``."""
        return any(":" in form.pattern for form in self.forms)

    def load(self, encoder_name: "EncoderName", choices: Choices) -> Encoder:
        """The encoder of that name."""
        module, function = self.loader.split(":")
        loader = cast(Callable[[EncoderName, Choices], Encoder], getattr(importlib.import_module(module), function))
        return loader(encoder_name, choices)


def _hubert_like(name: str, title: str, example: str) -> Family:
    """HuBERT and its two relatives in transformers."""
    return Family(
        name=name,
        preparations={"speech": "waveform"},
        forms=(
            Form(f"{name}:<hub id or folder>[@<revision>]", f"{title} by transformers, all hidden states", example),
            Form(
                f"{name}:untrained-<size>",
                "random weights; sizes base, large, tiny and tiny-large, where large means pre-LN",
                f"{name}:untrained-tiny",
            ),
        ),
        loader="speechclip.encoders.hubert:load_hubert",
        has_crops=True,
    )


FAMILIES = (
    Family(
        name="toy",
        preparations={"speech": "waveform", "image": "pixels", "text": "utf8"},
        forms=(Form("toy", "random projections by numpy, without weights; for tests", "toy"),),
        loader="speechclip.encoders.toy:load_toy",
        has_crops=True,
    ),
    _hubert_like("hubert", "HuBERT", "hubert:facebook/hubert-base-ls960"),
    _hubert_like("wav2vec2", "wav2vec 2.0", "wav2vec2:facebook/wav2vec2-base"),
    _hubert_like("wavlm", "WavLM", "wavlm:microsoft/wavlm-base-plus"),
    Family(
        name="torchaudio",
        preparations={"speech": "waveform"},
        forms=(
            Form(
                "torchaudio:<bundle>",
                "HuBERT, wav2vec 2.0 or WavLM by torchaudio, all hidden states",
                "torchaudio:HUBERT_BASE",
            ),
            Form(
                "torchaudio:<folder or file>",
                "your own weights of a model of torchaudio, with its config.json",
                "torchaudio:weights/hubert.pt",
            ),
            Form("torchaudio:untrained-<size>", "random weights; sizes as for hubert", "torchaudio:untrained-tiny"),
        ),
        loader="speechclip.encoders.torchaudio_models:load_torchaudio",
        has_crops=True,
    ),
    Family(
        name="whisper",
        preparations={"speech": "waveform"},
        forms=(
            Form(
                "whisper:<hub id or folder>[@<revision>]",
                "Whisper's encoder by transformers, all hidden states",
                "whisper:openai/whisper-base",
            ),
            Form("whisper:untrained-tiny", "random weights", "whisper:untrained-tiny"),
        ),
        loader="speechclip.encoders.whisper:load_whisper",
    ),
    Family(
        name="clip",
        preparations={"image": "pixels", "text": "clip-tokens"},
        forms=(
            Form("clip:<model>/<tag>", "CLIP by open_clip, published weights", "clip:ViT-B-32/openai"),
            Form("clip:<model>/<file>", "CLIP by open_clip, your file", "clip:ViT-B-32/data/clip.safetensors"),
            Form("clip:untrained-<model>", "random weights; models as in open_clip, and tiny", "clip:untrained-tiny"),
        ),
        loader="speechclip.encoders.clip:load_clip",
    ),
    Family(
        name="timm",
        preparations={"image": "pixels"},
        forms=(
            Form(
                "timm:<model>@<folder or safetensors file>",
                "an image model of timm, its pooled vector before the classifier",
                "timm:resnet50@weights/resnet50",
            ),
        ),
        loader="speechclip.encoders.pictures:load_picture_encoder",
    ),
)
_NAMES = tuple(family.name for family in FAMILIES)


def find_family(name: str) -> Family:
    """The family of that name. `InvalidInput` if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise InvalidInput(f"there is no encoder family {name!r}", f"the families are {', '.join(_NAMES)}")


def grammar() -> str:
    """Every form of an encoder name, one a line, as an error message shows it."""
    width = max(len(form.pattern) for family in FAMILIES for form in family.forms)
    lines = [
        f"    {form.pattern:<{width}}  {', '.join(family.modalities)}: {form.meaning}"
        for family in FAMILIES
        for form in family.forms
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class EncoderName:
    """The text that asks for an encoder, in two parts: the family's name, and what follows the colon.

    >>> EncoderName.parse("hubert:facebook/hubert-base-ls960")
    EncoderName(family='hubert', rest='facebook/hubert-base-ls960')
    """

    family: str
    rest: str

    @classmethod
    def parse(cls, text: str) -> "EncoderName":
        """The parts of `text`. `InvalidInput` lists every valid form if `text` has none of them."""
        name, colon, rest = text.partition(":")
        is_whole = name in _NAMES and bool(colon) == bool(rest) == find_family(name).takes_rest
        if not is_whole:
            raise InvalidInput(f"{text!r} names no encoder", f"write one of\n{grammar()}")
        return cls(name, rest)

    def __str__(self) -> str:
        return f"{self.family}:{self.rest}" if self.rest else self.family
