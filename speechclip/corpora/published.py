"""The size of each published corpus, and how a copy of it differs."""

from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc

from speechclip.corpora.folder import show_names
from speechclip.manifest import Manifest

_COLUMNS = {"utterances": ("audio_uri", "audio_error"), "pictures": ("image_uri", "image_error")}


@dataclass(frozen=True)
class PublishedCounts:
    """How much a published corpus holds: utterances in all, and by split pictures and the range of utterances."""

    name: str
    num_utterances: int
    images: dict[str, int]
    utterances: dict[str, tuple[int, int]]

    def differences(self, manifest: Manifest, *, is_split: bool = True) -> list[str]:
        """A sentence for every count that differs from the published one, with the names of the missing files.

        No sentence if the manifest has at most half of the published utterances: then it is a part, not a copy. Say
        `is_split=False` if its splits are not the published ones; then only the total is compared.
        """
        if len(manifest) <= self.num_utterances / 2:
            return []
        recordings = _count_by_split(manifest, "audio_uri", "speech_key")
        pictures = _count_by_split(manifest, "image_uri", "image_key", is_once=True)
        found = []
        for split in self.images if is_split else ():
            if not self.utterances[split][0] <= recordings[split] <= self.utterances[split][1]:
                found.append(self._sentence(manifest, split, "utterances", recordings[split], self.utterances[split]))
            if pictures[split] != self.images[split]:
                found.append(self._sentence(manifest, split, "pictures", pictures[split], (self.images[split],)))
        if not found and recordings.total() != self.num_utterances:
            found.append(self._sentence(manifest, None, "utterances", recordings.total(), (self.num_utterances,)))
        return found

    def _sentence(
        self, manifest: Manifest, split: str | None, what: str, num_found: int, published: tuple[int, ...]
    ) -> str:
        wanted = " to ".join(f"{count:,}" for count in dict.fromkeys(published))
        missing = _missing(manifest, split, *_COLUMNS[what])
        names = f"missing: {show_names(missing)}" if missing else "no file that its lists name is missing"
        where = f"{self.name}, {split or 'in all'}"
        return f"{where}: {num_found:,} {what}, the published corpus has {wanted}; {names}"


def _count_by_split(manifest: Manifest, uri: str, key: str, *, is_once: bool = False) -> Counter[str]:
    """The number of rows in each split whose source could be read; with `is_once`, of different sources."""
    there = manifest.table.select(["split", uri]).filter(manifest.table[key].is_valid())
    if is_once:
        there = there.group_by(["split", uri], use_threads=False).aggregate([])
    return Counter({entry["values"]: entry["counts"] for entry in there["split"].value_counts().to_pylist()})


def _missing(manifest: Manifest, split: str | None, uri: str, error: str) -> list[str]:
    """The names of the files that could not be read, each once."""
    table = manifest.table.filter(manifest.table[error].is_valid())
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return [address.rpartition("/")[2] for address in dict.fromkeys(table[uri].to_pylist())]


FLICKR8K = PublishedCounts(
    name="Flickr8k",
    num_utterances=40_000,
    images={"train": 6_000, "dev": 1_000, "test": 1_000},
    utterances={"train": (30_000, 30_000), "dev": (5_000, 5_000), "test": (5_000, 5_000)},
)
# For train and dev only a range is known: an epoch of the official training has 2,215 steps of 256 utterances.
SPOKENCOCO = PublishedCounts(
    name="SpokenCOCO",
    num_utterances=617_222,
    images={"train": 113_287, "dev": 5_000, "test": 5_000},
    utterances={"train": (567_040, 567_295), "dev": (24_896, 25_151), "test": (25_031, 25_031)},
)
