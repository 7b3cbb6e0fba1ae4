"""How well a run retrieves: recall both ways on a split, beside chance (SPEECHCLIP_SPEC 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.table import Table

from speechclip.batches import Rows, choose_feature_set, group_codes, open_pair, stored_rows
from speechclip.checkpoint import Run
from speechclip.compat import PaddedFrames
from speechclip.errors import InvalidInput
from speechclip.heads import Head
from speechclip.loader import judged_span, read_frames
from speechclip.manifest import Manifest
from speechclip.records import Record
from speechclip.retrieval import CUTOFFS, RetrievalReport, retrieve
from speechclip.store import Frames, Snapshot, Vectors
from speechclip.world import World

Candidates = Literal["split", "all"]
# Bounds what is held at once: 13 states of width 768 in fp16 make 20 kB a frame.
FRAMES_PER_BATCH = 16_000


class EvaluationReport(Record, frozen=True):
    """Recall of one run on one split. `untrained` names the features whose encoder has no trained weights.

    `num_missing` utterances of the split lack a stored feature and were left out. `mean_recall` is the mean of the two
    directions. `window` says what of each utterance was judged.
    """

    manifest: str
    catalog_version: int
    speech: str
    image: str
    recipe: str
    head_step: int
    split: str
    candidates: Candidates
    num_utterances: int
    num_missing: int
    speech_to_image: RetrievalReport
    image_to_speech: RetrievalReport
    mean_recall: dict[int, float]
    untrained: tuple[str, ...]
    window: str = "full"

    def to_table(self) -> Table:
        """The figures for a terminal: recall in percent, its interval, and chance."""
        title = f"{self.split}: {self.num_utterances} utterances ({self.num_missing} missing), recipe {self.recipe}"
        title += "" if self.window == "full" else f", window {self.window}"
        table = Table(title=title, caption=self._caption(), caption_justify="left")
        heads = ("direction", "queries", "candidates", *(f"R@{k} % [95 %], chance" for k in CUTOFFS), "median rank")
        for name in heads:
            table.add_column(name, justify="left" if name == "direction" else "right")
        table.add_row("speech to image", *_cells(self.speech_to_image))
        table.add_row("image to speech", *_cells(self.image_to_speech))
        return table

    def _caption(self) -> str | None:
        if not self.untrained:
            return None
        return (
            f"UNTRAINED encoders with random weights: {', '.join(self.untrained)}. "
            "These figures show that the road works, and nothing about SpeechCLIP."
        )


@dataclass(frozen=True)
class Pool:
    """What is asked and what may answer: the utterances of a split, and one image for each group."""

    rows: Rows
    image_keys: Sequence[str]
    image_groups: Int[np.ndarray, " images"]


def evaluate(
    run: Run,
    manifest: Manifest,
    snapshot: Snapshot,
    split: str,
    *,
    candidates: Candidates = "split",
    device: torch.device | str = "cpu",
    speech: str | None = None,
    padded: PaddedFrames | None = None,
) -> EvaluationReport:
    """Recall of `run` on the utterances of `split`, among the images of the split or of the manifest.

    `speech` names another feature set of the run's encoder to judge by, as of whole utterances where the run was
    trained on crops: crops are judged by the first alone. `padded` are judged in place of stored ones.
    """
    identity = run.info.identity
    frames, vectors = _open(run, snapshot, speech, padded)
    pool = gather_pool(manifest, split, frames, vectors, candidates=candidates)
    if not len(pool.rows):
        raise InvalidInput(
            f"split {split!r}: none of its {pool.rows.num_missing} utterances has speech and image stored in catalog "
            f"version {snapshot.version}; run `speechclip featurize`"
        )
    to_image, to_speech = score(run.head.to(device), pool, frames, vectors)
    return EvaluationReport(
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
        speech_to_image=to_image,
        image_to_speech=to_speech,
        mean_recall={k: (to_image.recall[k] + to_speech.recall[k]) / 2 for k in CUTOFFS},
        untrained=tuple(identity.untrained),
        window=_judged(frames),
    )


def _open(run: Run, snapshot: Snapshot, speech: str | None, padded: PaddedFrames | None) -> tuple[Frames, Vectors]:
    identity = run.info.identity
    if padded is None:
        fingerprint = identity.speech.fingerprint if speech is None else _other_window(run, snapshot, speech)
        return open_pair(snapshot, fingerprint, identity.image.fingerprint)
    if speech is not None:
        raise InvalidInput(f"speech set {speech} and --compat-batch were both given; padded batches read no store")
    vectors = snapshot.feature_set(identity.image.fingerprint)
    assert isinstance(vectors, Vectors)
    return padded, vectors


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
        to_image, to_speech = score(head, pool, frames, vectors, world)
        return (to_image.recall[10] + to_speech.recall[10]) / 2

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


def score(
    head: Head, pool: Pool, frames: Frames, vectors: Vectors, world: World | None = None
) -> tuple[RetrievalReport, RetrievalReport]:
    """Speech to image (each utterance asks), and image to speech (each group that was spoken asks)."""
    speech = _embed_together(head, frames, pool.rows.speech_keys, world or World())
    images = embed_images(head, vectors, pool.image_keys)
    is_spoken = np.isin(pool.image_groups, pool.rows.groups)
    return (
        retrieve(speech, images, pool.rows.groups, pool.image_groups),
        retrieve(images[is_spoken], speech, pool.image_groups[is_spoken], pool.rows.groups),
    )


def embed_speech(head: Head, frames: Frames, keys: Sequence[str]) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of utterances in the order of `keys`, of length one, made on the head's device."""
    device = next(head.parameters()).device
    embeddings = np.empty((len(keys), head.config.embedding_width), np.float32)
    with torch.inference_mode():
        spans = [judged_span(frames, key) for key in keys]
        batches = frames.places(keys) if isinstance(frames, PaddedFrames) else _cut([stop for _, stop in spans])
        for places in batches:
            block, lengths = read_frames(frames, [keys[place] for place in places], [spans[place] for place in places])
            embeddings[places] = head(block.to(device), lengths.to(device)).embedding.cpu().numpy()
    return embeddings


