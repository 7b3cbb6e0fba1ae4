"""What `kubectl kustomize` makes of a folder of cluster/, and every pod that would come of it."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDERS = sorted(
    str(path.parent.relative_to(CLUSTER))
    for path in CLUSTER.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization" and path.parent != CLUSTER / "base"
)
Document = dict[str, Any]
WAITING = {kind: {"cpu": "200m", "memory": "256Mi"} for kind in ("requests", "limits")}


@functools.cache
def _render(folder: str) -> str:
    done = subprocess.run([KUBECTL, "kustomize", CLUSTER / folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # Kustomize says here what is deprecated or was ignored.
    assert done.stderr == "", done.stderr
    return done.stdout


def render(folder: str) -> list[Document]:
    """The documents of a folder, for the caller to keep or to break."""
    return list(yaml.load_all(_render(folder), yaml.CSafeLoader))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


@dataclass(frozen=True)
class Group:
    """A kind of pod of a RayJob: the head, a worker group, or the submitter.

    `template` is its pod template as KubeRay makes it, `group` what the RayJob says (nothing for the submitter).
    """

    name: str
    template: Document
    group: Document

    @property
    def is_ray(self) -> bool:
        return self.name != "submitter"

    @property
    def labels(self) -> dict[str, str]:
        return self.template.get("metadata", {}).get("labels", {})

    @property
    def containers(self) -> list[Document]:
        spec = self.template["spec"]
        return spec["containers"] + spec.get("initContainers", [])


def groups(job: Document) -> Iterator[Group]:
    """Every kind of pod of a RayJob, with the labels and containers that KubeRay v1.7.0 adds (common/pod.go)."""
    cluster = job["spec"]["rayClusterSpec"]
    yield Group("head", _with_autoscaler(cluster), cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        template = _labelled(group["template"], "worker")
        # wait-gcs-ready copies the Ray container's image and security context.
        first = template["spec"]["containers"][0]
        waits = {name: first[name] for name in ("image", "securityContext") if name in first} | {"resources": WAITING}
        template["spec"].setdefault("initContainers", []).append({"name": "wait-gcs-ready", **deepcopy(waits)})
        yield Group(group["groupName"], template, group)
    # Without a template of ours KubeRay's own submitter has no security context at all.
    template = job["spec"].get("submitterPodTemplate", {"spec": {"containers": [{"name": "ray-job-submitter"}]}})
    yield Group("submitter", template, {})


def _with_autoscaler(cluster: Document) -> Document:
    head = cluster["headGroupSpec"]
    template = _labelled(head["template"], "head")
    if cluster.get("enableInTreeAutoscaling"):
        container = {"name": "autoscaler", "image": template["spec"]["containers"][0].get("image")}
        for name in ("image", "resources", "securityContext", "env"):
            if name in cluster.get("autoscalerOptions", {}):
                container[name] = deepcopy(cluster["autoscalerOptions"][name])
        template["spec"]["containers"].append(container)
    return template


def _labelled(template: Document, node_type: str) -> Document:
    made = deepcopy(template)
    labels = made.setdefault("metadata", {}).setdefault("labels", {})
    labels |= {"ray.io/node-type": node_type, "ray.io/is-ray-node": "yes"}
    return made
