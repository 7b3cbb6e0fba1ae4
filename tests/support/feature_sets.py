"""Small specs, and the content of a snapshot, that tests of the store and its drivers share."""

from speechclip.spec import EncoderSpec
from speechclip.store import Snapshot

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


def content(snapshot: Snapshot) -> dict[tuple[str, str], bytes]:
    """Every stored feature's bytes."""
    found = {}
    for info in snapshot.feature_sets():
        features = snapshot.feature_set(info.fingerprint)
        found |= {(info.fingerprint, key): features[key].tobytes() for key in features}
    return found
