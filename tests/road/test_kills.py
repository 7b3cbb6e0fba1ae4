"""SIGKILL at named points and at random moments: no half file is seen, no commit is lost, nothing is done twice.

One round alone: `pytest tests/road/test_kills.py -k "before-the-plan-3"`, or `-k "any_moment and [17]"`; the number
is the seed. Some rounds are on S3: every eighth in CI.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.counts import count
from support.crash_points import POINTS, read_log
from support.feature_sets import content
from support.kill_driver import Job, Nursery

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.upkeep.verify import verify

# These points exist only for local files: S3 has no half-written object.
INSIDE = {name for name, point in POINTS.items() if point.when == "inside"}
# At these points a task is encoded, but its files are not complete on storage.
IN_FLIGHT = {
    "after encoding", "inside a shard", "between shard and checksums", "inside a chunk", "between vectors and keys",
}  # fmt: skip
NAMED = [(name, seed) for name in POINTS for seed in range(count(1, 13))]
# Requests to S3 are slow, so that run is smaller.
NUM_ROWS = {"local": 24, "s3": 9}
S3_EVERY = count(8, 32)
# With the ninety of drop and gc (upkeep/test_kills_in_gc.py), 490 in the long run.
MOMENTS = range(count(5, 400 - len(NAMED)))


@dataclass
class Whole:
    """A run without kills: what its store holds, how often it passed each point, how long it takes."""

    manifest: Path
    content: dict[tuple[str, str], bytes]
    rejected: list[tuple[str, str]]
    files: dict[str, bytes]
    num_passed: Counter[str]
    seconds: float | None


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> dict[str, Whole]:
    """Twenty tasks for local rounds, nine for those on S3; in both one recording is broken and one is gone."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = make_synthetic(folder / "corpus", num_concepts=8, num_voices=3)
    recordings = sorted((corpus.parent / "audio").iterdir())
    recordings[1].write_bytes(b"no recording")
    table = read_table(str(corpus)).table.sort_by("audio_uri")
    recordings[4].unlink()
    return {name: run_whole(nursery, folder / name, Manifest(table[:rows])) for name, rows in NUM_ROWS.items()}


def run_whole(nursery: Nursery, folder: Path, manifest: Manifest) -> Whole:
    folder.mkdir()
    manifest.write(str(folder / "manifest.parquet"))
    arguments = [str(folder / "manifest.parquet"), str(folder / "store")]
    ended = nursery.run(Job(action="featurize", arguments=arguments, log=str(folder / "log")))[0]
    assert ended.code == 0, ended.errors
    store = FeatureStore(str(folder / "store"))
    return Whole(
        manifest=folder / "manifest.parquet",
        content=content(store.snapshot()),
        rejected=rejected(store, manifest.digest),
        files=files(store),
        num_passed=Counter(entry["passed"] for entry in read_log(folder / "log") if "passed" in entry),
        seconds=ended.seconds if folder.name == "local" else None,
    )


