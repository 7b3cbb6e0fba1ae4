"""Featurize on several nodes, submitted as a user does it. Nodes, network and driver fail in the middle of it."""

import logging
import time
from pathlib import Path

import pytest
from support.feature_sets import content
from support.fleet import ENCODING, Fleet, summary
from support.quiet_runs import Quiet, files, num_committed, num_encoded, num_rows, num_stored, num_whole_assets
from support.ray_hosts import wait_until

from speechclip.store import FeatureStore

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.ray

EACH_TASK_A_COMMIT = ("--set", "featurize.commit_seconds=0")
# Ray Data gives an actor at most so many tasks at once.
IN_FLIGHT = 2


@pytest.mark.parametrize("encoders", ["tiny", pytest.param("toy", marks=pytest.mark.slow)])
def test_three_nodes_make_the_same_as_one_process(
    fleet: Fleet, encoders: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    quiet: Quiet = request.getfixturevalue(encoders)
    fleet.resize(3)
    store = FeatureStore(str(tmp_path / "store"))
    job = fleet.submit("featurize", *quiet.options, "--store", store.storage.root)
    assert summary(fleet.rays.finish(job))["encoded"] == len(quiet.content)
    assert len({task["node_id"] for task in fleet.tasks(job, ENCODING)}) > 1, "several nodes encoded"
    assert_equal(store, quiet)


def test_a_node_killed_in_the_middle_costs_no_more_than_it_had_in_flight(
    fleet: Fleet, toy: Quiet, tmp_path: Path
) -> None:
    fleet.resize(3)
    store = FeatureStore(str(tmp_path / "store"))
    job = start(fleet, toy, store)
    places = fleet.places(job, ENCODING)
    victim, num_actors = places.most_common(1)[0]
    before = content(store.snapshot())
    assert len(before) < len(toy.content)
    fleet.lose(victim)
    lost = time.monotonic()
    wait_until(lambda: fleet.is_over(job) or fleet.places(job, ENCODING).total() == places.total(), "as many encoders")
    logger.info("%.0f s from the loss of a node to as many encoders as before", time.monotonic() - lost)
    assert summary(fleet.rays.finish(job))["encoded"] == len(toy.content)
    assert_equal(store, toy)
    assert_redone(fleet, job, num_actors)


def start(fleet: Fleet, quiet: Quiet, store: FeatureStore, *options: str, num_commits: int = 5) -> str:
    """A job in the middle of its work: so many tasks are committed, others are not."""
    job = fleet.submit("featurize", *quiet.options, "--store", store.storage.root, *EACH_TASK_A_COMMIT, *options)
    wait_until(
        lambda: fleet.is_over(job) or num_committed(store) >= num_commits, f"{num_commits} commits", 200,
        lambda: fleet.rays.log(job),
    )  # fmt: skip
    return job


def assert_equal(store: FeatureStore, quiet: Quiet) -> None:
    """The same keys, the same bytes, each key committed once."""
    assert content(store.snapshot()) == quiet.content
    assert files(store) == quiet.files
    assert num_rows(store) == len(quiet.content)


def assert_redone(fleet: Fleet, job: str, num_actors: int) -> None:
    """The lost encoders' tasks alone were given to others."""
    again = {task["task_id"] for task in fleet.tasks(job, ENCODING) if int(task["attempt_number"]) > 0}
    assert 0 < len(again) <= IN_FLIGHT * num_actors


@pytest.mark.slow
def test_a_driver_killed_in_the_middle_leaves_a_plan_that_the_next_one_completes(
    fleet: Fleet, toy: Quiet, tmp_path: Path
) -> None:
    fleet.resize(2)
    store = FeatureStore(str(tmp_path / "store"))
    job = start(fleet, toy, store)
    fleet.rays.kill_driver(job)
    state, _, log = fleet.end(job)
    assert state == "FAILED", log
    # Tasks that were in work may still be written.
    wait_until(lambda: not fleet.actors(job, ENCODING), "its encoders are gone")
    version, num_settled = store.snapshot().version, num_stored(store)
    num_whole = num_whole_assets(files(store), 2)
    assert 0 < num_settled <= num_whole < len(toy.content)
    left = summary(fleet.rays.finish(fleet.submit("featurize", *toy.options, "--store", store.storage.root)))
    assert (left["stored_before"], left["encoded"]) == (num_settled, len(toy.content) - num_settled)
    assert num_encoded(store, since=version) == len(toy.content) - num_whole, "whole shards are reused"
    assert content(store.snapshot()) == toy.content
    assert files(store) == toy.files


@pytest.mark.slow
def test_a_node_cut_off_for_twenty_seconds_costs_no_more_than_it_had_in_flight(
    fleet: Fleet, toy: Quiet, tmp_path: Path
) -> None:
    fleet.resize(3)
    store = FeatureStore(str(tmp_path / "store"))
    job = start(fleet, toy, store)
    victim, num_actors = fleet.places(job, ENCODING).most_common(1)[0]
    host = fleet.workers[victim]
    host.cut()
    fleet.rays.wait_for(3)
    time.sleep(20)
    host.heal()
    assert summary(fleet.rays.finish(job))["encoded"] == len(toy.content)
    fleet.lose(victim)
    assert_equal(store, toy)
    assert_redone(fleet, job, num_actors)


@pytest.mark.slow
def test_all_nodes_gone_for_good_end_the_job_with_a_sentence(fleet: Fleet, toy: Quiet, tmp_path: Path) -> None:
    fleet.resize(2)
    store = FeatureStore(str(tmp_path / "store"))
    job = start(fleet, toy, store, "--set", "featurize.no_progress_seconds=15")
    for name in list(fleet.workers):
        fleet.lose(name)
    state, code, log = fleet.end(job)
    assert (state, code) == ("FAILED", 3), log
    assert "no task was finished for 15 s" in log
