"""Small specs that tests of the store share."""

from speechclip.spec import EncoderSpec

FRAMES_SPEC = EncoderSpec(
    name="toy-untrained-speech",
    family="toy",
    modality="speech",
    weights="",
    is_trained=False,
    width=768,
    layers=tuple(range(13)),
    hop_samples=320,
    window_samples=400,
)
VECTORS_SPEC = EncoderSpec(
    name="toy-untrained-image", family="toy", modality="image", weights="", is_trained=False, width=16
)