@pytest.mark.parametrize(("point", "seed"), NAMED, ids=[f"{name.replace(' ', '-')}-{seed}" for name, seed in NAMED])
def test_a_run_killed_at_a_named_point_ends_like_one_without_kills(
    point: str, seed: int, wholes: dict[str, Whole], nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_remote = (seed + list(POINTS).index(point)) % S3_EVERY == 7 and point not in INSIDE
    uri, whole = place(is_remote, wholes, tmp_path, request)
    nth = int(np.random.default_rng(seed).integers(1, whole.num_passed[point] + 1))
    ended = nursery.run(job(uri, whole, tmp_path, point=point, nth=nth))[0]
    assert ended.code == -9, f"call {nth} at {point!r} ended with {ended.code}: {ended.errors}"
    check_survivors(uri, whole, tmp_path)
    finish(uri, whole, nursery, tmp_path)
    assert num_reencoded(tmp_path) == (point in IN_FLIGHT), f"call {nth} at {point!r}"


@pytest.mark.parametrize("seed", MOMENTS)
def test_a_run_killed_at_any_moment_ends_like_one_without_kills(
    seed: int, wholes: dict[str, Whole], nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri, whole = place(seed % S3_EVERY == 7, wholes, tmp_path, request)
    if whole.seconds is None:
        whole.seconds = nursery.run(job(f"{uri}-timed", whole, tmp_path / "timed"))[0].seconds
    chance, num_kills = np.random.default_rng(seed), 1 + seed % 2
    for number in range(num_kills):
        moment = chance.uniform(0, whole.seconds)
        ended = nursery.run(job(uri, whole, tmp_path, kill_after=moment))[0]
        assert ended.code == -9, f"kill {number} after {moment:.3f} s: {ended.errors}"
        check_survivors(uri, whole, tmp_path, 1 + number)
    finish(uri, whole, nursery, tmp_path)
    assert num_reencoded(tmp_path) <= num_kills


def place(
    is_remote: bool, wholes: dict[str, Whole], tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[str, Whole]:
    if is_remote:
        return request.getfixturevalue("s3_uri"), wholes["s3"]
    return str(tmp_path / "store"), wholes["local"]


def job(uri: str, whole: Whole, folder: Path, **kill: Any) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(action="featurize", arguments=[str(whole.manifest), uri], log=str(folder / "log"), **kill)


def rejected(store: FeatureStore, manifest: str) -> list[tuple[str, str]]:
    snapshot = store.snapshot()
    rows = [
        row for info in snapshot.feature_sets() for row in snapshot.rejections(info.fingerprint, manifest).to_pylist()
    ]
    return sorted((row["asset"], row["reason"]) for row in rows)


def files(store: FeatureStore) -> dict[str, bytes]:
    return {path: store.storage.read(path) for path in store.storage.list("features")}


def committed(tmp_path: Path) -> list[int]:
    return [entry["committed"] for entry in read_log(tmp_path / "log") if "committed" in entry]


def num_reencoded(tmp_path: Path) -> int:
    """How many times a task was encoded again. One call of the encoder is one task."""
    calls = [tuple(entry["encoding"]) for entry in read_log(tmp_path / "log") if "encoding" in entry]
    return len(calls) - len(set(calls))


def check_survivors(uri: str, whole: Whole, folder: Path, num_kills: int = 1) -> None:
    """Check that all visible features are right and that every acknowledged version is still there."""
    store, acknowledged = FeatureStore(uri), committed(folder)
    if not store.exists():
        assert not acknowledged
        return
    assert verify(store).findings == ()
    head = store.snapshot()
    found = content(head)
    assert found.items() <= whole.content.items()
    assert set(rejected(store, digest(whole))) <= set(whole.rejected)
    # Each killed run may have made at most one commit that it did not report.
    assert 0 <= head.version - len(acknowledged) <= num_kills
    for version in acknowledged:
        snapshot = store.snapshot(version)
        keys = {
            (info.fingerprint, key)
            for info in snapshot.feature_sets()
            for key in snapshot.stored_keys(info.fingerprint)
        }
        assert keys <= found.keys()


def finish(uri: str, whole: Whole, nursery: Nursery, folder: Path) -> None:
    """Run to the end, and check that the store equals that of a run without kills, byte by byte, each key once."""
    ended = nursery.run(job(uri, whole, folder))[0]
    assert ended.code == 0, ended.errors
    store = FeatureStore(uri)
    assert content(store.snapshot()) == whole.content
    assert rejected(store, digest(whole)) == whole.rejected
    assert files(store) == whole.files
    assert verify(store).findings == ()
    rows = store.catalog.open().table.to_pyarrow_table(columns=["feature_set", "asset"]).to_pylist()
    assert len(rows) == len({tuple(row.values()) for row in rows}), "a key was committed twice"


def digest(whole: Whole) -> str:
    return Manifest.read(str(whole.manifest)).digest
