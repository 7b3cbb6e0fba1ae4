"""A distributed feature store for SpeechCLIP: HuBERT and CLIP features computed once, trained from for ever."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechclip.store import FeatureStore

__all__ = ["FeatureStore"]


def __getattr__(name: str) -> Any:
    """`FeatureStore`, imported when it is asked for, so that the command line's help stays quick."""
    if name == "FeatureStore":
        from speechclip.store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module 'speechclip' has no attribute {name!r}")
