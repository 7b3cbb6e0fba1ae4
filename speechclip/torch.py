"""Stored frames for your own PyTorch model: a map-style dataset and a function that makes batches of its items.

from torch.utils.data import DataLoader
from speechclip.torch import FrameDataset, collate

data = FrameDataset("m.parquet", "store", layers=[9], pool="mean", columns=["speaker"], split="train")
for batch in DataLoader(data, batch_size=32, num_workers=2, collate_fn=collate):
    ...  # batch["frames"]: (32, 1, width), batch["speaker"]: a list of names
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypedDict

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechclip.api.rows import RowTable, WindowSeconds, check_columns
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.training.batches import permutation

Pool = Literal["none", "mean"]


class DatasetState(TypedDict):
    """Where a training stands in its data: what `FrameDataset.state_dict` returns."""

    digest: str
    epoch: int
    num_seen: int


class FrameDataset(Dataset[dict[str, Any]]):
    """The utterances of a manifest that have stored frames, as items for a `DataLoader`.

    An item is a dictionary: `frames` is a float32 tensor (layers, frames, width), or (layers, width) with
    `pool="mean"`; `times` is (frames, 2), the start and end of each frame in seconds (without pooling); `utterance` is
    its id; and each of `columns` is there under its own name.

    Several ranks share the rows without talking to each other: rank r of n takes the items r, r + n, r + 2 n and so on
    of the epoch's order. The order follows from the seed and the epoch alone. The dataset can be pickled, so a
    `DataLoader` may use worker processes.
    """

    def __init__(
        self,
        manifest: Manifest | str,
        store: FeatureStore | str,
        *,
        speech: str | None = None,
        split: str | Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        window: WindowSeconds = (None, None),
        pool: Pool = "none",
        columns: Sequence[str] = (),
        version: int | str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Open the rows. Only the catalog is read.

        Args:
            manifest: A manifest or its address.
            store: A store or its address.
            speech: A feature set, if the store has several: a fingerprint, its start, or an encoder name.
            split: One split or several; all by default.
            layers: The hidden states, in this order; all by default.
            window: A start and an end in seconds; `None` is the start or end of the utterance.
            pool: `"mean"` gives the mean over time, `"none"` all frames.
            columns: Columns of the manifest that each item carries (docs/corpora.md lists them).
            version: A version or tag of the catalog; the newest by default.
            shuffle: Whether each epoch has its own order.
            seed: The seed of that order.
            rank: This process among `world_size` processes that share the rows.
            world_size: The number of those processes.

        Raises:
            InvalidInput: An argument does not fit what is stored.
        """
        if not 0 <= rank < world_size:
            raise InvalidInput(f"rank {rank} of {world_size}: a rank is at least 0 and below the number of ranks")
        if pool not in ("none", "mean"):
            raise InvalidInput(f"pool is {pool!r}", "write 'none' or 'mean'")
        self.columns = tuple(check_columns(columns))
        self.table = RowTable.open(manifest, store, speech=speech, split=split, version=version, columns=columns)
        if not len(self.table):
            raise InvalidInput(
                "none of these rows has stored speech", "run `speechclip featurize`, or name another split"
            )
        self.layers = None if layers is None else tuple(layers)
        self.window, self.pool = window, pool
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self._num_seen = 0
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._positions) - self._num_seen

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        found = self.table.read(int(self._positions[self._num_seen :][index]), self.layers, self.window)
        frames = found.frames.astype(np.float32)
        if self.pool == "mean":
            if not frames.shape[1]:
                raise InvalidInput(f"{found.utterance}: the window {self.window} holds no frame", "widen the window")
            item: dict[str, Any] = {"frames": torch.from_numpy(frames.mean(axis=1))}
        else:
            item = {"frames": torch.from_numpy(frames), "times": torch.from_numpy(found.times)}
        return item | {"utterance": found.utterance} | {name: found.row[name] for name in self.columns}

    @property
    def classes(self) -> dict[str, list[Any]]:
        """The distinct values of each column over all ranks, sorted: `classes["speaker"].index(name)` is a label."""
        return {name: sorted({row[name] for row in self.table.rows if row[name] is not None}) for name in self.columns}

    @cached_property
    def digest(self) -> str:
        """The sha256 of what decides the items and their order: feature set, rows, layers, window, seed, ranks."""
        rows = [(row["utterance"], row["speech_key"]) for row in self.table.rows]
        parts = (
            self.table.frames.fingerprint, rows, self.layers, self.window, self.pool, self.columns,
            self.shuffle, self.seed, self.rank, self.world_size,
        )  # fmt: skip
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: with `shuffle`, the items get another order."""
        count = len(self.table)
        order = permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)
        self.epoch, self._num_seen = epoch, 0
        self._positions = order[self.rank :: self.world_size]

    def state_dict(self, num_seen: int = 0) -> DatasetState:
        """What a checkpoint needs, after this rank has used `num_seen` more items of the epoch."""
        return DatasetState(digest=self.digest, epoch=self.epoch, num_seen=self._num_seen + num_seen)

    def load_state_dict(self, state: DatasetState) -> None:
        """Go on where `state` was taken: `len(self)` and item 0 then count from the first item that was not used.

        Raises `InvalidInput` where the state belongs to other data or to another order.
        """
        if state["digest"] != self.digest:
            raise InvalidInput(
                "the state belongs to other data: the feature set, rows, layers, window, seed or ranks differ",
                "open the dataset with the same arguments and catalog version",
            )
        self.set_epoch(state["epoch"])
        if not 0 <= state["num_seen"] <= len(self._positions):
            raise InvalidInput(f"the state says {state['num_seen']} of {len(self._positions)} items were used")
        self._num_seen = state["num_seen"]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch of items, for `DataLoader(..., collate_fn=collate)`.

    `frames` is (batch, layers, longest, width), padded by zeros, and `lengths` (batch,) says how many frames of each
    count. Pooled frames become (batch, layers, width) and have no `lengths`. Numbers of a column become a tensor;
    other columns, and those with an empty cell, a list.
    """
    frames: list[Tensor] = [item["frames"] for item in items]
    batch: dict[str, Any] = {}
    if frames[0].dim() == 2:
        batch["frames"] = torch.stack(frames)
    else:
        lengths = torch.tensor([one.shape[1] for one in frames])
        batch["frames"] = frames[0].new_zeros(len(frames), frames[0].shape[0], int(lengths.max()), frames[0].shape[2])
        for place, one in enumerate(frames):
            batch["frames"][place, :, : one.shape[1]] = one
        batch["lengths"] = lengths
    for name in items[0]:
        if name not in ("frames", "times"):
            values = [item[name] for item in items]
            batch[name] = torch.tensor(values) if all(isinstance(value, int | float) for value in values) else values
    return batch
