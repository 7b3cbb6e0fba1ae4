"""A synthetic corpus in a real store, encoded by a small CLIP, and runs of heads with keywords.

The heads are not trained: they have their random first weights.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.featurization.tasks import EncoderRequest
from speechclip.heads import KeywordConfig
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.store import FeatureSetInfo, FeatureStore
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import FeatureSetRef, RunIdentity, RunInfo
from speechclip.training.recipe import Recipe
from speechclip.training.run import Run, build_head, load_run
from speechclip.training.vocabulary import Vocabulary, count_tokens
from support.stores import encode_all

CLIP = "clip:untrained-tiny"


@dataclass(frozen=True)
class KeywordCorpus:
    manifest: Manifest
    store: FeatureStore
    vocabulary: Vocabulary

    def info(self, modality: Modality) -> FeatureSetInfo:
        return next(info for info in self.store.snapshot().feature_sets() if info.spec.modality == modality)

    def train(self, folder: Path, recipe_name: str = "small", **changes: object) -> Run:
        """A finished run with an untrained head. `changes` are keys of its config, such as `has_parallel`."""
        speech, image, text = (self.info(modality) for modality in ("speech", "image", "text"))
        config = KeywordConfig(
            num_layers=len(speech.spec.layers), width=speech.spec.width, image_width=64, keyword_width=64,
            vocabulary_size=len(self.vocabulary.ids), **({"num_keywords": 4} | changes),
        )  # fmt: skip
        sources = [
            FeatureSetRef(fingerprint=info.fingerprint, encoder_name=info.encoder_name, is_trained=False)
            for info in (speech, image, text)
        ]
        identity = RunIdentity(
            manifest=self.manifest.digest, catalog_version=self.store.snapshot().version, speech=sources[0],
            image=sources[1], recipe=Recipe(name=recipe_name), head=config, text=sources[2],
            vocabulary=self.vocabulary.digest,
        )  # fmt: skip
        run_folder = RunFolder(str(folder))
        run_folder.write_vocabulary(self.vocabulary)
        torch.manual_seed(0)
        head = build_head(identity, self.vocabulary)
        info = RunInfo(
            identity=identity, num_rows=1, num_missing=0, batch_size=1, num_steps=0, order_digest="", head_step=0,
            best=None, head_sha256="",
        )  # fmt: skip
        run_folder.finish(info, dict(head.state_dict()))
        return load_run(str(folder))


def write_keyword_corpus(folder: Path) -> KeywordCorpus:
    """Six pictures, each named by three voices, with captions. The toy encoder makes the frames of speech."""
    manifest = read_table(str(make_synthetic(folder / "corpus", num_concepts=6, num_voices=3)))
    store = FeatureStore(str(folder / "store"))
    sources: dict[Modality, str] = {"speech": "toy", "image": CLIP, "text": CLIP}
    requests = [EncoderRequest(encoder_name=source, modality=modality) for modality, source in sources.items()]
    encode_all(store, manifest, requests)
    return KeywordCorpus(manifest, store, count_tokens(row["text"] for row in manifest.rows()))
