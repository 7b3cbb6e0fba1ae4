"""The store: frames in WebDataset tars, vectors in Zarr, and the Delta catalog that says what counts."""

from speechclip.store.feature_store import FeatureStore
from speechclip.store.frames import Frames
from speechclip.store.snapshot import FeatureSetInfo, Snapshot
from speechclip.store.vectors import Vectors

__all__ = ["FeatureSetInfo", "FeatureStore", "Frames", "Snapshot", "Vectors"]
