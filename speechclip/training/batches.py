"""Which rows each batch has. It follows from the rows, the seed and the batch's number, not from the workers."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.store import Vectors
from speechclip.store.frame_reader import FrameReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The utterances of one split whose features are all stored, in the order of the manifest.

    `groups` has a number for each row, from `group_codes`: equal for rows of one group. `text_keys` is empty unless
    texts are needed. `num_missing` is the number of rows of the split that lack a stored feature.
    """

    utterances: Sequence[str]
    speech_keys: Sequence[str]
    image_keys: Sequence[str]
    groups: Int[np.ndarray, " rows"]
    num_missing: int
    text_keys: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.utterances)


def stored_rows(
    manifest: Manifest, split: str, frames: FrameReader, vectors: Vectors, texts: Vectors | None = None
) -> Rows:
    """The rows of `split` whose speech and image are stored, and with `texts` their text too.

    `InvalidInput` if the manifest has no such split.
    """
    codes = group_codes(manifest)
    kept: list[tuple[str, str, str, int, str]] = []
    rows = manifest.select([split]).rows()
    for row in rows:
        speech, image, text = row["speech_key"], row["image_key"], row["text_key"]
        if speech in frames and image in vectors and (texts is None or text in texts):
            kept.append((row["utterance"], speech, image, codes[row["group"]], text))
    utterances, speech_keys, image_keys, groups, text_keys = zip(*kept, strict=True) if kept else ((),) * 5
    return Rows(
        utterances,
        speech_keys,
        image_keys,
        np.array(groups, np.int64),
        len(rows) - len(kept),
        () if texts is None else text_keys,
    )


def group_codes(manifest: Manifest) -> dict[str, int]:
    """A number for each group: 0 for the first group of the manifest, 1 for the next."""
    return {group: code for code, group in enumerate(manifest.table["group"].unique().to_pylist())}


def load_vectors(
    row_keys: Sequence[str], vectors: Vectors
) -> tuple[Float[np.ndarray, "vectors width"], Int[np.ndarray, " rows"]]:
    """The different vectors of these rows, in fp32, and for each row the position of its vector among them."""
    keys = list(dict.fromkeys(row_keys))
    positions = {key: position for position, key in enumerate(keys)}
    return vectors.read(keys).astype(np.float32), np.array([positions[key] for key in row_keys], np.int64)


@dataclass(frozen=True)
class Order:
    """The order of training: each epoch has all rows in an order of its own, cut into batches.

    Rows at the end of an epoch that do not fill a batch are left out. If there are fewer rows than `batch_size`, each
    batch holds all of them. "Batch" means the global batch, which the workers share.
    """

    rows: Rows
    batch_size: int
    seed: int
    _digests: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.rows) < 2:
            raise InvalidInput(
                f"{len(self.rows)} rows to train on ({self.rows.num_missing} lack a stored feature), needed are 2",
                "run `speechclip featurize` first, or check the split",
            )
        if len(self.rows) < self.batch_size:
            logger.warning(
                "only %d rows: each batch has all of them, not %d as the recipe says", len(self.rows), self.batch_size
            )
        names = [hashlib.sha256(name.encode()).digest()[:8] for name in self.rows.utterances]
        object.__setattr__(self, "_digests", np.frombuffer(b"".join(names), "<u8"))

    @property
    def rows_per_batch(self) -> int:
        """How many rows each batch has."""
        return min(self.batch_size, len(self.rows))

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return len(self.rows) // self.rows_per_batch

    def batch(self, number: int) -> Int[np.ndarray, " batch"]:
        """The rows of batch `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return permutation(len(self.rows), self.seed, epoch)[position * self.rows_per_batch :][: self.rows_per_batch]

    def extend_digest(self, digest: str, number: int) -> str:
        """The digest of all batches up to `number`, from the digest of those before it (empty before batch 0)."""
        return hashlib.sha256(digest.encode() + self._digests[self.batch(number)].tobytes()).hexdigest()

    def digest(self, num_batches: int) -> str:
        """The digest of the first batches. It is equal only for the same utterances in the same order."""
        digest = ""
        for number in range(num_batches):
            digest = self.extend_digest(digest, number)
        return digest

    def draws(self, number: int, rows: Int[np.ndarray, " batch"], purpose: str) -> Int[np.ndarray, " batch"]:
        """A random 32-bit number for each of these rows of batch `number`; the same on every worker.

        Each `purpose`, such as "crop", gets numbers of its own.
        """
        salt = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}/{purpose}".encode()).digest()[:8], "little")
        return (_mix(self._digests[rows] ^ np.uint64(salt)) >> np.uint64(32)).astype(np.int64)


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """The order of `count` rows in an epoch: the same on every machine and with every version of NumPy."""
    # NumPy keeps the stream of a bit generator the same in all versions, but not the result of `permutation`.
    keys = np.random.Philox(key=[seed, epoch]).random_raw(count)
    return np.argsort(keys, kind="stable")


def _mix(bits: np.ndarray) -> np.ndarray:
    """Mix the bits of each number so that similar numbers become unlike: the finaliser of splitmix64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
