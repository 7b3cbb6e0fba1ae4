"""Featurize and train from our own manifests: what KubeRay would start is started, over S3, as cluster/README.md says.

Not here: the API server, the operator, the container runtime, the autoscaler, and the workload identity, in whose place
the pods have S3 credentials in their environment.
"""

import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from support import hosts, s3_servers
from support.fleet import summary
from support.hosts import Network
from support.kube_hosts import RayJobHosts
from support.kube_manifests import CLUSTER, render
from support.kuberay_commands import quantity
from support.ray_hosts import copy_project

from speechclip.cli import cli
from speechclip.store import FeatureStore
from speechclip.training.checkpoint import RunFolder

pytestmark = pytest.mark.ray
README = (CLUSTER / "README.md").read_text()
CONCEPTS, VOICES, STEPS = 12, 3, 40


@dataclass
class Room:
    """A network with the bucket, cluster/ and the project in it, and what the RayJobs said so far."""

    network: Network
    folder: Path
    endpoint: str
    bucket: str
    said: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}/small"

    def command(self, start: str, *more: str) -> str:
        """The command of the README that starts so, run by somebody who sees the bucket; its output."""
        (found,) = re.findall(rf"^    speechclip ({start}.*?)(?:  +#.*)?$", README, re.MULTILINE)
        words = found.replace("my-bucket", self.bucket).split()
        done = CliRunner().invoke(cli, [*words, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def ray_job(self, name: str) -> None:
        """Apply that folder of the small overlay, and wait as the README does."""
        documents = render(str(self.folder / "cluster" / "overlays" / "small" / name))
        job = RayJobHosts(self.network, documents, self.folder / "project", s3_servers.environment(self.endpoint))
        job.start()
        assert status_without_token(job.url) == 401
        self.nodes[name] = job.nodes()
        code, self.said[name] = job.submit_and_follow()
        assert code == 0, self.said[name]
        job.finish(job.run.job_id)
        job.stop()


def status_without_token(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/api/jobs/", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def fill_in(folder: Path, bucket: str) -> None:
    """A copy of cluster/ with the bucket's name in it, by the README's own command, and fewer steps to train."""
    shutil.copytree(CLUSTER, folder / "cluster")
    (command,) = re.findall(r"^    (sed -i .*)$", README, re.MULTILINE)
    subprocess.run(["sh", "-ec", command.replace("my-bucket", bucket)], cwd=folder, check=True)
    file = folder / "cluster" / "components" / "small" / "settings.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["metadata"]["speechclip"]["recipe_overrides"] = {"max_steps": STEPS, "validate_every": STEPS}
    file.write_text(yaml.safe_dump(tree))


def upload(folder: Path, endpoint: str, bucket: str, prefix: str) -> None:
    """`aws s3 cp --recursive`."""
    client = s3_servers.client(endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """All of it up to step 3 of the README: the bucket holds a corpus and its manifest."""
    if reason := hosts.why_not():
        pytest.skip(f"cluster/ was NOT run: {reason}")
    folder = tmp_path_factory.mktemp("cluster")
    with (
        Network(folder / "hosts") as network,
        s3_servers.moto(network.gateway) as endpoint,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in s3_servers.environment(endpoint).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        made = Room(network, folder, endpoint, s3_servers.new_bucket(endpoint))
        fill_in(folder, made.bucket)
        copy_project(folder / "project")
        made.command("ingest synthetic", "--concepts", str(CONCEPTS), "--voices", str(VOICES))
        upload(folder / "corpus", endpoint, made.bucket, "small/corpus")
        made.command("ingest table")
        yield made


@pytest.fixture(scope="module")
def featurized(room: Room) -> Room:
    room.ray_job("featurize")
    return room


@pytest.fixture(scope="module")
def trained(featurized: Room) -> Room:
    featurized.ray_job("train")
    return featurized


def test_featurize_stores_every_feature_in_the_bucket(featurized: Room) -> None:
    said = featurized.said["featurize"]
    found = summary(said)
    assert found["encoded"] == found["planned"] == CONCEPTS * (VOICES + 1 + 1)
    assert "starting Ray" in said, "all the work was done by the driver"


@pytest.mark.parametrize("step", ["featurize", "train"])
def test_ray_has_what_the_pods_ask_for(trained: Room, step: str) -> None:
    (job,) = [one for one in render(f"overlays/small/{step}") if one["kind"] == "RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    limits = [one["template"]["spec"]["containers"][0]["resources"]["limits"] for one in (head, group)]
    asked = [(0.0, quantity(limits[0]["memory"]))] + [(float(limits[1]["cpu"]), quantity(limits[1]["memory"]))] * group[
        "replicas"
    ]
    found = [node["resources_total"] for node in sorted(trained.nodes[step], key=lambda node: not node["is_head_node"])]
    assert [(node.get("CPU", 0.0), node["memory"]) for node in found] == asked
    # Plasma lies in the pod's memory: a share of the limit, not of the machine.
    assert all(node["object_store_memory"] < 0.4 * node["memory"] for node in found)


def test_train_leaves_a_head_in_the_bucket(trained: Room) -> None:
    finished = RunFolder(f"{trained.root}/run").finished()
    assert finished is not None
    assert finished.num_steps == STEPS
    assert f"step {STEPS} of {STEPS}" in trained.said["train"]


def test_evaluate_reads_it_as_the_readme_says(trained: Room) -> None:
    shown = trained.command("evaluate")
    assert "R@1" in shown
    assert FeatureStore(f"{trained.root}/features").exists()
