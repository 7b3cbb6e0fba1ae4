"""What a run reaches on a split: all metrics from one pass over its frames (docs/model.md, "Evaluation protocol")."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int

from speechclip.batching import batch_by_length
from speechclip.errors import InvalidInput
from speechclip.evaluation.comparison import caveats_of
from speechclip.evaluation.compat import PaddedFrames
from speechclip.evaluation.keywords import KeywordReader, KeywordReport, read_keywords
from speechclip.evaluation.published import published_rows
from speechclip.evaluation.recall import TwoWays, retrieve_both
from speechclip.evaluation.report import BRANCHES, Branch, Candidates, EvaluationReport, TextReport
from speechclip.evaluation.token_space import Scoring
from speechclip.heads import Head, HeadOutput, KeywordHead
from speechclip.manifest import Manifest
from speechclip.store import Frames, Snapshot, Vectors
from speechclip.training.batches import Rows, choose_feature_set, group_codes, open_pair, open_vectors, stored_rows
from speechclip.training.checkpoint import Run
from speechclip.training.loader import judged_span, read_frames
from speechclip.training.world import World

# Bounds what is held at once: 13 states of width 768 in fp16 make 20 kB a frame.
FRAMES_PER_BATCH = 16_000
OnProgress = Callable[[int, int], None]


def nobody(done: int, total: int) -> None:
    """Nobody asked how far it is."""


@dataclass(frozen=True)
class Pool:
    """What is asked and what may answer: the utterances of a split, and one image for each group."""

    rows: Rows
    image_keys: Sequence[str]
    image_groups: Int[np.ndarray, " images"]


@dataclass(frozen=True)
class Heard:
    """What one pass over the frames of some utterances gave; both in the order of their keys."""

    embeddings: dict[Branch, np.ndarray]
    reader: KeywordReader | None

    @property
    def main(self) -> Branch:
        """The branch whose embedding stands for an utterance."""
        return next(iter(self.embeddings))


def evaluate(
    run: Run,
    manifest: Manifest,
    snapshot: Snapshot,
    split: str,
    *,
    candidates: Candidates = "split",
    scoring: Scoring = "cosine",
    device: torch.device | str = "cpu",
    speech: str | None = None,
    padded: PaddedFrames | None = None,
    on_progress: OnProgress = nobody,
) -> EvaluationReport:
    """All that `run` reaches on the utterances of `split`, among the images and captions of it or of the manifest.

    `speech` names another feature set of the run's encoder to judge by, as of whole utterances where the run was
    trained on crops: crops are judged by the first alone. `padded` are judged in place of stored ones. `on_progress`
    hears how many utterances are done, and of how many.
    """
    identity = run.info.identity
    frames, vectors = _open(run, snapshot, speech, padded)
    pool = gather_pool(manifest, split, frames, vectors, candidates=candidates)
    if not len(pool.rows):
        raise InvalidInput(
            f"split {split!r}: none of its {pool.rows.num_missing} utterances has speech and image stored in catalog "
            f"version {snapshot.version}; run `speechclip featurize`"
        )
    head = run.head.to(device)
    heard = hear(head, frames, pool.rows.speech_keys, scoring=scoring, on_progress=on_progress)
    images = embed_images(head, vectors, pool.image_keys)
    rows = (manifest.select([split]) if candidates == "split" else manifest).rows()
    text, notes = _score_texts(run, heard, pool, group_codes(manifest), rows, snapshot)
    report = EvaluationReport(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=frames.fingerprint,
        image=identity.image.fingerprint,
        recipe=identity.recipe.name,
        head_step=run.info.head_step,
        split=split,
        candidates=candidates,
        num_utterances=len(pool.rows),
        num_missing=pool.rows.num_missing,
        retrieval={
            branch: retrieve_both(speech, images, pool.rows.groups, pool.image_groups)
            for branch, speech in heard.embeddings.items()
        },
        untrained=tuple(identity.untrained),
        text=text,
        keywords=_score_keywords(run, heard, pool, rows, scoring),
        published=published_rows(identity.recipe.name),
        notes=notes,
        window=_judged(frames),
    )
    return msgspec.structs.replace(report, caveats=caveats_of(report, identity))


def _open(run: Run, snapshot: Snapshot, speech: str | None, padded: PaddedFrames | None) -> tuple[Frames, Vectors]:
    identity = run.info.identity
    if padded is None:
        fingerprint = identity.speech.fingerprint if speech is None else _other_window(run, snapshot, speech)
        return open_pair(snapshot, fingerprint, identity.image.fingerprint)
    if speech is not None:
        raise InvalidInput(f"speech set {speech} and --compat-batch were both given; padded batches read no store")
    return padded, open_vectors(snapshot, identity.image.fingerprint)


def _judged(frames: Frames) -> str:
    if isinstance(frames, PaddedFrames):
        return frames.note
    return f"first of {frames.spec.window}" if frames.spec.num_crops else frames.spec.window


def _other_window(run: Run, snapshot: Snapshot, wanted: str) -> str:
    """The fingerprint of a speech feature set that the run's head can read; `InvalidInput` where it can't."""
    own = snapshot.store.read_spec(run.info.identity.speech.fingerprint).spec
    found = choose_feature_set(snapshot, "speech", wanted)
    if not found.spec.is_same_but_window(own):
        raise InvalidInput(
            f"the head was trained on {own.fingerprint}, and {found.fingerprint} is not of the same weights, layers "
            "and rules; name a feature set that differs from it by window or codec alone"
        )
    return found.fingerprint


def validator(
    manifest: Manifest, split: str, frames: Frames, vectors: Vectors
) -> Callable[[Head, World], float] | None:
    """A function that gives the mean recall at 10 on `split`, by all workers together; None without such rows."""
    if split not in manifest.table["split"].unique().to_pylist():
        return None
    pool = gather_pool(manifest, split, frames, vectors)
    if not len(pool.rows):
        return None

    def mean_recall(head: Head, world: World) -> float:
        return score(head, pool, frames, vectors, world).mean_recall[10]

    return mean_recall


def gather_pool(
    manifest: Manifest, split: str, frames: Frames, vectors: Vectors, *, candidates: Candidates = "split"
) -> Pool:
    """The stored utterances of a split and, of each group in the split or the manifest, its first stored image."""
    codes = group_codes(manifest)
    images: dict[int, str] = {}
    for row in (manifest.select([split]) if candidates == "split" else manifest).rows():
        if row["image_key"] in vectors:
            images.setdefault(codes[row["group"]], row["image_key"])
    rows = stored_rows(manifest, split, frames, vectors)
    return Pool(rows, list(images.values()), np.array(list(images), np.int64))


def score(head: Head, pool: Pool, frames: Frames, vectors: Vectors, world: World | None = None) -> TwoWays:
    """Retrieval by the embeddings that stand for the utterances, made by all workers together."""
    speech = _embed_together(head, frames, pool.rows.speech_keys, world or World())
    return retrieve_both(speech, embed_images(head, vectors, pool.image_keys), pool.rows.groups, pool.image_groups)


def hear(
    head: Head,
    frames: Frames,
    keys: Sequence[str],
    *,
    scoring: Scoring = "cosine",
    on_progress: OnProgress = nobody,
) -> Heard:
    """The embeddings of each branch, and the keywords where the head chooses some, from one reading of the frames."""
    reader = (
        KeywordReader(head.vector_quantizer, head.tower.embeddings, scoring) if isinstance(head, KeywordHead) else None
    )
    found: dict[Branch, np.ndarray] = {}
    num_done = 0
    with torch.inference_mode():
        for places, output in _outputs(head, frames, keys):
            for branch in BRANCHES:
                embedding = getattr(output, branch)
                if embedding is not None:
                    made = found.setdefault(branch, np.empty((len(keys), embedding.shape[1]), np.float32))
                    made[places] = embedding.cpu().numpy()
            if reader is not None and output.keywords is not None:
                reader.add(places, output.keywords)
            num_done += len(places)
            on_progress(num_done, len(keys))
    return Heard(found, reader)


def embed_speech(head: Head, frames: Frames, keys: Sequence[str]) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of utterances in the order of `keys`, of length one, made on the head's device."""
    embeddings = np.empty((len(keys), head.config.embedding_width), np.float32)
    with torch.inference_mode():
        for places, output in _outputs(head, frames, keys):
            embeddings[places] = output.embedding.cpu().numpy()
    return embeddings


