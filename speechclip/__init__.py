"""A distributed feature store for SpeechCLIP: HuBERT and CLIP features computed once, trained from for ever."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechclip.retrieval.model import load
    from speechclip.store import FeatureStore

__all__ = ["FeatureStore", "load"]


def __getattr__(name: str) -> Any:
    """`FeatureStore` and `load`, imported when they are asked for, so that the command line's help stays quick."""
    if name == "FeatureStore":
        from speechclip.store import FeatureStore

        return FeatureStore
    if name == "load":
        from speechclip.retrieval.model import load

        return load
    raise AttributeError(f"module 'speechclip' has no attribute {name!r}")
