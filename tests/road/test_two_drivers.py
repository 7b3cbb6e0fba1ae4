"""Two drivers at the same time, overlapping manifests, one store: the content of one doing both after the other.

One round alone: `pytest tests/road/test_two_drivers.py -k "half-s3-1"`; the number is the seed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.counts import count
from support.feature_sets import content
from support.kill_driver import Job, Nursery

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.upkeep.verify import verify

# The second manifest's rows in quarters of the first's. The same manifest opens the same plan.
OVERLAPS = {"half": (2, 6), "inner": (1, 3), "same": (0, 4)}
# Requests to S3 are slow: smaller manifests, fewer commits, fewer rounds.
QUARTERS = {"local": 4, "s3": 2}
COMMIT_SECONDS = {"local": "0.03", "s3": "0.3"}
NUM_SEEDS = {"local": count(2, 6), "s3": count(1, 2)}
ROUNDS = [((overlap, place), seed) for overlap in OVERLAPS for place in QUARTERS for seed in range(NUM_SEEDS[place])]
OPTIONS = (
    "--speech", "toy", "--image", "toy", "--text", "toy", "--codec", "fp32", "--json", "--inline",
    "--set", "featurize.tasks.shard_items=2", "--set", "featurize.tasks.chunk_rows=2", "--max-rejected", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@dataclass(frozen=True)
class Reference:
    """The content that one driver makes from both manifests, and how long the first manifest took."""

    place: str
    manifests: tuple[str, str]
    content: dict[tuple[str, str], bytes]
    seconds: float


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Reference:
    overlap, place = request.param
    folder = tmp_path_factory.mktemp("reference")
    corpus = make_synthetic(folder / "corpus", num_concepts=2 * QUARTERS[place], num_voices=3)
    next((corpus.parent / "audio").glob("*.flac")).write_bytes(b"no recording")
    table, (start, stop) = read_table(str(corpus)).table, (QUARTERS[place] * bound for bound in OVERLAPS[overlap])
    manifests = (str(folder / "first.parquet"), str(folder / "second.parquet"))
    Manifest(table[: 4 * QUARTERS[place]]).write(manifests[0])
    Manifest(table[start:stop]).write(manifests[1])
    uri = str(folder / "store")
    ended = [nursery.run(driver(manifest, uri, place, folder / "log"))[0] for manifest in manifests]
    assert [end.code for end in ended] == [0, 0], [end.errors for end in ended]
    return Reference(place, manifests, content(FeatureStore(uri).snapshot()), ended[0].seconds)


@pytest.mark.parametrize(
    ("reference", "seed"), ROUNDS, indirect=["reference"], ids=[f"{'-'.join(which)}-{seed}" for which, seed in ROUNDS]
)
def test_two_drivers_at_once_make_what_one_makes_of_both(
    seed: int, reference: Reference, nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue("s3_uri") if reference.place == "s3" else str(tmp_path / "store")
    place = reference.place
    jobs = [driver(path, uri, place, tmp_path / str(number)) for number, path in enumerate(reference.manifests)]
    # Seed 0 starts them at the same moment: they race for the store's creation and for the plan.
    jobs[1].start_after = np.random.default_rng(seed).uniform(0, reference.seconds) if seed else 0.0
    ended = nursery.run(*jobs)
    assert [end.code for end in ended] == [0, 0], [end.errors for end in ended]
    for number in range(2):
        summary = json.loads((tmp_path / f"{number}.out").read_text())
        parts = ("stored_before", "encoded", "rejected", "missing")
        assert summary["planned"] == sum(summary[part] for part in parts)
        assert summary["missing"] == 0
    check_every_version(FeatureStore(uri), reference.content)


def driver(manifest: str, uri: str, place: str, log: Path) -> Job:
    arguments = ["featurize", "--manifest", manifest, "--store", uri, *OPTIONS]
    return Job(
        action="command",
        arguments=[*arguments, "--set", f"featurize.commit_seconds={COMMIT_SECONDS[place]}"],
        log=str(log),
    )


def check_every_version(store: FeatureStore, expected: dict[tuple[str, str], bytes]) -> None:
    """Check that each version has each key once, that no key is ever lost, and that the last has all content."""
    assert verify(store).findings == ()
    head = store.snapshot()
    assert content(head) == expected
    before: set[tuple[str, str]] = set()
    for version in range(head.version + 1):
        snapshot = store.snapshot(version)
        sets = {info.fingerprint: snapshot.feature_set(info.fingerprint) for info in snapshot.feature_sets()}
        keys = [(name, key) for name, features in sets.items() for key in features]
        assert sum(len(features) for features in sets.values()) == len(set(keys)), f"version {version} has a key twice"
        assert before <= set(keys), f"version {version} lost keys"
        before = set(keys)
