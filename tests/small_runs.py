"""Small real runs: what `speechclip train` does on a worker, without Ray, from features that are stored."""

from typing import Any

from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.training.batches import Order, open_pair, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import FeatureSource, Run, RunFolder, RunIdentity, load_run
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.trainer import Trainer

RECIPE = Recipe(name="test", batch_size=6, max_steps=5, warmup_steps=1, num_heads=2, dropout=0.0)


def train_small(manifest: Manifest, store: FeatureStore, out: str, *, recipe: Recipe = RECIPE, **wanted: Any) -> Run:
    """The finished run in `out`; `speech` and `image` name fingerprints where several are stored."""
    snapshot = store.snapshot()
    speech, image = (
        next(
            info
            for info in snapshot.feature_sets()
            if info.spec.modality == kind and info.fingerprint == wanted.get(kind, info.fingerprint)
        )
        for kind in ("speech", "image")
    )
    identity = RunIdentity(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=FeatureSource.of(speech.spec, speech.source),
        image=FeatureSource.of(image.spec, image.source),
        recipe=recipe,
        head=configure_head(recipe, speech.spec, image.spec),
    )
    frames, vectors = open_pair(snapshot, speech.fingerprint, image.fingerprint)
    order = Order(stored_rows(manifest, "train", frames, vectors), recipe.batch_size, recipe.seed)
    Trainer(identity=identity, loader=Loader(order, frames, vectors, recipe=recipe), folder=RunFolder(out)).fit()
    return load_run(out)
