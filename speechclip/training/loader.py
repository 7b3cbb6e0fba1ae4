"""Reads the batches of one worker from the store, in a thread that is ahead of the training."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from speechclip.errors import InvalidInput
from speechclip.store import Vectors
from speechclip.store.codec import codec_of
from speechclip.store.frame_reader import FrameReader
from speechclip.training.batches import Order, load_vectors
from speechclip.training.recipe import Recipe
from speechclip.training.world import World

# How many batches the thread reads before they are needed.
NUM_AHEAD = 2
Span = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """What one worker needs of one global batch: the frames of its own rows, the targets and groups of all rows.

    `number` counts batches from 0. `seeds` has a seed for the dropout of each own row. `targets` has the vectors that
    the recipe trains towards, under `image` and `text`. `num_bytes` are the bytes of the frames without padding.
    """

    number: int
    frames: Shaped[Tensor, "rows layers frames width"]
    lengths: Int[Tensor, " rows"]
    seeds: Int[Tensor, " rows"]
    targets: dict[str, Float[Tensor, "batch target_width"]]
    groups: Int[Tensor, " batch"]
    num_bytes: int
    read_seconds: float

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        tensors: dict[str, Any] = {name: move(getattr(self, name)) for name in ("frames", "lengths", "seeds", "groups")}
        targets = {name: move(vectors) for name, vectors in self.targets.items()}
        return replace(self, targets=targets, **tensors)


class Loader:
    """Reads the batches of one worker.

    `read_threads` threads read utterances at the same time; their number changes no value. `texts` are needed if the
    recipe's `text_weight` is not 0. Then the rows of the order must have `text_keys`.
    """

    def __init__(
        self,
        order: Order,
        frames: FrameReader,
        vectors: Vectors,
        *,
        texts: Vectors | None = None,
        recipe: Recipe,
        world: World | None = None,
        read_threads: int = 1,
    ) -> None:
        self.order, self.frames, self.recipe, self.world = order, frames, recipe, world or World()
        self.read_threads = read_threads
        recipe.check_fits(frames.spec)
        # From a single row BatchNorm gives its bias, whatever the row holds, and from no row NaN.
        least = 2 if recipe.has_keywords and recipe.norm_scope == "local" else 1
        if order.rows_per_batch < least * self.world.size:
            raise InvalidInput(
                f"recipe {recipe.name}: batches of {order.rows_per_batch} rows are too small for {self.world.size} "
                f"workers, each of which needs {least}",
                "use fewer --workers",
            )
        self._targets = {"image": load_vectors(order.rows.image_keys, vectors)} if recipe.image_weight else {}
        if recipe.text_weight:
            assert texts is not None
            self._targets["text"] = load_vectors(order.rows.text_keys, texts)

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches from `first` to `end` - 1. An error in the reading thread is raised at its batch."""
        with ThreadPoolExecutor(1, "reads-batches") as ahead, ThreadPoolExecutor(self.read_threads, "reads") as readers:
            read = partial(self._read, readers=readers if self.read_threads > 1 else None)
            waiting: deque[Future[Batch]] = deque()
            try:
                for number in range(first, end):
                    waiting.append(ahead.submit(read, number))
                    if len(waiting) > NUM_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for left in waiting:
                    left.cancel()

    def _read(self, number: int, readers: ThreadPoolExecutor | None) -> Batch:
        started = time.perf_counter()
        rows = self.order.batch(number)
        own = rows[self.world.part(len(rows))]
        keys = [self.order.rows.speech_keys[row] for row in own]
        draws = self.order.draws(number, own, "crop")
        spans = [self._span(key, int(draw)) for key, draw in zip(keys, draws, strict=True)]
        frames, lengths = read_frames(self.frames, keys, spans, readers)
        layers, width = len(self.frames.spec.layers), self.frames.spec.width
        return Batch(
            number=number,
            frames=frames,
            lengths=lengths,
            seeds=torch.from_numpy(self.order.draws(number, own, "dropout")),
            targets={
                name: torch.from_numpy(some[positions[rows]]) for name, (some, positions) in self._targets.items()
            },
            groups=torch.from_numpy(self.order.rows.groups[rows]),
            num_bytes=int(lengths.sum()) * layers * width * frames.element_size(),
            read_seconds=time.perf_counter() - started,
        )

    def _span(self, key: str, draw: int) -> Span:
        num_frames, spec = self.frames.num_frames(key), self.frames.spec
        match self.recipe.window:
            case "sliced" if num_frames > self.recipe.max_frames:
                start = draw % (num_frames - self.recipe.max_frames + 1)
                return start, start + self.recipe.max_frames
            case "crops" if num_frames > spec.frames_per_crop:
                start = draw % spec.num_crops * spec.frames_per_crop
                return start, start + spec.frames_per_crop
        return 0, num_frames


def judged_span(frames: FrameReader, key: str) -> Span:
    """The start and end of the frames by which an utterance is judged: all, or its first crop if it has crops."""
    num_frames = frames.num_frames(key)
    return 0, min(num_frames, frames.spec.frames_per_crop) if frames.spec.num_crops else num_frames


def read_frames(
    frames: FrameReader, keys: Sequence[str], spans: Sequence[Span], readers: ThreadPoolExecutor | None = None
) -> tuple[Shaped[Tensor, "rows layers frames width"], Int[Tensor, " rows"]]:
    """The frames [start, stop) of each key in the stored type, padded with zeros to the longest, and their lengths.

    With `readers`, these threads read the utterances at the same time.
    """
    lengths = [stop - start for start, stop in spans]
    spec = frames.spec
    shape = len(keys), len(spec.layers), max(lengths, default=0), spec.width
    block = np.empty(shape, codec_of(spec).dtype)

    def fill(row: int) -> None:
        start, stop = spans[row]
        is_whole = lengths[row] == frames.num_frames(keys[row])
        block[row, :, : lengths[row]] = (
            frames[keys[row]] if is_whole else frames.window(keys[row], start=start, stop=stop)
        )
        block[row, :, lengths[row] :] = 0

    for _ in (map if readers is None else readers.map)(fill, range(len(keys))):
        pass
    return torch.from_numpy(block), torch.tensor(lengths)
