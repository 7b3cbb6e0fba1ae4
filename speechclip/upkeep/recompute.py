"""Recompute: encode random stored assets anew and compare; shows that stored equals online, here and now."""

import random
from collections.abc import Collection, Sequence

import numpy as np

from speechclip.encoders import Encoder
from speechclip.featurization.tasks import BatchSizes, EncoderRequest, decode_task, encode_inputs
from speechclip.records import Asset, Modality, Record, Task
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.codec import codec_of

# Two encodings of one asset agree within this share of the feature's largest number (`Encoder.encode`).
ENCODER_NOISE = 1e-5


class Recomputed(Record, frozen=True):
    """One feature set's sample: the largest difference, relative to each feature's largest number, and the bound."""

    feature_set: str
    assets: int
    largest_difference: float
    bound: float
    without_source: int

    @property
    def is_equal(self) -> bool:
        """Whether every feature came out again within the bound."""
        return self.largest_difference <= self.bound


def recompute(
    store: FeatureStore, snapshot: Snapshot, count: int, seed: int, *, device: str = "auto"
) -> list[Recomputed]:
    """Encode `count` random stored assets anew, spread over the feature sets by their sizes.

    Sources come from the kept manifests; an asset whose source is gone or changed is counted and not compared.
    """
    encoded = [info for info in snapshot.feature_sets() if not info.spec.is_of_head]
    everything = [(info.fingerprint, key) for info in encoded for key in sorted(snapshot.stored_keys(info.fingerprint))]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    sources = _sources(store, {info.spec.modality for info in encoded})
    found = []
    for info in encoded:
        keys = [key for name, key in chosen if name == info.fingerprint]
        if not keys:
            continue
        encoder = EncoderRequest.again(info.spec, info.encoder_name).build(device)
        stored = snapshot.feature_set(info.fingerprint)
        differences = []
        for key in keys:
            again = _encode(sources.get((info.spec.modality, key), []), info.spec, encoder)
            if again is not None:
                differences.append(_difference(stored[key], again))
        found.append(
            Recomputed(
                feature_set=info.fingerprint,
                assets=len(differences),
                largest_difference=max(differences, default=0.0),
                bound=_bound(info.spec),
                without_source=len(keys) - len(differences),
            )
        )
    return found


def _sources(store: FeatureStore, modalities: Collection[Modality]) -> dict[tuple[Modality, str], list[Asset]]:
    """Every kept manifest's word of where an asset lies, by modality and key."""
    found: dict[tuple[Modality, str], list[Asset]] = {}
    for manifest in store.manifests():
        for modality in modalities:
            for asset in manifest.assets(modality):
                found.setdefault((modality, asset.key), []).append(asset)
    return found


def _encode(sources: Sequence[Asset], spec: EncoderSpec, encoder: Encoder) -> np.ndarray | None:
    """The feature of the first of these sources that is still there."""
    for asset in sources:
        task = Task(id="recompute", feature_set=spec.fingerprint, assets=(asset,))
        features = encode_inputs(decode_task(task, spec), encoder, BatchSizes())[0]
        if features:
            return features[asset.key]
    return None


def _bound(spec: EncoderSpec) -> float:
    """The largest difference that is no fault, relative to a feature's largest number: both sides were rounded."""
    codec = codec_of(spec)
    return max(ENCODER_NOISE, 2 * codec.bound(np.ones(1, codec.dtype)))


def _difference(stored: np.ndarray, now: np.ndarray) -> float:
    if stored.shape != now.shape or not np.isfinite(stored).all():
        return float("inf")
    exact = stored.astype(np.float64)
    return float(np.abs(exact - now).max() / max(np.abs(exact).max(), 1e-30))
