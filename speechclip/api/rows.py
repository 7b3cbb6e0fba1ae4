"""Rows with their stored frames: what `iter_features` yields and `speechclip.torch.FrameDataset` reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from speechclip.errors import InvalidInput
from speechclip.manifest import SCHEMA, Manifest
from speechclip.store import FeatureStore, Frames, Snapshot, feature_sets
from speechclip.store.feature_sets import choose_feature_set

# A start and an end in seconds; None means the start or the end of the utterance.
WindowSeconds = tuple[float | None, float | None]


@dataclass(frozen=True)
class FeatureRow:
    """One utterance with its hidden states.

    `frames` is (layers, frames, width) in the stored type. `times` is (frames, 2): the start and the end in seconds of
    the sound that each frame was computed from, counted from the start of the utterance. `row` holds the columns of
    the manifest by name.
    """

    utterance: str
    key: str
    frames: Shaped[np.ndarray, "layers frames width"]
    times: Float[np.ndarray, "frames 2"]
    row: dict[str, Any]


def iter_features(
    manifest: Manifest | str,
    store: FeatureStore | str,
    *,
    speech: str | None = None,
    split: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    window: WindowSeconds = (None, None),
    version: int | str | None = None,
) -> Iterator[FeatureRow]:
    """Yield each utterance that has stored frames, in the order of the manifest.

    `speech` names the feature set (a fingerprint, its start, or an encoder name) if the store has several. `layers`
    are the hidden states to read, all by default. `window` is a start and an end in seconds. `version` pins a version
    of the catalog, by number or tag. Only the bytes of those layers and frames are read, and each read is verified.

    Raises `InvalidInput` where no or several feature sets fit, and `Damaged` where stored bytes do not match.
    """
    table = RowTable.open(manifest, store, speech=speech, split=split, version=version)
    for position in range(len(table)):
        yield table.read(position, layers, window)


@dataclass(frozen=True)
class RowTable:
    """The rows of a manifest whose speech is stored, and the frames to read. Can be pickled."""

    frames: Frames
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def open(
        cls,
        manifest: Manifest | str,
        store: FeatureStore | str,
        *,
        speech: str | None = None,
        split: str | Sequence[str] | None = None,
        version: int | str | None = None,
        columns: Sequence[str] | None = None,
    ) -> "RowTable":
        """The rows of `split` (all by default) that have stored frames, with these columns of the manifest."""
        snapshot = open_store(store).snapshot(version)
        frames = open_frames(snapshot, speech)
        chosen = open_manifest(manifest)
        if split is not None:
            chosen = chosen.select([split] if isinstance(split, str) else split)
        names = SCHEMA.names if columns is None else check_columns(columns)
        needed = list(dict.fromkeys(["utterance", "speech_key", *names]))
        rows = chosen.table.select(needed).to_pylist()
        return cls(frames, tuple(row for row in rows if row["speech_key"] in frames))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, position: int, layers: Sequence[int] | None, window: WindowSeconds) -> FeatureRow:
        """The row at that position with the frames of `layers` that lie within `window`."""
        row = self.rows[position]
        key = row["speech_key"]
        times = self.frames.spec.frame_times(self.frames.num_frames(key))
        if self.frames.spec.num_crops and window != (None, None):
            raise InvalidInput(
                f"{self.frames.fingerprint} holds crops, and a window of {window} counts from the utterance's start",
                "read whole utterances, or a feature set that was encoded with --window full",
            )
        start, stop = _span(times, window)
        array = self.frames.window(key, layers=layers, start=start, stop=stop)
        return FeatureRow(row["utterance"], key, array, times[start:stop], row)


def open_store(store: FeatureStore | str) -> FeatureStore:
    """The store at an address, or the store itself."""
    return FeatureStore(store) if isinstance(store, str) else store


def open_manifest(manifest: Manifest | str) -> Manifest:
    """The manifest at an address, or the manifest itself."""
    return Manifest.read(manifest) if isinstance(manifest, str) else manifest


def open_frames(snapshot: Snapshot, speech: str | None) -> Frames:
    """The speech feature set that `speech` names, or the only one."""
    return feature_sets.open_frames(snapshot, choose_feature_set(snapshot, "speech", speech).fingerprint)


def check_columns(columns: Sequence[str]) -> Sequence[str]:
    """The same columns; `InvalidInput` if the manifest's format has no such column."""
    for name in columns:
        if name not in SCHEMA.names:
            raise InvalidInput(f"the manifest has no column {name!r}", f"name some of {', '.join(SCHEMA.names)}")
    return columns


def _span(times: Float[np.ndarray, "frames 2"], window: WindowSeconds) -> tuple[int, int]:
    """The frames whose sound starts within the window."""
    start, end = window
    if start is not None and end is not None and not 0 <= start < end:
        raise InvalidInput(f"window {window}: the start must be 0 or more and below the end", "give seconds, as (0, 2)")
    first = 0 if start is None else int(np.searchsorted(times[:, 0], start))
    last = len(times) if end is None else int(np.searchsorted(times[:, 0], end))
    return first, max(first, last)
