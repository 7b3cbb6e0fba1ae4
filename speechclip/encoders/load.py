"""From a SPEC string to an encoder. A family's libraries are imported when it is asked for, not before."""

from collections.abc import Sequence

from speechclip.encoders.base import Encoder, EncoderName
from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.spec import Codec, Window

MODALITIES_OF: dict[str, tuple[Modality, ...]] = {
    "toy": ("speech", "image", "text"),
    "hubert": ("speech",),
    "wav2vec2": ("speech",),
    "wavlm": ("speech",),
    "whisper": ("speech",),
    "clip": ("image", "text"),
    "timm": ("image",),
}


def load_encoder(
    encoder_name: str,
    modality: Modality,
    *,
    layers: Sequence[int] | None = None,
    codec: Codec = "fp16",
    device: str = "cpu",
    window: Window = "full",
) -> Encoder:
    """The frozen encoder that a SPEC string names (see `base.GRAMMAR`), with its weights on `device`.

    `layers` are the hidden states to keep, all by default; `window` is `full` or `crops=K`; only speech has either.
    Raises `InvalidInput` where the string, the modality, the layers, the window or the weights do not fit, or the
    weights can't be had.
    """
    parsed = EncoderName.parse(encoder_name)
    if modality not in MODALITIES_OF[parsed.family]:
        able = " and ".join(MODALITIES_OF[parsed.family])
        raise InvalidInput(f"{encoder_name} encodes {able}, not {modality}; choose an encoder of another family")
    if modality != "speech" and layers is not None:
        raise InvalidInput(f"{encoder_name} makes one vector for each {modality}, so it has no layers; leave them out")
    if modality != "speech" and window != "full":
        raise InvalidInput(f"{encoder_name} encodes {modality}, so it has no window {window!r}; leave it out")
    match parsed.family:
        case "toy":
            from speechclip.encoders.toy import ToyEncoder

            return ToyEncoder(modality, layers=layers, codec=codec, window=window)
        case "hubert" | "wav2vec2" | "wavlm":
            from speechclip.encoders.hubert import load_hubert

            return load_hubert(parsed, layers=layers, codec=codec, device=device, window=window)
        case "whisper":
            if window != "full":
                raise InvalidInput(
                    f"{encoder_name}: Whisper has a window of its own, not {window!r}; leave it out, or name a "
                    "hubert, wav2vec2 or wavlm"
                )
            from speechclip.encoders.whisper import load_whisper

            return load_whisper(parsed, layers=layers, codec=codec, device=device)
        case "clip":
            from speechclip.encoders.clip import load_clip

            return load_clip(parsed, modality, codec=codec, device=device)
        case "timm":
            from speechclip.encoders.pictures import load_picture_encoder

            return load_picture_encoder(parsed, codec=codec, device=device)
