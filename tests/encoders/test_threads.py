"""The number of threads that the environment allows changes no feature, and encoding leaves a caller's number alone."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.encoders import load_encoder, prepare
from speechclip.encoders.threads import one_blas_thread, one_thread

PROJECT = Path(__file__).parents[2]
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ENCODERS = (
    ("--speech", "toy", "--image", "toy", "--text", "toy", "--codec", "fp32"),
    ("--speech", "hubert:untrained-tiny", "--image", "clip:untrained-tiny", "--text", "clip:untrained-tiny"),
)
# One process, in which torch is loaded after the toy has encoded.
RUN = """
import sys
from speechclip.cli import cli
manifest, store, *rest = sys.argv[1:]
for options in {encoders}:
    cli.main(["featurize", "--manifest", manifest, "--store", store, *options, *rest], standalone_mode=False)
"""


@cache
def manifest() -> str:
    """Forty-eight utterances of twelve things."""
    folder = Path(mkdtemp(prefix="threads-"))
    read_table(str(make_synthetic(folder / "corpus", num_concepts=12, num_voices=4))).write(str(folder / "m.parquet"))
    return str(folder / "m.parquet")


def feature_files(store: Path, encoders: tuple[tuple[str, ...], ...], threads: dict[str, str], *options: str) -> str:
    """A digest of every feature file's path and bytes, made in a process with that environment."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | threads
    code = RUN.format(encoders=encoders)
    done = subprocess.run(
        [sys.executable, "-c", code, manifest(), str(store), *options],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256()
    paths = sorted(path for path in (store / "features").rglob("*") if path.is_file())
    assert paths
    for path in paths:
        digest.update(f"{path.relative_to(store)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def test_shards_have_the_same_bytes_whatever_the_environment_allows(tmp_path: Path) -> None:
    environments = [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "4"},
    ]
    found = {
        feature_files(tmp_path / str(number), ENCODERS, threads, "--inline")
        for number, threads in enumerate(environments)
    }
    assert len(found) == 1


@pytest.mark.ray
def test_shards_made_on_ray_have_the_bytes_of_those_made_inline(tmp_path: Path) -> None:
    inline = feature_files(tmp_path / "inline", ENCODERS[:1], {"OMP_NUM_THREADS": "1"}, "--inline")
    on_ray = feature_files(
        tmp_path / "ray", ENCODERS[:1], {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}, "--num-cpus", "2"
    )
    assert on_ray == inline


@one_thread()
def fail_on_one_thread() -> None:
    assert (torch.get_num_threads(), blas_threads()) == (1, {1})
    raise ZeroDivisionError


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch and numpy on two threads each, as a user may have set them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("source", ["toy", "torchaudio:untrained-tiny", "whisper:untrained-tiny"])
def test_the_callers_threads_are_as_before(voice: Callable[..., np.ndarray], source: str) -> None:
    before = blas_threads()
    encoder = load_encoder(source, "speech")
    encoder.encode([prepare(encoder.spec)(voice(4_000))])
    assert torch.get_num_threads() == 2
    assert blas_threads() == before


@pytest.mark.usefixtures("two_threads")
def test_the_callers_threads_are_as_before_after_an_error() -> None:
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        fail_on_one_thread()
    assert torch.get_num_threads() == 2
    assert blas_threads() == before


@pytest.mark.usefixtures("two_threads")
def test_every_thread_of_a_process_can_limit_the_threads_of_numpy() -> None:
    found: list[set[int]] = []

    def encode() -> None:
        with one_blas_thread():
            found.append(blas_threads())

    for _ in range(2):
        one = threading.Thread(target=encode)
        one.start()
        one.join()
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        # Inside, threadpoolctl lets this thread alone set the number.
        other = threading.Thread(target=encode)
        other.start()
        other.join()
    assert found == [{1}] * 3


@pytest.mark.usefixtures("two_threads")
def test_a_thread_that_leaves_first_does_not_give_threads_to_one_that_still_encodes() -> None:
    before, inside, leave = blas_threads(), threading.Event(), threading.Event()

    def encode_long() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait(30)

    other = threading.Thread(target=encode_long)
    with one_blas_thread():
        other.start()
        assert inside.wait(30)
    assert blas_threads() == {1}
    leave.set()
    other.join()
    assert blas_threads() == before