def embed_images(head: Head, vectors: Vectors, keys: Sequence[str]) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of images in the order of `keys`, of length one."""
    device = next(head.parameters()).device
    with torch.inference_mode():
        stored = torch.from_numpy(vectors.read(keys).astype(np.float32)).to(device)
        embedded: Float[np.ndarray, "keys embedding"] = head.embed_images(stored).cpu().numpy()
        return embedded


def _embed_together(head: Head, frames: Frames, keys: Sequence[str], world: World) -> np.ndarray:
    own = embed_speech(head, frames, keys[world.part(len(keys))])
    with torch.no_grad():
        gathered = world.gather_rows(torch.from_numpy(own).to(next(head.parameters()).device), len(keys))
    everyones: np.ndarray = gathered.cpu().numpy()
    return everyones


def _cut(lengths: Sequence[int]) -> list[list[int]]:
    """Places in order of length, cut so that no batch, padded to its longest, exceeds `FRAMES_PER_BATCH`."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[place] > FRAMES_PER_BATCH:
            batches.append([])
        batches[-1].append(place)
    return batches


def _cells(report: RetrievalReport) -> list[str]:
    recalls = []
    for k in CUTOFFS:
        low, high = (100 * bound for bound in report.interval[k])
        recalls.append(f"{100 * report.recall[k]:.1f} [{low:.1f}, {high:.1f}], {100 * report.chance[k]:.2f}")
    ranks = f"{report.median_rank:.0f}, {report.chance_median_rank:.0f}"
    return [str(report.num_queries), str(report.num_candidates), *recalls, ranks]
