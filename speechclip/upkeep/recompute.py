"""Encode random stored assets again and compare: this shows that stored features equal those made now and here."""

import random
from collections.abc import Collection, Sequence

import numpy as np

from speechclip.encoders import Encoder
from speechclip.featurization.tasks import BatchSizes, EncoderRequest, decode_task, encode_inputs
from speechclip.records import Asset, Modality, Record, Task
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.codec import codec_of

# Two encodings of one asset differ by less than this share of the feature's largest number (`Encoder.encode`).
ENCODER_NOISE = 1e-5


class Recomputed(Record, frozen=True):
    """The result for one feature set.

    `largest_difference` is relative to the largest number of each feature; `bound` is the largest that counts as
    equal. `assets` counts those that were compared, `without_source` those whose source is gone or changed.
    """

    feature_set: str
    assets: int
    largest_difference: float
    bound: float
    without_source: int

    @property
    def is_equal(self) -> bool:
        """Whether every feature equals the stored one within the bound."""
        return self.largest_difference <= self.bound


def recompute(
    store: FeatureStore, snapshot: Snapshot, count: int, seed: int, *, device: str = "auto"
) -> list[Recomputed]:
    """Encode `count` random stored assets again, and compare them with the stored features.

    The larger a feature set, the more of its assets are chosen. Embeddings are left out. The sources come from the
    manifests that the store keeps. The same `seed` chooses the same assets.
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
    """Every source that a kept manifest names for an asset, by modality and key."""
    found: dict[tuple[Modality, str], list[Asset]] = {}
    for manifest in store.manifests():
        for modality in modalities:
            for asset in manifest.assets(modality):
                found.setdefault((modality, asset.key), []).append(asset)
    return found


def _encode(sources: Sequence[Asset], spec: EncoderSpec, encoder: Encoder) -> np.ndarray | None:
    """The feature made from the first of these sources that is still there; None if all are gone or changed."""
    for asset in sources:
        task = Task(id="recompute", feature_set=spec.fingerprint, assets=(asset,))
        features = encode_inputs(decode_task(task, spec), encoder, BatchSizes())[0]
        if features:
            return features[asset.key]
    return None


def _bound(spec: EncoderSpec) -> float:
    """The largest difference that counts as equal, relative to a feature's largest number.

    Both features were rounded by the codec, so two almost equal numbers may be a whole rounding step apart.
    """
    codec = codec_of(spec)
    return max(ENCODER_NOISE, 2 * codec.bound(np.ones(1, codec.dtype)))


def _difference(stored: np.ndarray, now: np.ndarray) -> float:
    """The largest difference, relative to the largest stored number.

    It is infinite if the shapes differ or a stored number is not finite.
    """
    if stored.shape != now.shape or not np.isfinite(stored).all():
        return float("inf")
    exact = stored.astype(np.float64)
    return float(np.abs(exact - now).max() / max(np.abs(exact).max(), 1e-30))
