"""The project's own rules for cluster/: one version, an entrypoint that works, nothing open, nothing without an end."""

import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import yaml
from ray.scripts.scripts import start

from speechclip.cli import cli
from speechclip.config import Settings
from support.kube_manifests import Document, Group, groups, of_kind
from support.pod_rules import GPU, NAMESPACE, pod_findings, selects

PROJECT = Path(__file__).parents[2]


def findings(documents: list[Document]) -> Iterator[str]:
    """What breaks a rule of the project in one rendered folder, one sentence each."""
    jobs = of_kind(documents, "RayJob")
    pods = [group for job in jobs for group in groups(job)]
    yield from _images(jobs, pods)
    for job in jobs:
        found = [*_job(job), *_entrypoint(job, documents)]
        for pod in groups(job):
            found += [f"{pod.name}: {sentence}" for sentence in pod_findings(pod, job, documents)]
        yield from (f"{job['metadata']['name']}: {sentence}" for sentence in found)
    yield from _network(documents, pods)
    yield from _monitors(documents, pods)
    yield from _namespace(documents)


def locked(package: str) -> str:
    """The version in requirements.lock."""
    found = re.search(rf"^{package}==(\S+)", (PROJECT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def _images(jobs: list[Document], pods: list[Group]) -> Iterator[str]:
    images = {container.get("image", "") for pod in pods for container in pod.containers}
    if len(images) != 1:
        yield f"the pods run {len(images)} images: {', '.join(sorted(images))}"
    tag = f"{importlib.metadata.version('speechclip')}-ray{locked('ray')}"
    yield from (f"image {image} should have the tag {tag}" for image in sorted(images) if image.split(":")[1:] != [tag])
    for job in jobs:
        version = job["spec"]["rayClusterSpec"].get("rayVersion")
        if version != locked("ray"):
            yield f"rayVersion is {version}, requirements.lock has {locked('ray')}"


def _job(job: Document) -> Iterator[str]:
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    # An empty authOptions leaves authentication off, whatever its field's comment says.
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token"
    if spec.get("runtimeEnvYAML"):
        yield "runtimeEnvYAML: the image holds everything, and a runtime_env is shown to whoever sees the job"
    if spec.get("submissionMode") != "K8sJobMode" or "submitterPodTemplate" not in spec:
        yield "only K8sJobMode with a submitterPodTemplate makes a restricted submitter"
    if head.get("rayStartParams", {}).get("num-cpus") != "0" or "num-gpus" in head.get("rayStartParams", {}):
        yield "the head must offer no CPU: num-cpus: '0'"
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "the dashboard would be reachable from outside the cluster"
    if any(name not in spec for name in ("preRunningDeadlineSeconds", "activeDeadlineSeconds")):
        yield "without deadlines it waits for ever for nodes that never come"
    for group in cluster["workerGroupSpecs"]:
        sizes = {group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")}
        if _asks_gpu(group) and len(sizes) != 1:
            yield f"{group['groupName']}: a GPU group has a fixed size, not {sorted(sizes, key=str)}"
    for group in [head, *cluster["workerGroupSpecs"]]:
        known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
        yield from (f"ray start knows no --{name}" for name in group.get("rayStartParams", {}) if name not in known)


def _asks_gpu(group: Document) -> bool:
    return any(GPU in container.get("resources", {}).get("limits", {}) for container in _ray_containers(group))


def _ray_containers(group: Document) -> list[Document]:
    return group["template"]["spec"]["containers"][:1]


def _entrypoint(job: Document, documents: list[Document]) -> Iterator[str]:
    """The command exists with these options, reads settings that are mounted and valid, and fits the cluster."""
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    if python != "python" or not (PROJECT / script).is_file():
        yield f"entrypoint: {python} {script} is no script of the project"
        return
    command = cli.get_command(click.Context(cli), Path(script).stem)
    assert command is not None
    try:
        given = command.make_context(script, words, resilient_parsing=False).params
    except click.ClickException as error:
        yield f"entrypoint: {error.format_message()}"
        return
    settings = _settings(given["config"], job, documents)
    if isinstance(settings, str):
        yield f"entrypoint: {settings}"
        return
    if given.get("run") not in (None, settings.run):
        yield f"entrypoint: --out is {given['run']}, the settings' run is {settings.run}"
    if "workers" in given:
        num_pods = sum(group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
        if given["workers"] != num_pods:
            yield f"entrypoint: {given['workers']} workers for {num_pods} worker pods"


def _settings(path: str | None, job: Document, documents: list[Document]) -> Settings | str:
    """The settings that the driver, which runs on the head, would find at the path, or why there are none."""
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    sources = {volume["name"]: volume.get("configMap", {}).get("name") for volume in head.get("volumes", [])}
    for mount in head["containers"][0].get("volumeMounts", []):
        if path and str(Path(path).parent) == mount["mountPath"]:
            for document in of_kind(documents, "ConfigMap"):
                if document["metadata"]["name"] == sources.get(mount["name"]) and Path(path).name in document["data"]:
                    tree = yaml.safe_load(document["data"][Path(path).name])["metadata"]["speechclip"]
                    try:
                        return msgspec.convert(tree, Settings)
                    except msgspec.ValidationError as error:
                        return f"settings: {error}"
    return f"no ConfigMap is mounted on the head as {path}"


def _network(documents: list[Document], pods: list[Group]) -> Iterator[str]:
    """Every pod is held by a policy for both directions; nothing reaches in from everywhere, nor out to the node."""
    policies = of_kind(documents, "NetworkPolicy")
    for pod in pods:
        held = {
            kind
            for policy in policies
            if selects(policy["spec"]["podSelector"], pod)
            for kind in policy["spec"]["policyTypes"]
        }
        if held != {"Ingress", "Egress"}:
            yield f"{pod.name}: NetworkPolicies hold {sorted(held)} of it, expected Ingress and Egress"
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        if not any(selects(spec["podSelector"], pod) for pod in pods):
            yield f"NetworkPolicy {name} selects no pod"
        for rule in spec.get("ingress", []):
            if not rule.get("from") or any("ipBlock" in peer for peer in rule["from"]):
                yield f"NetworkPolicy {name} lets everybody in"
            elif {"namespaceSelector": {}} in rule["from"]:
                yield f"NetworkPolicy {name} lets every namespace in"
        for rule in spec.get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer]
            if not rule.get("to") or any("169.254.0.0/16" not in block.get("except", []) for block in blocks):
                yield f"NetworkPolicy {name} lets pods reach the node's metadata service"
            if blocks and not rule.get("ports"):
                yield f"NetworkPolicy {name} lets pods reach every port out there"


def _monitors(documents: list[Document], pods: list[Group]) -> Iterator[str]:
    """No schema of a PodMonitor is at hand, so this is all that is checked of it."""
    for monitor in of_kind(documents, "PodMonitor"):
        spec = monitor["spec"]
        chosen = [pod for pod in pods if pod.is_ray and selects(spec["selector"], pod)]
        if len(chosen) != len([pod for pod in pods if pod.is_ray]):
            yield "the PodMonitor misses Ray pods"
        ports = {port.get("name") for pod in chosen for port in pod.containers[0].get("ports", [])}
        wanted = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
        yield from (f"the PodMonitor's port {name} is no port of a Ray pod" for name in sorted(wanted - ports))


def _namespace(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Namespace":
            if document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
                yield f"{name} does not enforce restricted pods"
        elif document["metadata"].get("namespace") != NAMESPACE:
            yield f"{name} is not in namespace {NAMESPACE}"
        if document["kind"] in ("Ingress", "Secret") or document.get("spec", {}).get("type") in (
            "LoadBalancer",
            "NodePort",
        ):
            yield f"{name} does not belong here: nothing is exposed, and no secret is kept in a repository"
