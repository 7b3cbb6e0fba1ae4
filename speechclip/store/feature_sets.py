"""Find one feature set of a snapshot by its name, and open it as what the caller needs."""

from collections.abc import Sequence

from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.store.frames import Frames
from speechclip.store.snapshot import FeatureSetInfo, Snapshot
from speechclip.store.vectors import Vectors


def choose_feature_set(snapshot: Snapshot, modality: Modality, wanted: str | None = None) -> FeatureSetInfo:
    """The stored encodings of a modality: frames of speech, or vectors of images or texts.

    `wanted` is a fingerprint, the start of one, or an encoder name. It may be left out if only one is stored. Raises
    `InvalidInput` with a list of what is stored if none or several fit.
    """
    stored = [
        info
        for info in snapshot.feature_sets()
        if info.spec.modality == modality and info.spec.is_frames == (modality == "speech")
    ]
    fitting = stored if wanted is None else _named(stored, wanted)
    if len(fitting) == 1:
        return fitting[0]
    names = [
        f"{info.fingerprint} ({info.spec.window})" if modality == "speech" else info.fingerprint for info in stored
    ]
    asked = f" for {wanted!r}" if wanted else ""
    raise InvalidInput(
        f"{len(fitting)} {modality} feature sets fit{asked}, needed is one; catalog version {snapshot.version} holds "
        f"{', '.join(names) or 'none'}",
        f"name one of these by --{modality}, or featurize with such an encoder first",
    )


def find_feature_set(snapshot: Snapshot, name: str, modality: Modality | None = None) -> FeatureSetInfo:
    """The feature set of any kind, embeddings of a head too, that a name means.

    The name is a fingerprint, the start of one, or an encoder name. Raises `InvalidInput` if none or several fit.
    """
    stored = snapshot.feature_sets()
    fitting = [info for info in _named(stored, name) if modality in (None, info.spec.modality)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(info.fingerprint for info in fitting)
        raise InvalidInput(f"{len(fitting)} feature sets fit {name!r}: {names}", "name one of them, or add --modality")
    names = ", ".join(info.fingerprint for info in stored) or "nothing"
    raise InvalidInput(f"no feature set fits {name!r}", f"name one that is stored: {names}")


def open_frames(snapshot: Snapshot, fingerprint: str) -> Frames:
    """The frames of that fingerprint. Raises `InvalidInput` if it holds vectors."""
    frames = snapshot.feature_set(fingerprint)
    if not isinstance(frames, Frames):
        raise InvalidInput(f"{fingerprint} holds vectors, needed are frames", "name a feature set of speech")
    return frames


def open_vectors(snapshot: Snapshot, fingerprint: str) -> Vectors:
    """The vectors of that fingerprint. Raises `InvalidInput` if it holds frames."""
    vectors = snapshot.feature_set(fingerprint)
    if not isinstance(vectors, Vectors):
        raise InvalidInput(f"{fingerprint} holds frames, needed are vectors", "name a feature set of images or texts")
    return vectors


def open_pair(snapshot: Snapshot, speech: str, image: str) -> tuple[Frames, Vectors]:
    """The frames of speech and the vectors of images of these fingerprints."""
    return open_frames(snapshot, speech), open_vectors(snapshot, image)


def _named(infos: Sequence[FeatureSetInfo], name: str) -> list[FeatureSetInfo]:
    return [info for info in infos if info.fingerprint.startswith(name) or info.encoder_name == name]
