"""A feature store for SpeechCLIP: HuBERT and CLIP features are computed once, and every experiment reads them.

    import speechclip

    manifest = speechclip.ingest_table("rows.csv")
    speechclip.featurize(manifest, "store", speech="hubert:facebook/hubert-base-ls960", image="clip:ViT-B-32/openai")
    speechclip.train(manifest, "store", "run", recipe="base-parallel-flickr8k")
    print(speechclip.evaluate("run", manifest, "store", split="test"))

Every name below is imported when it is first used, so that `import speechclip` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechclip import errors
    from speechclip.api.corpus import (
        ingest_flickr8k,
        ingest_lhotse,
        ingest_spokencoco,
        ingest_synthetic,
        ingest_table,
        ingest_tuxpaint,
        ingest_webdataset,
    )
    from speechclip.api.features import export_webdataset, featurize, plan, rejected
    from speechclip.api.heads import embed, evaluate, search, train
    from speechclip.api.rows import FeatureRow, iter_features
    from speechclip.config import RunSettings
    from speechclip.evaluation.report import EvaluationReport
    from speechclip.featurization.driver import Summary
    from speechclip.featurization.estimate import Estimate
    from speechclip.featurization.rejections import Rejection
    from speechclip.manifest import Manifest
    from speechclip.retrieval.model import Model, load
    from speechclip.retrieval.search import Answer, Searcher
    from speechclip.store import FeatureStore, Frames, Snapshot, Vectors
    from speechclip.training.identity import RunInfo
    from speechclip.training.recipe import Recipe, load_recipe

_HOME = {
    "speechclip.api.corpus": (
        "ingest_flickr8k", "ingest_lhotse", "ingest_spokencoco", "ingest_synthetic", "ingest_table", "ingest_tuxpaint",
        "ingest_webdataset",
    ),
    "speechclip.api.features": ("export_webdataset", "featurize", "plan", "rejected"),
    "speechclip.api.heads": ("embed", "evaluate", "search", "train"),
    "speechclip.api.rows": ("FeatureRow", "iter_features"),
    "speechclip.config": ("RunSettings",),
    "speechclip.evaluation.report": ("EvaluationReport",),
    "speechclip.featurization.driver": ("Summary",),
    "speechclip.featurization.estimate": ("Estimate",),
    "speechclip.featurization.rejections": ("Rejection",),
    "speechclip.manifest": ("Manifest",),
    "speechclip.retrieval.model": ("Model", "load"),
    "speechclip.retrieval.search": ("Answer", "Searcher"),
    "speechclip.store": ("FeatureStore", "Frames", "Snapshot", "Vectors"),
    "speechclip.training.identity": ("RunInfo",),
    "speechclip.training.recipe": ("Recipe", "load_recipe"),
}  # fmt: skip

__all__ = [
    "Answer",
    "Estimate",
    "EvaluationReport",
    "FeatureRow",
    "FeatureStore",
    "Frames",
    "Manifest",
    "Model",
    "Recipe",
    "Rejection",
    "RunInfo",
    "RunSettings",
    "Searcher",
    "Snapshot",
    "Summary",
    "Vectors",
    "embed",
    "errors",
    "evaluate",
    "export_webdataset",
    "featurize",
    "ingest_flickr8k",
    "ingest_lhotse",
    "ingest_spokencoco",
    "ingest_synthetic",
    "ingest_table",
    "ingest_tuxpaint",
    "ingest_webdataset",
    "iter_features",
    "load",
    "load_recipe",
    "plan",
    "rejected",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "errors":
        return importlib.import_module("speechclip.errors")
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'speechclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
