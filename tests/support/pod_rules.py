"""The project's own rules for every pod that cluster/ makes: restricted, with requests = limits, and nothing secret."""

import re
from collections.abc import Iterator
from typing import Any

from support.kube_manifests import Document, Group, of_kind

LABEL = {"app.kubernetes.io/part-of": "speechclip"}
NAMESPACE = "speechclip"
GPU = "nvidia.com/gpu"
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
# By each of these Ray would unpickle what a file brings along.
UNPICKLES = re.compile(r"RAY_DATA_(WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION|AUTOLOAD_\w+)")
AUTOSCALER_NEEDS = {
    ("pods", "list"), ("pods", "watch"), ("pods", "patch"), ("rayclusters", "get"), ("rayclusters", "patch"),
}  # fmt: skip
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
UNITS = {"Gi": 2**30, "Mi": 2**20, "Ki": 2**10, "m": 1e-3, "": 1.0}


def pod_findings(pod: Group, job: Document, documents: list[Document]) -> Iterator[str]:
    spec = pod.template["spec"]
    if LABEL.items() - pod.labels.items():
        yield "lacks the project's label, so no NetworkPolicy holds for it"
    yield from _restricted(spec, pod.containers)
    yield from _account(pod, job, documents)
    yield from _volumes(pod, documents)
    for container in pod.containers:
        yield from (f"{container['name']}: {sentence}" for sentence in _sizes(container, pod))
        yield from (f"{container['name']}: {sentence}" for sentence in _environment(container))


def _restricted(spec: Document, containers: list[Document]) -> Iterator[str]:
    """Kubernetes' Pod Security Standard `restricted`."""
    yield from (f"{name} is not allowed" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    for volume in spec.get("volumes", []):
        yield from (f"volume {volume['name']}: {kind} is not allowed" for kind in volume.keys() - VOLUMES - {"name"})
    for container in containers:
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        capabilities = context.get("capabilities", {})
        broken = {
            "runAsNonRoot": context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
            "capabilities": "ALL" not in capabilities.get("drop", [])
            or bool(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}),
            "privileged": bool(context.get("privileged")),
            "hostPort": any("hostPort" in port for port in container.get("ports", [])),
        }
        yield from (f"{container['name']}: {name} is not restricted" for name, is_broken in broken.items() if is_broken)


def _account(pod: Group, job: Document, documents: list[Document]) -> Iterator[str]:
    """Who may speak to the API server: the autoscaler alone, with a Role that is enough for it."""
    spec = pod.template["spec"]
    name = spec.get("serviceAccountName", "default")
    known = {document["metadata"]["name"] for document in of_kind(documents, "ServiceAccount")} | {"default"}
    if name not in known:
        yield f"no ServiceAccount is called {name}"
    autoscales = pod.name == "head" and job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)
    if spec.get("automountServiceAccountToken") is not autoscales:
        yield f"automountServiceAccountToken must be {str(autoscales).lower()}"
    if autoscales and AUTOSCALER_NEEDS - _may(name, documents):
        yield f"{name} lacks what the autoscaler needs: {sorted(AUTOSCALER_NEEDS - _may(name, documents))}"
    if not autoscales and _may(name, documents):
        yield f"{name} may do more than nothing"


def _may(account: str, documents: list[Document]) -> set[tuple[str, str]]:
    roles = {
        binding["roleRef"]["name"]
        for binding in of_kind(documents, "RoleBinding")
        if any(subject["name"] == account and subject.get("namespace") == NAMESPACE for subject in binding["subjects"])
    }
    rules = [rule for role in of_kind(documents, "Role") if role["metadata"]["name"] in roles for rule in role["rules"]]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def _volumes(pod: Group, documents: list[Document]) -> Iterator[str]:
    spec = pod.template["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    maps = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    secrets = {document["metadata"]["name"] for document in of_kind(documents, "Secret")}
    for container in pod.containers:
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        yield from (f"{container['name']}: mounts {name}, which is no volume" for name in sorted(mounts - set(volumes)))
    for name, volume in volumes.items():
        if "configMap" in volume and volume["configMap"]["name"] not in maps:
            yield f"volume {name}: no ConfigMap is called {volume['configMap']['name']}"
        if "secret" in volume and volume["secret"]["secretName"] not in secrets:
            yield f"volume {name}: no Secret is called {volume['secret']['secretName']}"
        disk = spec["containers"][0].get("resources", {}).get("limits", {}).get("ephemeral-storage", "0")
        if "emptyDir" in volume and not 0 < _number(volume["emptyDir"].get("sizeLimit", "0")) < _number(disk):
            yield f"volume {name}: needs a sizeLimit below the pod's ephemeral-storage, {disk}"
    paths = {mount["mountPath"] for mount in spec["containers"][0].get("volumeMounts", [])}
    if pod.is_ray and "/tmp/ray" not in paths:
        yield "Ray's logs and what it spills need a volume at /tmp/ray"


def _sizes(container: Document, pod: Group) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if requests != limits or not {"cpu", "memory"} <= requests.keys():
        yield f"requests {requests} and limits {limits} must be equal and name cpu and memory"
    # Ray counts in whole CPUs; KubeRay would round up and promise what is not there.
    elif pod.is_ray and container is pod.template["spec"]["containers"][0] and _number(limits["cpu"]) % 1:
        yield f"cpu {limits['cpu']} is no whole number"


def _environment(container: Document) -> Iterator[str]:
    for entry in container.get("env", []):
        if SECRET.search(entry["name"]) and "value" in entry:
            yield f"{entry['name']} stands there in clear"
        if UNPICKLES.fullmatch(entry["name"]):
            yield f"{entry['name']} lets files run code"


def selects(selector: Document, pod: Group) -> bool:
    return not selector.get("matchLabels", {}).items() - pod.labels.items()


def _number(quantity: Any) -> float:
    found = re.fullmatch(r"([0-9.]+)(Gi|Mi|Ki|m|)", str(quantity))
    assert found, quantity
    return float(found[1]) * UNITS[found[2]]