def embed_images(head: Head, vectors: Vectors, keys: Sequence[str]) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of images in the order of `keys`, of length one."""
    device = next(head.parameters()).device
    with torch.inference_mode():
        stored = torch.from_numpy(vectors.read(keys).astype(np.float32)).to(device)
        embedded: Float[np.ndarray, "keys embedding"] = head.embed_images(stored).cpu().numpy()
        return embedded


def find_texts(run: Run, snapshot: Snapshot) -> str | None:
    """The fingerprint of the stored texts of the run's CLIP, None without any."""
    identity = run.info.identity
    source = identity.text or identity.image
    fitting = [
        info.fingerprint
        for info in snapshot.feature_sets()
        if info.spec.modality == "text" and info.encoder_name == source.encoder_name
    ]
    return source.fingerprint if source.fingerprint in fitting else next(iter(fitting), None)


def _score_texts(
    run: Run, heard: Heard, pool: Pool, codes: dict[str, int], rows: list[dict[str, Any]], snapshot: Snapshot
) -> tuple[TextReport | None, tuple[str, ...]]:
    """Speech against the captions of `rows`, or a note that says how to get there."""
    source = (run.info.identity.text or run.info.identity.image).encoder_name
    fingerprint = find_texts(run, snapshot)
    vectors = None if fingerprint is None else open_vectors(snapshot, fingerprint)
    captions = [row for row in rows if vectors is not None and row["text_key"] in vectors]
    groups = np.array([codes[row["group"]] for row in captions], np.int64)
    asks = np.isin(pool.rows.groups, groups)
    if not asks.any():
        how = (
            f"run `speechclip featurize --text {source}`"
            if any(row["text_key"] for row in rows)
            else "the manifest has none"
        )
        return None, (f"no speech-text figures: no captions of these utterances are stored as {source}; {how}",)
    assert vectors is not None
    assert fingerprint is not None
    keys = list(dict.fromkeys(row["text_key"] for row in captions))
    places = {key: place for place, key in enumerate(keys)}
    # Projected as images are: where a head moves CLIP's space, its texts move along.
    texts = embed_images(run.head, vectors, keys)[[places[row["text_key"]] for row in captions]]
    both = retrieve_both(heard.embeddings[heard.main][asks], texts, pool.rows.groups[asks], groups)
    report = TextReport(feature_set=fingerprint, branch=heard.main, num_missing=int((~asks).sum()), retrieval=both)
    return report, ()


