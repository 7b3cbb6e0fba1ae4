"""The sources of a manifest that cannot become a feature, each with its reason, as `speechclip rejected` lists them."""

from speechclip.manifest import Manifest
from speechclip.records import Record
from speechclip.store import FeatureStore


class Rejection(Record, frozen=True):
    """A source that has no feature, the reason, and the utterances that name the source.

    `feature_set` is empty if ingest could not read the source, because then no feature set is concerned.
    """

    feature_set: str
    utterances: tuple[str, ...]
    source: str
    reason: str
    detail: str


def list_rejected(store: FeatureStore, manifest: Manifest) -> list[Rejection]:
    """Every source of the manifest that ingest could not read, or that a job rejected for one of the feature sets."""
    found = [
        Rejection(feature_set="", source=one.uri, utterances=one.utterances, reason=one.reason, detail=one.detail)
        for modality in ("speech", "image")
        for one in manifest.source_problems(modality)
    ]
    snapshot = store.newest()
    if snapshot is None:
        return found
    for info in snapshot.feature_sets():
        utterances = manifest.utterances(info.spec.modality)
        rows = snapshot.rejections(info.fingerprint, manifest.digest).to_pylist()
        # An asset may have several reasons. One by its bytes counts first, then the newest one.
        reasons = {row["asset"]: row for row in sorted(rows, key=lambda row: (row["source"] is None, row["version"]))}
        found += [
            Rejection(
                feature_set=info.fingerprint,
                utterances=utterances[asset.key],
                source=asset.uri or asset.text or "",
                reason=reasons[asset.key]["reason"],
                detail=reasons[asset.key]["detail"],
            )
            for asset in manifest.assets(info.spec.modality)
            if asset.key in reasons
        ]
    return found
