"""Embeddings made by a head from stored features: of utterances, images and texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from speechclip.batching import batch_by_length
from speechclip.heads import Head, HeadOutput
from speechclip.store import Snapshot, Vectors
from speechclip.store.frame_reader import FrameReader
from speechclip.training.loader import judged_span, read_frames
from speechclip.training.run import Run
from speechclip.training.world import World

Branch = Literal["parallel", "cascaded"]
# In order of preference: the first branch that a head has gives the embedding of an utterance.
BRANCHES: tuple[Branch, ...] = ("parallel", "cascaded")
# Frames of one batch, padding included. 13 states of width 768 in fp16 take 20 kB a frame, so a batch takes 320 MB.
FRAMES_PER_BATCH = 16_000
Observe = Callable[[Sequence[int], HeadOutput], None]


def embed_speech(
    head: Head, frames: FrameReader, keys: Sequence[str], *, batches: Sequence[Sequence[int]] | None = None
) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of these utterances in the order of `keys`, each of length one.

    The head computes on the device that its parameters are on. `batches` are positions in `keys`: those of one batch
    are padded and computed together. By default utterances of like length are.
    """
    embeddings = np.empty((len(keys), head.config.embedding_width), np.float32)
    with torch.inference_mode():
        for rows, output in _outputs(head, frames, keys, batches):
            embeddings[rows] = output.embedding.cpu().numpy()
    return embeddings


def embed_branches(
    head: Head,
    frames: FrameReader,
    keys: Sequence[str],
    observe: Observe,
    *,
    batches: Sequence[Sequence[int]] | None = None,
) -> dict[Branch, Float[np.ndarray, "keys embedding"]]:
    """The embeddings of these utterances by each branch that the head has, from one pass over the frames.

    After each batch, `observe` gets the positions in `keys` of its utterances and the head's whole output for them.
    `batches` are as in `embed_speech`.
    """
    embeddings: dict[Branch, np.ndarray] = {}
    with torch.inference_mode():
        for rows, output in _outputs(head, frames, keys, batches):
            for branch in BRANCHES:
                found = getattr(output, branch)
                if found is not None:
                    of_branch = embeddings.setdefault(branch, np.empty((len(keys), found.shape[1]), np.float32))
                    of_branch[rows] = found.cpu().numpy()
            observe(rows, output)
    return embeddings


def embed_together(
    head: Head, frames: FrameReader, keys: Sequence[str], world: World
) -> Float[np.ndarray, "keys embedding"]:
    """What `embed_speech` gives, with the work divided among the workers of `world`; every worker gets all rows."""
    own = embed_speech(head, frames, keys[world.part(len(keys))])
    with torch.no_grad():
        gathered = world.gather_rows(torch.from_numpy(own).to(_device(head)), len(keys))
    embeddings: np.ndarray = gathered.cpu().numpy()
    return embeddings


def embed_images(head: Head, vectors: Vectors, keys: Sequence[str]) -> Float[np.ndarray, "keys embedding"]:
    """The embeddings of these images in the order of `keys`, each of length one.

    Vectors of texts may be given too: a head that projects CLIP's images projects CLIP's texts in the same way.
    """
    with torch.inference_mode():
        stored = torch.from_numpy(vectors.read(keys).astype(np.float32)).to(_device(head))
        embedded: Float[np.ndarray, "keys embedding"] = head.embed_images(stored).cpu().numpy()
        return embedded


def find_texts(run: Run, snapshot: Snapshot) -> str | None:
    """The fingerprint of the stored texts that were made by the run's CLIP; None if the snapshot has none.

    The feature set that the run names comes first. Another one of the same encoder name will do.
    """
    identity = run.info.identity
    wanted = identity.text or identity.image
    fitting = [
        info.fingerprint
        for info in snapshot.feature_sets()
        if info.spec.modality == "text" and info.encoder_name == wanted.encoder_name
    ]
    return wanted.fingerprint if wanted.fingerprint in fitting else next(iter(fitting), None)


def _outputs(
    head: Head, frames: FrameReader, keys: Sequence[str], batches: Sequence[Sequence[int]] | None
) -> Iterator[tuple[Sequence[int], HeadOutput]]:
    """Batch by batch the positions in `keys` of some utterances, and the head's output for them."""
    device = _device(head)
    spans = [judged_span(frames, key) for key in keys]
    if batches is None:
        batches = batch_by_length([stop for _, stop in spans], FRAMES_PER_BATCH)
    for rows in batches:
        block, lengths = read_frames(frames, [keys[row] for row in rows], [spans[row] for row in rows])
        yield rows, head(block.to(device), lengths.to(device))


def _device(head: Head) -> torch.device:
    return next(head.parameters()).device
