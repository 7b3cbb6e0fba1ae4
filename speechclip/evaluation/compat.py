"""Features as the official evaluation computes them: from the sources, in padded batches, and never stored.

`evaluate --compat-batch 8` uses them. The official code pads each batch to its longest utterance, and HuBERT sees the
padding: an utterance gets another feature in another batch. Source: docs/model.md, "Traps".
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec
import numpy as np
from jaxtyping import Shaped

from speechclip.encoders import Encoder
from speechclip.encoders.hubert import HubertEncoder
from speechclip.encoders.padded import official_length
from speechclip.encoders.windows import FULL_RULE
from speechclip.errors import InvalidInput
from speechclip.featurization.tasks import decode_task
from speechclip.manifest import Manifest
from speechclip.records import Asset, Task
from speechclip.store.frame_reader import FrameReader


class PaddedFrames(FrameReader):
    """The frames of a split's whole utterances, encoded in padded batches, in the order of the manifest.

    A batch is encoded when one of its utterances is read, and only the last batch stays in memory. To encode each batch
    once, read in the order that `batches` gives. An utterance whose source can't be decoded is left out. A recording
    that several rows share is encoded once.
    """

    def __init__(self, encoder: Encoder, manifest: Manifest, split: str, batch_size: int) -> None:
        if not isinstance(encoder, HubertEncoder):
            raise InvalidInput(
                f"{encoder.encoder_name}: --compat-batch repeats what fairseq does to a HuBERT", "evaluate without it"
            )
        if batch_size < 1:
            raise InvalidInput(
                f"--compat-batch is {batch_size}", "give the number of utterances in a batch, officially 8"
            )
        self._encoder, self.batch_size = encoder, batch_size
        self.fingerprint = encoder.spec.fingerprint
        rules = encoder.spec.rules | {"window": FULL_RULE}
        self.spec = msgspec.structs.replace(encoder.spec, rules=rules, codec="fp32")
        self._assets: dict[str, Asset] = {}
        self._num_samples: dict[str, int] = {}
        for asset in manifest.select([split]).assets("speech"):
            waveform = self._decode(asset)
            if waveform is not None:
                self._assets[asset.key], self._num_samples[asset.key] = asset, len(waveform)
        keys = list(self._assets)
        self._batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
        self._batch_of = {key: number for number, batch in enumerate(self._batches) for key in batch}
        self._encoded = lru_cache(maxsize=1)(self._encode)

    @property
    def note(self) -> str:
        """How the report names these frames: ``padded in batches of 8``."""
        return f"padded in batches of {self.batch_size}"

    def batches(self, keys: Sequence[str]) -> list[list[int]]:
        """The positions in `keys` of the utterances of each batch, in the order of the batches."""
        found: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            found.setdefault(self._batch_of[key], []).append(position)
        return [found[number] for number in sorted(found)]

    def num_frames(self, key: str) -> int:
        """How many frames of `key` the official head sees, computed from the lengths of its batch."""
        longest = max(self._num_samples[other] for other in self._batches[self._batch_of[key]])
        return official_length(self._num_samples[key], self.spec.num_frames(longest))

    def __contains__(self, key: object) -> bool:
        return key in self._assets

    def __len__(self) -> int:
        return len(self._assets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._assets)

    def __getitem__(self, key: str) -> Shaped[np.ndarray, "layers frames width"]:
        return self._encoded(self._batch_of[key])[key]

    def window(
        self, key: str, *, layers: Sequence[int] | None = None, start: int = 0, stop: int | None = None
    ) -> Shaped[np.ndarray, "layers frames width"]:
        """Frames [start, stop) of these layers, in this order. By default all layers."""
        rows = [self.spec.layers.index(layer) for layer in (self.spec.layers if layers is None else layers)]
        return self[key][rows, start:stop]

    def _encode(self, batch: int) -> dict[str, np.ndarray]:
        keys = self._batches[batch]
        waveforms = [self._decode(self._assets[key]) for key in keys]
        # All of them could be decoded in the constructor. A changed file fails the check of its sha256 here.
        if any(waveform is None for waveform in waveforms):
            raise InvalidInput(
                f"a source of {keys} was changed or deleted after the evaluation started", "run the command again"
            )
        return dict(zip(keys, self._encoder.encode_padded([one for one in waveforms if one is not None]), strict=True))

    def _decode(self, asset: Asset) -> np.ndarray | None:
        task = Task(id="compat", feature_set=self.fingerprint, assets=(asset,))
        return next(iter(decode_task(task, self.spec).inputs()), None)
