"""What one process without Ray makes of a manifest: the measure of every run over nodes that fail."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.store import FeatureStore
from support.feature_sets import content

PROJECT = Path(__file__).parents[2]
ENCODERS = {
    "toy": {"speech": "toy", "image": "toy", "text": "toy"},
    "tiny": {"speech": "hubert:untrained-tiny", "image": "clip:untrained-tiny"},
}


@dataclass(frozen=True)
class Quiet:
    """The result of `featurize --inline`, and the settings that every other run of it takes."""

    settings: dict[str, Any]
    content: dict[tuple[str, str], bytes]
    files: dict[str, bytes]

    @property
    def options(self) -> list[str]:
        """The settings as a command line."""
        return as_options(self.settings)


def as_options(settings: dict[str, Any]) -> list[str]:
    """Every setting by `--set`."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def run_quietly(folder: Path, encoders: str, *, num_concepts: int, num_voices: int, per_task: tuple[int, int]) -> Quiet:
    """A synthetic corpus, featurized in fp32; a task holds so many utterances, or so many pictures or texts."""
    manifest, store = folder / "m.parquet", folder / "store"
    corpus = make_synthetic(folder / "corpus", num_concepts=num_concepts, num_voices=num_voices)
    read_table(str(corpus)).write(str(manifest))
    sizes = {"shard_items": per_task[0], "chunk_rows": per_task[1]}
    settings = {"manifest": str(manifest), **ENCODERS[encoders], "codec": "fp32", "featurize": {"tasks": sizes}}
    done = subprocess.run(
        [sys.executable, "pipelines/featurize.py", "--inline", "--json", "--store", str(store), *as_options(settings)],
        cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["missing"] == 0
    found = FeatureStore(str(store))
    return Quiet(settings, content(found.snapshot()), files(found))


def files(store: FeatureStore) -> dict[str, bytes]:
    """Every file of features and its bytes."""
    return {path: store.storage.read(path) for path in store.storage.list("features")}


def num_committed(store: FeatureStore) -> int:
    """How many commits the store has."""
    return store.snapshot().version if store.exists() else 0


def num_stored(store: FeatureStore) -> int:
    """How many features count."""
    return sum(info.num_stored for info in store.snapshot().feature_sets())


def num_rows(store: FeatureStore) -> int:
    """The catalog's rows: more than features where a key was committed twice."""
    table = store.catalog.open()
    return sum(len(store.catalog.rows(table, info.fingerprint)) for info in store.snapshot().feature_sets())


def num_encoded(store: FeatureStore, *, since: int) -> int:
    """What the commits after that version say they encoded; the rest was adopted."""
    entries = store.catalog.history(store.snapshot().version, since + 1)
    return sum(part.encoded for entry in entries if entry.note for part in entry.note.changes)


def num_whole_assets(found: dict[str, bytes], rows_per_chunk: int) -> int:
    """Assets in shards beside their checksums, and in chunks whose two files are there."""
    num_assets = 0
    for path, data in found.items():
        if path.endswith(".tar") and f"{path.removesuffix('.tar')}.xxh3" in found:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                num_assets += sum(name.endswith(".npy") for name in tar.getnames())
        num_assets += rows_per_chunk * ("/vectors/c/" in path and path.replace("/vectors/c/", "/keys/c/") in found)
    return num_assets
