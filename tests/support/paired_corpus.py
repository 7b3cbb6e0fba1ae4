"""A small corpus in a real store, made without encoders. Its frames depend on their image, so a head can learn."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechclip.encoders import load_encoder
from speechclip.manifest import Manifest
from speechclip.media.content import text_key
from speechclip.records import Asset, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore, Frames, Vectors
from speechclip.store.feature_sets import open_pair, open_vectors
from speechclip.store.matrices import Shape, create_matrix, matrix_name
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.vectors import write_chunk
from speechclip.training.batches import Order, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import FeatureSetRef, RunIdentity
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.trainer import Trainer
from speechclip.training.vocabulary import Vocabulary, count_tokens
from speechclip.training.world import World

SPEECH = EncoderSpec(
    name="toy-untrained-speech", family="toy", modality="speech", weights="", is_trained=False, width=16,
    layers=(0, 1, 2), hop_samples=320, window_samples=400,
)  # fmt: skip
IMAGE = EncoderSpec(
    name="toy-image", family="toy", modality="image", weights="", is_trained=True, width=12, codec="fp32"
)


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# A real CLIP's image and text towers, whose vectors here are made up.
CLIP = "clip:untrained-tiny"
WORDS = ("red", "green", "blue", "small", "large", "round", "old", "wooden")


@dataclass(frozen=True)
class Corpus:
    manifest: Manifest
    store_uri: str
    image: EncoderSpec = IMAGE
    text: EncoderSpec | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return count_tokens(self.manifest.table["text"].to_pylist())

    def identity(self, recipe: Recipe) -> RunIdentity:
        source = "toy" if self.text is None else CLIP
        is_used = recipe.has_keywords or recipe.text_weight
        vocabulary = self.vocabulary if recipe.has_keywords else None
        return RunIdentity(
            manifest=self.manifest.digest,
            catalog_version=FeatureStore(self.store_uri).snapshot().version,
            speech=FeatureSetRef.of(SPEECH, "toy"),
            image=FeatureSetRef.of(self.image, source),
            recipe=recipe,
            head=configure_head(recipe, SPEECH, self.image, self.text, vocabulary),
            text=FeatureSetRef.of(self.text, source) if self.text and is_used else None,
            vocabulary=vocabulary.digest if vocabulary else "",
        )

    def features(self) -> tuple[Frames, Vectors]:
        return open_pair(FeatureStore(self.store_uri).snapshot(), SPEECH.fingerprint, self.image.fingerprint)

    def texts(self) -> Vectors | None:
        if self.text is None:
            return None
        return open_vectors(FeatureStore(self.store_uri).snapshot(), self.text.fingerprint)

    def loader(self, recipe: Recipe, world: World | None = None, **options: Any) -> Loader:
        frames, vectors = self.features()
        texts = self.texts() if recipe.text_weight else None
        order = Order(stored_rows(self.manifest, "train", frames, vectors, texts), recipe.batch_size, recipe.seed)
        return Loader(order, frames, vectors, texts=texts, recipe=recipe, world=world, **options)

    def trainer(self, recipe: Recipe, run_uri: str, world: World | None = None, **options: Any) -> Trainer:
        folder = RunFolder(run_uri)
        vocabulary = self.vocabulary if recipe.has_keywords else None
        if vocabulary is not None and (world is None or world.rank == 0):
            folder.write_vocabulary(vocabulary)
        return Trainer(
            identity=self.identity(recipe),
            loader=self.loader(recipe, world),
            folder=folder,
            vocabulary=vocabulary,
            **options,
        )


def write_corpus(
    store_uri: str,
    *,
    num_images: int = 24,
    captions: int = 2,
    unstored: tuple[str, ...] = (),
    max_frames: int = 20,
    with_clip: bool = False,
) -> Corpus:
    """Store a corpus with `captions` utterances for each image, named `u<image>-<caption>`.

    The last quarter of the images is the split `dev`, the others are `train`. `unstored` names utterances and images
    whose features are left out. With `with_clip`, images and texts have the specs of a small CLIP, as heads with
    keywords need them.
    """
    image_spec, text_spec = _clip_specs() if with_clip else (IMAGE, None)
    generator = np.random.default_rng(5)
    mixing = generator.standard_normal((image_spec.width, 16)) * np.sqrt(12 / image_spec.width)
    rows: list[dict[str, Any]] = []
    frames: list[tuple[str, np.ndarray]] = []
    vectors: dict[str, np.ndarray] = {}
    texts: dict[str, np.ndarray] = {}
    for image in range(num_images):
        meaning = generator.standard_normal(image_spec.width)
        vectors[key(f"i{image}")] = meaning.astype("<f4")
        for caption in range(captions):
            name = f"u{image}-{caption}"
            noise = generator.standard_normal((3, int(generator.integers(3, max_frames + 1)), 16))
            frames.append((key(name), (0.5 * noise + meaning @ mixing).astype("<f2")))
            rows.append(
                {
                    "utterance": name, "split": "dev" if image >= 0.75 * num_images else "train", "group": f"g{image}",
                    "speech_key": key(name), "image_key": key(f"i{image}"), "num_samples": 1, "sample_rate": 16_000,
                    "text_key": text_key(caption_of(image, caption)), "text": caption_of(image, caption),
                }
            )  # fmt: skip
            texts[rows[-1]["text_key"]] = (meaning + generator.standard_normal(image_spec.width) / 2).astype("<f4")
    missing = {key(name) for name in unstored}
    store = FeatureStore(store_uri)
    _store_frames(store, [entry for entry in frames if entry[0] not in missing])
    store_vectors(store, image_spec, CLIP if with_clip else "toy", vectors, missing)
    if text_spec is not None:
        store_vectors(store, text_spec, CLIP, texts, missing)
    return Corpus(Manifest.from_rows(rows), store_uri, image_spec, text_spec)


def caption_of(image: int, caption: int) -> str:
    """A caption with two words that depend on the image. Odd captions have them in another order."""
    words = [WORDS[image % len(WORDS)], WORDS[(image // len(WORDS) + 3) % len(WORDS)]]
    return f"a {' '.join(words if caption % 2 else words[::-1])} thing {caption}"


def _clip_specs() -> tuple[EncoderSpec, EncoderSpec]:
    image, text = (load_encoder(CLIP, modality, codec="fp32").spec for modality in ("image", "text"))
    return image, text


def _store_frames(store: FeatureStore, frames: list[tuple[str, np.ndarray]]) -> None:
    store.create()
    store.add_spec(SPEECH, "toy")
    keys = [name for name, _ in frames]
    path, stored = write_shard(store.storage, SPEECH, "speech", pack_shard(SPEECH, frames, {}), keys)
    store.commit([_receipt("speech", SPEECH, path, stored)], "m")


def store_vectors(
    store: FeatureStore, spec: EncoderSpec, source: str, vectors: dict[str, np.ndarray], missing: set[str]
) -> None:
    store.add_spec(spec, source)
    segment = matrix_name("p", Shape(len(vectors), len(vectors)))
    create_matrix(store.storage, spec, segment)
    assets = tuple(Asset(key=name, modality=spec.modality) for name in vectors)
    task = Task(id=spec.modality, feature_set=spec.fingerprint, assets=assets, matrix=segment)
    kept = {name: vector for name, vector in vectors.items() if name not in missing}
    path, stored, _ = write_chunk(store.storage, spec, task, kept)
    store.commit([_receipt(spec.modality, spec, path, stored)], "m")


def _receipt(task: str, spec: EncoderSpec, path: str, stored: tuple[Any, ...]) -> Receipt:
    return Receipt(
        task=task, feature_set=spec.fingerprint, shard=path, stored=stored, rejected=(), num_bytes=0, seconds=1.0,
        num_encoded=len(stored),
    )  # fmt: skip
