"""A job that starts before its nodes says so and waits. If no node comes, it ends with an error in one sentence."""

from pathlib import Path

import pytest
import yaml
from support.feature_sets import content
from support.fleet import Fleet, summary
from support.paired_corpus import write_corpus
from support.quiet_runs import Quiet, files
from support.ray_hosts import PROJECT, copy_project, wait_until

from speechclip.store import FeatureStore

pytestmark = pytest.mark.ray


def test_nodes_that_never_come_end_featurize_and_train_with_a_sentence(
    fleet: Fleet, tiny: Quiet, tmp_path: Path
) -> None:
    fleet.resize(0)
    corpus = write_corpus(str(tmp_path / "paired"))
    corpus.manifest.write(str(tmp_path / "m.parquet"))
    soon = ("--set", "node_wait_seconds=2")
    featurize = fleet.submit("featurize", *tiny.options, "--store", str(tmp_path / "store"), *soon)
    where = ("--manifest", str(tmp_path / "m.parquet"), "--store", corpus.store_uri, "--out", str(tmp_path / "run"))
    train = fleet.submit("train", *where, "--recipe", "demo-parallel", "--set", "batch_size=9", "--workers", "4", *soon)
    no_cpu, no_room = "the Ray cluster has no CPU for decoding", "4 workers need 1 CPUs, the Ray cluster has 0"
    for job, lack in ((featurize, no_cpu), (train, no_room)):
        state, code, log = fleet.end(job)
        assert (state, code) == ("FAILED", 3), log
        assert f"{lack}; waiting 2 s for more nodes" in log
        assert "no node came within 2 s" in log


def test_a_job_waits_for_the_first_node_and_makes_the_same_as_one_process(
    fleet: Fleet, tiny: Quiet, tmp_path: Path
) -> None:
    fleet.resize(0)
    store = FeatureStore(str(tmp_path / "store"))
    config = yaml.safe_load((PROJECT / "ray_config.yaml").read_text())
    config["metadata"]["speechclip"] = tiny.settings | {"store": store.storage.root}
    job = fleet.submit("featurize", project=copy_project(tmp_path / "project", yaml.safe_dump(config)))
    wait_until(lambda: "waiting 300 s for more nodes" in fleet.rays.log(job), "it waits", 120)
    fleet.resize(1)
    assert summary(fleet.rays.finish(job))["encoded"] == len(tiny.content)
    assert content(store.snapshot()) == tiny.content
    assert files(store) == tiny.files
