"""Small runs, trained as `speechclip train` does on a worker, but without Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from speechclip.corpora.table import read_table
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import open_pair
from speechclip.training.batches import Order, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import FeatureSetRef, RunIdentity
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.run import Run, load_run
from speechclip.training.trainer import Trainer

RECIPE = Recipe(name="test", batch_size=6, max_steps=5, warmup_steps=1, num_heads=2, dropout=0.0)


def write_noise(folder: Path, seconds: Mapping[str, float], split: str) -> Manifest:
    """A manifest of recordings of noise, by name with their lengths in seconds, each with a picture."""
    lines = ["id,audio,image,split"]
    for number, (name, length) in enumerate(seconds.items()):
        noise = np.random.default_rng(number).standard_normal(round(length * 16_000))
        soundfile.write(folder / f"{name}.wav", 0.05 * noise, 16_000)
        Image.new("RGB", (20, 20), (50 * number, 9, 200)).save(folder / f"{name}.png")
        lines.append(f"{name},{name}.wav,{name}.png,{split}")
    (folder / "rows.csv").write_text("\n".join(lines))
    return read_table(str(folder / "rows.csv"))


def train_small(manifest: Manifest, store: FeatureStore, out: str, *, recipe: Recipe = RECIPE, **wanted: Any) -> Run:
    """Train a run in `out` and load it. `speech` and `image` are fingerprints, needed if several are stored."""
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
        speech=FeatureSetRef.of(speech.spec, speech.encoder_name),
        image=FeatureSetRef.of(image.spec, image.encoder_name),
        recipe=recipe,
        head=configure_head(recipe, speech.spec, image.spec),
    )
    frames, vectors = open_pair(snapshot, speech.fingerprint, image.fingerprint)
    order = Order(stored_rows(manifest, "train", frames, vectors), recipe.batch_size, recipe.seed)
    Trainer(identity=identity, loader=Loader(order, frames, vectors, recipe=recipe), folder=RunFolder(out)).fit()
    return load_run(out)
