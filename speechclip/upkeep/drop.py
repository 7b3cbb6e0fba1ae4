"""Which stored features a `drop` means."""

from collections.abc import Sequence

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.store import Snapshot
from speechclip.store.feature_sets import find_feature_set


def choose(
    snapshot: Snapshot,
    names: Sequence[str],
    manifest: Manifest | None = None,
    speaker: str | None = None,
    modality: Modality | None = None,
) -> dict[str, set[str]]:
    """The keys to drop, rejected ones too, by feature set: all of the named sets (of all, where none is named).

    With a manifest only its assets, with a speaker only that speaker's speech: also those that were dropped before, for
    their bytes may still lie there. A name that fits no set, or several, is `InvalidInput` that lists what there is.
    """
    sets = [find_feature_set(snapshot, name, modality) for name in names] or snapshot.feature_sets()
    found = {}
    for info in sets:
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
        known = sorted(filter(None, manifest.table["speaker"].unique().to_pylist()))
        raise InvalidInput(f"no speaker {speaker!r} in the manifest; it names {', '.join(known[:20]) or 'none'}")
    return {row["speech_key"] for row in rows if row["speech_key"] is not None}
