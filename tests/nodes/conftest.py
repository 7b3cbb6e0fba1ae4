"""One cluster of several hosts for all tests of this folder, because Ray's start takes longer than most of them."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hosts
from support.fleet import Fleet
from support.quiet_runs import Quiet, run_quietly
from support.ray_hosts import RayHosts, copy_project


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """A head without workers. Each test sets the number of workers that it needs."""
    lack = hosts.why_not()
    if lack:
        logging.getLogger(__name__).warning("NOT TESTED, several nodes: %s", lack)
        pytest.skip(f"several nodes are NOT TESTED on this machine: {lack}")
    # Short: the path of a Unix socket holds 107 characters.
    with tempfile.TemporaryDirectory(prefix="f-", ignore_cleanup_errors=True) as folder:
        project = Path(folder) / "project"
        project.mkdir()
        with hosts.Network(Path(folder)) as network:
            rays = RayHosts(network)
            rays.start_head()
            yield Fleet(rays, copy_project(project))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """Small HuBERT and CLIP over 24 utterances and 12 pictures: 12 + 6 tasks."""
    return run_quietly(tmp_path_factory.mktemp("tiny"), "tiny", num_concepts=12, num_voices=2, per_task=(2, 2))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """Toy encoders over 120 utterances, 60 pictures and 60 texts: three times 30 tasks."""
    return run_quietly(tmp_path_factory.mktemp("toy"), "toy", num_concepts=60, num_voices=2, per_task=(4, 2))
