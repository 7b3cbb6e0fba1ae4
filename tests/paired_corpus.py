"""A small corpus whose frames tell which image they belong to, in a real store: what training needs, at once."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechclip.batches import Order, open_pair, stored_rows
from speechclip.checkpoint import FeatureSource, RunFolder, RunIdentity
from speechclip.loader import Loader
from speechclip.manifest import Manifest
from speechclip.recipe import Recipe
from speechclip.records import Asset, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore, Frames, Vectors
from speechclip.store.frames import pack_shard, write_shard
from speechclip.store.segments import Shape, create_segment, segment_name
from speechclip.store.vectors import write_chunk
from speechclip.trainer import Trainer, configure_head
from speechclip.world import World

SPEECH = EncoderSpec(
    name="toy-untrained-speech", family="toy", modality="speech", weights="", is_trained=False, width=16,
    layers=(0, 1, 2), hop_samples=320, window_samples=400,
)  # fmt: skip
IMAGE = EncoderSpec(
    name="toy-image", family="toy", modality="image", weights="", is_trained=True, width=12, codec="fp32"
)


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    manifest: Manifest
    store_uri: str

    def identity(self, recipe: Recipe) -> RunIdentity:
        return RunIdentity(
            manifest=self.manifest.digest,
            catalog_version=FeatureStore(self.store_uri).snapshot().version,
            speech=FeatureSource.of(SPEECH, "toy"),
            image=FeatureSource.of(IMAGE, "toy"),
            recipe=recipe,
            head=configure_head(recipe, SPEECH, IMAGE),
        )

    def features(self) -> tuple[Frames, Vectors]:
        return open_pair(FeatureStore(self.store_uri).snapshot(), SPEECH.fingerprint, IMAGE.fingerprint)

    def loader(self, recipe: Recipe, world: World | None = None, **options: Any) -> Loader:
        frames, vectors = self.features()
        order = Order(stored_rows(self.manifest, "train", frames, vectors), recipe.batch_size, recipe.seed)
        return Loader(order, frames, vectors, recipe=recipe, world=world, **options)

    def trainer(self, recipe: Recipe, run_uri: str, world: World | None = None, **options: Any) -> Trainer:
        return Trainer(
            identity=self.identity(recipe),
            loader=self.loader(recipe, world),
            folder=RunFolder(run_uri),
            **options,
        )


def write_corpus(
    store_uri: str, *, num_images: int = 24, captions: int = 2, unstored: tuple[str, ...] = (), max_frames: int = 20
) -> Corpus:
    """`captions` utterances an image, `u<image>-<caption>`; the last quarter of images is `dev`, the rest `train`."""
    generator = np.random.default_rng(5)
    mixing = generator.standard_normal((12, 16))
    rows: list[dict[str, Any]] = []
    frames: list[tuple[str, np.ndarray]] = []
    vectors: dict[str, np.ndarray] = {}
    for image in range(num_images):
        meaning = generator.standard_normal(12)
        vectors[key(f"i{image}")] = meaning.astype("<f4")
        for caption in range(captions):
            name = f"u{image}-{caption}"
            noise = generator.standard_normal((3, int(generator.integers(3, max_frames + 1)), 16))
            frames.append((key(name), (0.5 * noise + meaning @ mixing).astype("<f2")))
            rows.append(
                {
                    "utterance": name, "split": "dev" if image >= 0.75 * num_images else "train", "group": f"g{image}",
                    "speech_key": key(name), "image_key": key(f"i{image}"), "num_samples": 1, "sample_rate": 16_000,
                }
            )  # fmt: skip
    missing = {key(name) for name in unstored}
    _store(FeatureStore(store_uri), [entry for entry in frames if entry[0] not in missing], vectors, missing)
    return Corpus(Manifest.from_rows(rows), store_uri)


def _store(
    store: FeatureStore, frames: list[tuple[str, np.ndarray]], vectors: dict[str, np.ndarray], missing: set[str]
) -> None:
    store.create()
    for spec in (SPEECH, IMAGE):
        store.add_spec(spec, "toy")
    keys = [name for name, _ in frames]
    path, stored = write_shard(store.storage, SPEECH, "speech", pack_shard(SPEECH, frames, {}), keys)
    store.commit([_receipt("speech", SPEECH, path, stored)], "m")
    segment = segment_name("p", Shape(len(vectors), len(vectors)))
    create_segment(store.storage, IMAGE, segment)
    assets = tuple(Asset(key=name, modality="image") for name in vectors)
    task = Task(id="image", feature_set=IMAGE.fingerprint, assets=assets, segment=segment)
    kept = {name: vector for name, vector in vectors.items() if name not in missing}
    path, stored, _ = write_chunk(store.storage, IMAGE, task, kept)
    store.commit([_receipt("image", IMAGE, path, stored)], "m")


def _receipt(task: str, spec: EncoderSpec, path: str, stored: tuple[Any, ...]) -> Receipt:
    return Receipt(
        task=task, feature_set=spec.fingerprint, shard=path, stored=stored, rejected=(), num_bytes=0, seconds=1.0,
        num_encoded=len(stored),
    )  # fmt: skip
