"""From an encoder name to an encoder."""

from collections.abc import Sequence

from speechclip.encoders.base import Choices, Encoder
from speechclip.encoders.families import FAMILIES, EncoderName, Family, find_family
from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.spec import CodecName, Window


def load_encoder(
    encoder_name: str,
    modality: Modality,
    *,
    layers: Sequence[int] | None = None,
    codec: CodecName = "fp16",
    device: str = "cpu",
    window: Window = "full",
) -> Encoder:
    """The frozen encoder of that name, with its weights on `device`.

    `layers` are the hidden states to keep; None keeps all. `window` is ``full`` or ``crops=K``. Both are for speech
    alone. The family's library is imported by this call, not before.

    `InvalidInput` if the name, the modality, the layers, the window or the weights do not fit together, or if the
    weights can't be found.

        encoder = load_encoder("hubert:facebook/hubert-base-ls960", "speech", layers=[0, 12])
    """
    parsed = EncoderName.parse(encoder_name)
    family = find_family(parsed.family)
    choices = Choices(modality, layers, codec, device, window)
    _check(family, choices, encoder_name)
    return family.load(parsed, choices)


def _check(family: Family, choices: Choices, encoder_name: str) -> None:
    modality, window = choices.modality, choices.window
    if modality not in family.modalities:
        able = " and ".join(family.modalities)
        raise InvalidInput(f"{encoder_name} encodes {able}, not {modality}", "choose an encoder of another family")
    if modality != "speech" and choices.layers is not None:
        raise InvalidInput(f"{encoder_name} makes one vector for each {modality}, so it has no layers", "omit --layers")
    if modality != "speech" and window != "full":
        raise InvalidInput(f"{encoder_name} encodes {modality}, so it has no window {window!r}", "omit --window")
    if window != "full" and not family.has_crops:
        able = ", ".join(other.name for other in FAMILIES if other.has_crops)
        raise InvalidInput(
            f"{encoder_name} has a window of its own and takes no window {window!r}",
            f"omit --window, or choose an encoder of one of the families {able}",
        )
