"""Questions to a store: a text, a recording or a picture, and the stored utterances, images or texts nearest to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.retrieval.embed import embedding_spec
from speechclip.retrieval.embeddings import embed_images, find_texts
from speechclip.retrieval.index import ExactIndex
from speechclip.retrieval.model import Model
from speechclip.store import FeatureStore, Frames, Snapshot
from speechclip.training.batches import open_vectors
from speechclip.training.checkpoint import Run
from speechclip.training.loader import judged_span


@dataclass(frozen=True)
class Answer:
    """One row that answers a question. `score` is a cosine; the rest is the manifest's, as far as it has it."""

    rank: int
    score: float
    key: str
    utterance: str | None
    text: str | None
    audio_uri: str | None
    image_uri: str | None


class Searcher:
    """One run's joint space over one snapshot; `model` makes vectors of questions."""

    def __init__(self, store: FeatureStore, trained: Run, version: int | str | None = None) -> None:
        self.store, self.trained, self.model = store, trained, Model(trained)
        self.snapshot: Snapshot = store.snapshot(version)
        self.identity = trained.info.identity

    def stored_frames(self, utterance: str) -> np.ndarray:
        """The stored hidden states of an utterance of any kept manifest; `InvalidInput` without any."""
        row = self._rows_of({utterance}, "utterance").get(utterance)
        frames = self.snapshot.feature_set(self.identity.speech.fingerprint)
        assert isinstance(frames, Frames)
        if row is None or row["speech_key"] not in frames:
            raise InvalidInput(
                f"utterance {utterance!r}: {'no manifest names it' if row is None else 'its speech is not stored'} in "
                f"catalog version {self.snapshot.version}; run `speechclip featurize`, or give the recording by --audio"
            )
        start, stop = judged_span(frames, row["speech_key"])
        return np.asarray(frames.window(row["speech_key"], start=start, stop=stop))

    def search(self, query: np.ndarray, among: Modality, k: int) -> list[Answer]:
        """The `k` stored assets of that kind nearest to an embedding, best first."""
        found = self._index(among).search(query, k)
        rows = self._rows_of({neighbour.key for neighbour in found}, f"{among}_key")
        return [
            Answer(
                rank=rank,
                score=round(neighbour.score, 6),
                key=neighbour.key,
                **{
                    name: rows.get(neighbour.key, {}).get(name)
                    for name in ("utterance", "text", "audio_uri", "image_uri")
                },
            )
            for rank, neighbour in enumerate(found, 1)
        ]

    def _index(self, among: Modality) -> ExactIndex:
        if among == "speech":
            fingerprint = embedding_spec(self.trained.info).fingerprint
            if fingerprint not in [info.fingerprint for info in self.snapshot.feature_sets()]:
                raise InvalidInput(
                    f"catalog version {self.snapshot.version} holds no embedding of this run's speech; run `speechclip "
                    "embed`, or, if that came later, name no --version"
                )
            vectors = open_vectors(self.snapshot, fingerprint)
            return ExactIndex(keys := list(vectors), vectors.read(keys))
        fingerprint = self.identity.image.fingerprint if among == "image" else self._text_fingerprint()
        vectors = open_vectors(self.snapshot, fingerprint)
        return ExactIndex(keys := list(vectors), embed_images(self.trained.head, vectors, keys))

    def _text_fingerprint(self) -> str:
        """The stored texts of the encoder that made the run's images."""
        found = find_texts(self.trained, self.snapshot)
        if found is not None:
            return found
        source = self.identity.image.encoder_name
        raise InvalidInput(f"no texts of {source} are stored; run `speechclip featurize --text {source}`")

    def _rows_of(self, keys: set[str], column: str) -> dict[str, dict[str, Any]]:
        """For each key the first row of any kept manifest that has it."""
        rows: dict[str, dict[str, Any]] = {}
        for manifest in self.store.manifests():
            if keys <= rows.keys():
                break
            for row in manifest.rows_where(column, keys):
                rows.setdefault(row[column], row)
        return rows
