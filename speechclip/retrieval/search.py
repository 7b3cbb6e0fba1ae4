"""Search in a store: the stored utterances, images or texts that are nearest to a text, a recording or a picture.

searcher = Searcher(FeatureStore("demo/store"), load_run("demo/run"))
answers = searcher.search(searcher.model.embed_text("a dog in the snow"), "speech", 5)
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.retrieval.embed import embedding_spec
from speechclip.retrieval.embeddings import embed_images, find_texts
from speechclip.retrieval.index import ExactIndex
from speechclip.retrieval.model import Model
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.feature_sets import open_frames, open_vectors
from speechclip.training.loader import judged_span
from speechclip.training.run import Run


@dataclass(frozen=True)
class Answer:
    """One asset that answers a query.

    `rank` counts from 1. `score` is the cosine to the query, from -1 to 1. The other fields come from the first
    manifest row with this asset, and are None if no kept manifest has one.
    """

    rank: int
    score: float
    key: str
    utterance: str | None
    text: str | None
    audio_uri: str | None
    image_uri: str | None


class Searcher:
    """Searches one snapshot of a store by one run. `model` turns a text, a recording or a picture into a query.

    The first search of a modality reads its vectors, and manifests as needed. Both stay in memory: later searches read
    nothing from the store.
    """

    def __init__(self, store: FeatureStore, trained: Run, version: int | str | None = None) -> None:
        self.store, self.trained, self.model = store, trained, Model(trained)
        self.snapshot: Snapshot = store.snapshot(version)
        self.identity = trained.info.identity
        self._index = functools.cache(self._open_index)
        self._manifest = functools.cache(store.read_manifest)

    def stored_frames(self, utterance: str) -> np.ndarray:
        """The stored frames (layers, frames, width) by which an utterance is judged.

        `InvalidInput` if no kept manifest has the utterance or its speech is not stored.
        """
        row = self._rows_of({utterance}, "utterance").get(utterance)
        frames = open_frames(self.snapshot, self.identity.speech.fingerprint)
        if row is None or row["speech_key"] not in frames:
            raise InvalidInput(
                f"utterance {utterance!r}: {'no manifest names it' if row is None else 'its speech is not stored'} in "
                f"catalog version {self.snapshot.version}",
                "run `speechclip featurize`, or give the recording by --audio",
            )
        start, stop = judged_span(frames, row["speech_key"])
        return np.asarray(frames.window(row["speech_key"], start=start, stop=stop))

    def search(self, query: np.ndarray, among: Modality, k: int) -> list[Answer]:
        """The `k` stored assets of that modality that are nearest to the embedding `query`, nearest first."""
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

    def _open_index(self, among: Modality) -> ExactIndex:
        """Read all vectors of that modality. Those of images and texts still have to pass through the head."""
        vectors = open_vectors(self.snapshot, self._fingerprint(among))
        keys = list(vectors)
        embeddings = vectors.read(keys) if among == "speech" else embed_images(self.trained.head, vectors, keys)
        return ExactIndex(keys, embeddings)

    def _fingerprint(self, among: Modality) -> str:
        """The feature set to search in; `InvalidInput` with the command that makes it if the snapshot has none."""
        if among == "image":
            return self.identity.image.fingerprint
        if among == "text":
            found = find_texts(self.trained, self.snapshot)
            if found is None:
                encoder_name = self.identity.image.encoder_name
                raise InvalidInput(
                    f"no texts of {encoder_name} are stored", f"run `speechclip featurize --text {encoder_name}`"
                )
            return found
        fingerprint = embedding_spec(self.trained.info).fingerprint
        if fingerprint not in [info.fingerprint for info in self.snapshot.feature_sets()]:
            raise InvalidInput(
                f"catalog version {self.snapshot.version} holds no embeddings of speech by this run",
                "run `speechclip embed`; if you ran it after that version was made, leave --version out",
            )
        return fingerprint

    @functools.cached_property
    def _manifest_digests(self) -> list[str]:
        return self.store.manifest_digests()

    def _rows_of(self, keys: set[str], column: str) -> dict[str, dict[str, Any]]:
        """For each key the first row that has it, from as few kept manifests as possible."""
        rows: dict[str, dict[str, Any]] = {}
        for digest in self._manifest_digests:
            if keys <= rows.keys():
                break
            for row in self._manifest(digest).rows_where(column, keys):
                rows.setdefault(row[column], row)
        return rows
