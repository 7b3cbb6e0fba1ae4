"""How well a run's head finds images, texts and words on one split, measured in one pass over the stored frames.

Source: docs/model.md, "Evaluation protocol".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Int

from speechclip.errors import InvalidInput
from speechclip.evaluation.comparison import caveats_of
from speechclip.evaluation.compat import PaddedFrames
from speechclip.evaluation.keywords import KeywordReader, KeywordReport, read_keywords
from speechclip.evaluation.published import published_rows
from speechclip.evaluation.recall import measure_both
from speechclip.evaluation.report import Candidates, EvaluationReport, TextReport
from speechclip.evaluation.token_space import Scoring
from speechclip.heads import Head, HeadOutput, KeywordHead
from speechclip.manifest import Manifest
from speechclip.retrieval.embeddings import Branch, embed_branches, embed_images, embed_together, find_texts
from speechclip.store import Snapshot, Vectors
from speechclip.store.feature_sets import choose_feature_set, open_frames, open_vectors
from speechclip.store.frame_reader import FrameReader
from speechclip.store.specs import read_spec
from speechclip.training.batches import Rows, group_codes, stored_rows
from speechclip.training.run import Run
from speechclip.training.world import World

OnProgress = Callable[[int, int], None]


def ignore_progress(done: int, total: int) -> None:
    """Do nothing: the caller does not show progress."""


@dataclass(frozen=True)
class Pool:
    """The utterances of a split that ask, and the images that may answer: one image for each group."""

    rows: Rows
    image_keys: Sequence[str]
    image_groups: Int[np.ndarray, " images"]


@dataclass(frozen=True)
class _Speech:
    """The frames to judge by, their name in the report, and for padded ones the batches that belong together."""

    frames: FrameReader
    window: str
    batches: Callable[[Sequence[str]], list[list[int]] | None] = lambda keys: None


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
    on_progress: OnProgress = ignore_progress,
) -> EvaluationReport:
    """The report of `run` on the utterances of `split`. `InvalidInput` if none of them has stored features.

    `candidates`: the images and captions that compete are those of the split, or those of the whole manifest (`all`).
    `speech`: the fingerprint of another feature set of the same encoder. With it, a head that was trained on crops is
    judged by whole utterances; without it, by the first crop of each utterance. `padded` takes the place of stored
    frames. `on_progress` gets the number of utterances done, and of all.
    """
    identity = run.info.identity
    judged = _padded_speech(padded, speech) if padded is not None else _stored_speech(run, snapshot, speech)
    vectors = open_vectors(snapshot, identity.image.fingerprint)
    pool = gather_pool(manifest, split, judged.frames, vectors, candidates=candidates)
    _check_pool(pool, split, snapshot)
    head = run.head.to(device)
    embeddings, reader = _read_speech(head, judged, pool.rows.speech_keys, scoring, on_progress)
    images = embed_images(head, vectors, pool.image_keys)
    rows = (manifest.select([split]) if candidates == "split" else manifest).rows()
    text, notes = _score_texts(run, embeddings, pool, group_codes(manifest), rows, snapshot)
    report = EvaluationReport(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=judged.frames.fingerprint,
        image=identity.image.fingerprint,
        recipe=identity.recipe.name,
        head_step=run.info.head_step,
        split=split,
        candidates=candidates,
        num_utterances=len(pool.rows),
        num_missing=pool.rows.num_missing,
        retrieval={
            branch: measure_both(found, images, pool.rows.groups, pool.image_groups)
            for branch, found in embeddings.items()
        },
        untrained=tuple(identity.untrained),
        text=text,
        keywords=None if reader is None else _score_keywords(run, reader, pool, rows, scoring),
        published=published_rows(identity.recipe.name),
        notes=notes,
        window=judged.window,
    )
    return msgspec.structs.replace(report, caveats=caveats_of(report, identity))


def validator(
    manifest: Manifest, split: str, frames: FrameReader, vectors: Vectors
) -> Callable[[Head, World], float] | None:
    """A function that computes the mean recall at 10 on `split`; None if the manifest has no stored rows of it.

    All workers of a run call the function together, and each gets the same figure.
    """
    if split not in manifest.table["split"].unique().to_pylist():
        return None
    pool = gather_pool(manifest, split, frames, vectors)
    if not len(pool.rows):
        return None

    def mean_recall(head: Head, world: World) -> float:
        speech = embed_together(head, frames, pool.rows.speech_keys, world)
        images = embed_images(head, vectors, pool.image_keys)
        return measure_both(speech, images, pool.rows.groups, pool.image_groups).mean_recall[10]

    return mean_recall


def gather_pool(
    manifest: Manifest, split: str, frames: FrameReader, vectors: Vectors, *, candidates: Candidates = "split"
) -> Pool:
    """The stored utterances of a split, and the first stored image of each group in the split or the manifest."""
    codes = group_codes(manifest)
    images: dict[int, str] = {}
    for row in (manifest.select([split]) if candidates == "split" else manifest).rows():
        if row["image_key"] in vectors:
            images.setdefault(codes[row["group"]], row["image_key"])
    rows = stored_rows(manifest, split, frames, vectors)
    return Pool(rows, list(images.values()), np.array(list(images), np.int64))


def _check_pool(pool: Pool, split: str, snapshot: Snapshot) -> None:
    if not len(pool.rows):
        raise InvalidInput(
            f"split {split!r}: none of its {pool.rows.num_missing} utterances has speech and image stored in catalog "
            f"version {snapshot.version}",
            "run `speechclip featurize`",
        )


def _padded_speech(padded: PaddedFrames, speech: str | None) -> _Speech:
    if speech is not None:
        raise InvalidInput(
            f"speech set {speech} and --compat-batch were both given, but padded batches are not read from a store",
            "leave one of them out",
        )
    return _Speech(padded, padded.note, padded.batches)


def _stored_speech(run: Run, snapshot: Snapshot, speech: str | None) -> _Speech:
    own = run.info.identity.speech.fingerprint
    frames = open_frames(snapshot, own if speech is None else _other_window(run, snapshot, speech))
    window = frames.spec.window
    return _Speech(frames, f"first of {window}" if frames.spec.num_crops else window)


def _other_window(run: Run, snapshot: Snapshot, wanted: str) -> str:
    """The fingerprint of another speech feature set; `InvalidInput` if the run's head can't read it."""
    own = read_spec(snapshot.storage, run.info.identity.speech.fingerprint).spec
    found = choose_feature_set(snapshot, "speech", wanted)
    if not found.spec.is_same_but_window(own):
        raise InvalidInput(
            f"the head was trained on {own.fingerprint}, and {found.fingerprint} has other weights, layers or rules",
            "name a feature set that differs from it only by window or codec",
        )
    return found.fingerprint


def _read_speech(
    head: Head, speech: _Speech, keys: Sequence[str], scoring: Scoring, on_progress: OnProgress
) -> tuple[dict[Branch, np.ndarray], KeywordReader | None]:
    """The embeddings by each branch, and a reader with all keywords if the head chooses some."""
    reader = (
        KeywordReader(head.vector_quantizer, head.tower.embeddings, scoring) if isinstance(head, KeywordHead) else None
    )
    num_done = 0

    def observe(rows: Sequence[int], output: HeadOutput) -> None:
        nonlocal num_done
        if reader is not None and output.keywords is not None:
            reader.add(rows, output.keywords)
        num_done += len(rows)
        on_progress(num_done, len(keys))

    return embed_branches(head, speech.frames, keys, observe, batches=speech.batches(keys)), reader


def _score_texts(
    run: Run,
    embeddings: dict[Branch, np.ndarray],
    pool: Pool,
    codes: dict[str, int],
    rows: list[dict[str, Any]],
    snapshot: Snapshot,
) -> tuple[TextReport | None, tuple[str, ...]]:
    """Retrieval between the utterances and the captions of `rows`; without stored captions, a note with the advice."""
    encoder_name = (run.info.identity.text or run.info.identity.image).encoder_name
    fingerprint = find_texts(run, snapshot)
    vectors = None if fingerprint is None else open_vectors(snapshot, fingerprint)
    captions = [row for row in rows if vectors is not None and row["text_key"] in vectors]
    groups = np.array([codes[row["group"]] for row in captions], np.int64)
    has_caption = np.isin(pool.rows.groups, groups)
    if not has_caption.any():
        advice = (
            f"run `speechclip featurize --text {encoder_name}`"
            if any(row["text_key"] for row in rows)
            else "the manifest has none"
        )
        return None, (
            f"no speech-text figures: no captions of these utterances are stored as {encoder_name}; {advice}",
        )
    assert vectors is not None
    assert fingerprint is not None
    keys = list(dict.fromkeys(row["text_key"] for row in captions))
    positions = {key: position for position, key in enumerate(keys)}
    texts = embed_images(run.head, vectors, keys)[[positions[row["text_key"]] for row in captions]]
    branch, speech = next(iter(embeddings.items()))
    both = measure_both(speech[has_caption], texts, pool.rows.groups[has_caption], groups)
    report = TextReport(feature_set=fingerprint, branch=branch, num_missing=int((~has_caption).sum()), retrieval=both)
    return report, ()


def _score_keywords(
    run: Run, reader: KeywordReader, pool: Pool, rows: list[dict[str, Any]], scoring: Scoring
) -> KeywordReport:
    assert run.vocabulary is not None
    captions = {row["utterance"]: row["text"] for row in rows}
    own = [captions[utterance] for utterance in pool.rows.utterances]
    return read_keywords(reader.readings(), run.vocabulary, own, pool.rows.groups, scoring=scoring)