def _score_keywords(
    run: Run, heard: Heard, pool: Pool, rows: list[dict[str, Any]], scoring: Scoring
) -> KeywordReport | None:
    if heard.reader is None:
        return None
    assert run.vocabulary is not None
    captions = {row["utterance"]: row["text"] for row in rows}
    own = [captions[utterance] for utterance in pool.rows.utterances]
    return read_keywords(heard.reader.readings(), run.vocabulary, own, pool.rows.groups, scoring=scoring)


def _outputs(head: Head, frames: Frames, keys: Sequence[str]) -> Iterator[tuple[list[int], HeadOutput]]:
    """What the head gives for batches of utterances, with the places of theirs among `keys`."""
    device = next(head.parameters()).device
    spans = [judged_span(frames, key) for key in keys]
    ends = [stop for _, stop in spans]
    batches = frames.places(keys) if isinstance(frames, PaddedFrames) else batch_by_length(ends, FRAMES_PER_BATCH)
    for places in batches:
        block, lengths = read_frames(frames, [keys[place] for place in places], [spans[place] for place in places])
        yield places, head(block.to(device), lengths.to(device))


def _embed_together(head: Head, frames: Frames, keys: Sequence[str], world: World) -> np.ndarray:
    own = embed_speech(head, frames, keys[world.part(len(keys))])
    with torch.no_grad():
        gathered = world.gather_rows(torch.from_numpy(own).to(next(head.parameters()).device), len(keys))
    everyones: np.ndarray = gathered.cpu().numpy()
    return everyones
