"""Which stored features a `drop` removes."""

from collections.abc import Sequence

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.store import Snapshot
from speechclip.store.feature_sets import find_feature_set


def keys_to_drop(
    snapshot: Snapshot,
    names: Sequence[str],
    manifest: Manifest | None = None,
    speaker: str | None = None,
    modality: Modality | None = None,
) -> dict[str, set[str]]:
    """The keys to drop by feature set, those of rejected assets too.

    `names` chooses feature sets by their fingerprint, by the start of one, or by the encoder's name. Without names all
    feature sets are chosen. A manifest restricts the keys to its assets, and a speaker to the speech of that speaker.
    With a manifest, a key is returned even if the snapshot does not hold it: it was perhaps dropped before, and its
    bytes may still be on storage.

    Raises `InvalidInput` for a name that fits no feature set or several, and for an unknown speaker.
    """
    chosen = [find_feature_set(snapshot, name, modality) for name in names] or snapshot.feature_sets()
    found = {}
    for info in chosen:
        kind = info.spec.modality
        if modality not in (None, kind) or (speaker is not None and kind != "speech"):
            continue
        keys = snapshot.keys(info.fingerprint) if manifest is None else _keys_of(manifest, kind, speaker)
        found[info.fingerprint] = keys
    return found


def _keys_of(manifest: Manifest, modality: Modality, speaker: str | None) -> set[str]:
    if speaker is None:
        return {asset.key for asset in manifest.assets(modality)}
    rows = manifest.rows_where("speaker", [speaker])
    if not rows:
        speakers = sorted(filter(None, manifest.table["speaker"].unique().to_pylist()))
        known = ", ".join(speakers[:20]) or "none"
        raise InvalidInput(f"the manifest has no speaker {speaker!r}", f"choose one that it has: {known}")
    return {row["speech_key"] for row in rows if row["speech_key"] is not None}
