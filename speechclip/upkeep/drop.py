"""Which stored features a `drop` means."""

from collections.abc import Sequence

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.store import FeatureSetInfo, Snapshot


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
    there = snapshot.feature_sets()
    sets = [_find(there, name, modality) for name in names] or there
    found = {}
    for info in sets:
        kind = info.spec.modality
        if modality not in (None, kind) or (speaker is not None and kind != "speech"):
            continue
        keys = snapshot.keys(info.fingerprint) if manifest is None else _keys_of(manifest, kind, speaker)
        found[info.fingerprint] = keys
    return found


def _find(there: Sequence[FeatureSetInfo], name: str, modality: Modality | None) -> FeatureSetInfo:
    named = [info for info in there if info.fingerprint.startswith(name) or info.encoder_name == name]
    fitting = [info for info in named if modality in (None, info.spec.modality)]
    if len(fitting) > 1:
        listed = ", ".join(info.fingerprint for info in fitting)
        raise InvalidInput(f"{len(fitting)} feature sets fit {name!r}, needed is one, or --modality: {listed}")
    if not fitting:
        listed = ", ".join(info.fingerprint for info in there) or "nothing"
        raise InvalidInput(f"no feature set fits {name!r}; the store holds {listed}")
    return fitting[0]


def _keys_of(manifest: Manifest, modality: Modality, speaker: str | None) -> set[str]:
    if speaker is None:
        return {asset.key for asset in manifest.assets(modality)}
    rows = manifest.rows_where("speaker", [speaker])
    if not rows:
        known = sorted(filter(None, manifest.table["speaker"].unique().to_pylist()))
        raise InvalidInput(f"no speaker {speaker!r} in the manifest; it names {', '.join(known[:20]) or 'none'}")
    return {row["speech_key"] for row in rows if row["speech_key"] is not None}
