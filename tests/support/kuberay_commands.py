"""What KubeRay 1.7.0 runs in the pods of a RayJob, and in which environment, from the RayJob alone.

After ray-operator/controllers/ray/common/pod.go (setMissingRayStartParams, generateRayStartCommand, convertParamMap,
BuildPod, setContainerEnvVars) and job.go (BuildJobSubmitCommand) of that version.
"""

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from support.kube_manifests import Document

HEAD_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = 6379, 8265, 52365, 8080
# Where the kubelet asks a pod of Ray 2.53 or newer whether it is ready.
READY_PATH = "/api/healthz"
VALUED_BOOLEANS = ("log-color", "include-dashboard", "include-log-monitor")
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
HEALTH = (
    "python -c \"import urllib.request; r=urllib.request.urlopen('{url}', timeout=10); "
    "exit(0 if b'success' in r.read() else 1)\""
)
WAIT_FOR_GCS = """
SECONDS=0
while true; do
    if (( SECONDS <= 120 )); then
        if ray health-check --address {address} > /dev/null 2>&1; then
            echo "GCS is ready."
            break
        fi
        echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
    else
        if ray health-check --address {address}; then
            echo "GCS is ready. Any error messages above can be safely ignored."
            break
        fi
        echo "$SECONDS seconds elapsed: Still waiting for GCS to be ready."
    fi
    sleep 5
done
"""


def shell(script: str, options: str = "c") -> list[str]:
    """How KubeRay starts a script."""
    return ["/bin/bash", f"-{options}", "--", script]


def quantity(text: str) -> int:
    """A Kubernetes quantity as a whole number, rounded up: 5Gi, 500m, 2."""
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    assert found, text
    return math.ceil(float(found[1]) * UNITS[found[2]])


def ray_start(given: Mapping[str, str], resources: Document, *, address: str = "") -> str:
    """`ray start` of the head, or of a worker of the head at that address."""
    params = dict(given)
    if address:
        params.setdefault("address", address)
    else:
        params.setdefault("dashboard-host", "0.0.0.0")
    params.setdefault("metrics-export-port", str(METRICS_PORT))
    params["block"] = "true"
    params.setdefault("dashboard-agent-listen-port", str(AGENT_PORT))
    limits = resources.get("limits", {})
    cpus = limits.get("cpu") or resources.get("requests", {}).get("cpu")
    if cpus:
        params.setdefault("num-cpus", str(quantity(cpus)))
    if "memory" in limits:
        params.setdefault("memory", str(quantity(limits["memory"])))
    for name in sorted(limits):
        if name.endswith("gpu") or name.startswith("nvidia.com/mig-"):
            params.setdefault("num-gpus", str(quantity(limits[name])))
    return f"ray start {'' if address else '--head '}{flags(params)}"


def flags(params: Mapping[str, str]) -> str:
    """As `ray start` takes them; a switch that is off goes without saying."""
    said = ""
    for name, value in sorted(params.items()):
        if value.lower() not in ("true", "false") or name in VALUED_BOOLEANS:
            said += f" --{name}={value} "
        elif value.lower() == "true":
            said += f" --{name} "
    return said


@dataclass(frozen=True)
class RayJobRun:
    """A RayJob whose cluster the operator has named and given a token."""

    job: Document
    name: str = field(default_factory=lambda: secrets.token_hex(3)[:5])
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def cluster(self) -> str:
        return f"{self.job['metadata']['name']}-{self.name}"

    @property
    def job_id(self) -> str:
        return f"{self.job['metadata']['name']}-{self.name}"

    @property
    def service(self) -> str:
        """The head's name within Kubernetes."""
        return f"{self.cluster}-head-svc.{self.job['metadata']['namespace']}.svc.cluster.local"

    @property
    def spec(self) -> Document:
        spec: Document = self.job["spec"]["rayClusterSpec"]
        return spec

    @property
    def _autoscales(self) -> bool:
        return bool(self.spec.get("enableInTreeAutoscaling"))

    def head_script(self) -> str:
        """What the head's container runs."""
        group = self.spec["headGroupSpec"]
        # The autoscaler is a container of its own, which needs the API server.
        params = dict(group.get("rayStartParams", {})) | ({"no-monitor": "true"} if self._autoscales else {})
        return _with_files(ray_start(params, _container(group)["resources"]))

    def worker_scripts(self, group: Document) -> tuple[str, str]:
        """What the container that waits runs, then what Ray's runs."""
        address = f"{self.service}:{HEAD_PORT}"
        start = ray_start(group.get("rayStartParams", {}), _container(group)["resources"], address=address)
        return WAIT_FOR_GCS.format(address=address), _with_files(start)

    def submit_script(self) -> str:
        """What the submitter's container runs, under `bash -e`."""
        spec, address = self.job["spec"], f"http://{self.service}:{DASHBOARD_PORT}"
        waits = f'echo "Waiting for Ray Dashboard GCS to become healthy at {address} ..." ; sleep 2 ; done ;'
        words = [f"until {HEALTH.format(url=address + '/api/gcs_healthz')} >/dev/null 2>&1 ; do {waits}"]
        words += [f"if ! ray job status --address {address} {self.job_id} >/dev/null 2>&1 ; then"]
        words += [f"ray job submit --address {address} --no-wait"]
        if spec.get("runtimeEnvYAML"):
            words += ["--runtime-env-json", json.dumps(_json(yaml.safe_load(spec["runtimeEnvYAML"])))]
        if spec.get("metadata"):
            words += ["--metadata-json", json.dumps(_json(spec["metadata"]))]
        words += ["--submission-id", self.job_id]
        words += [f"--entrypoint-num-{kind.lower()} {spec[name]:f}" for kind in ("Cpus", "Gpus")
                  if spec.get(name := f"entrypointNum{kind}")]  # fmt: skip
        if spec.get("entrypointResources"):
            words += ["--entrypoint-resources", json.dumps(spec["entrypointResources"])]
        words += ["--", spec["entrypoint"].strip(), "; fi ;"]
        return " ".join([*words, f"ray job logs --address {address} --follow {self.job_id}"])

    def environment(self, group: Document, pod: str) -> dict[str, str]:
        """What KubeRay adds to the environment of Ray's container in that pod."""
        is_head = "groupName" not in group
        ours = {entry["name"]: entry["value"] for entry in _container(group).get("env", [])}
        return {
            "RAY_CLUSTER_NAME": self.cluster,
            "RAY_CLUSTER_NAMESPACE": self.job["metadata"]["namespace"],
            "RAY_CLOUD_INSTANCE_ID": pod,
            "RAY_NODE_TYPE_NAME": "headgroup" if is_head else group["groupName"],
            "RAY_PORT": str(HEAD_PORT),
            "RAY_ADDRESS": f"{'127.0.0.1' if is_head else self.service}:{HEAD_PORT}",
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
            **({"RAY_enable_autoscaler_v2": "true"} if is_head and self._autoscales else {}),
            **({} if is_head else self.wait_environment()),
            **self._token(),
            **ours,
        }

    def wait_environment(self) -> dict[str, str]:
        """The same for the container that waits for the head."""
        return {"FQ_RAY_IP": self.service, "RAY_IP": self.service.partition(".")[0], **self._token()}

    def submit_environment(self) -> dict[str, str]:
        """The same for the submitter's."""
        return {
            "PYTHONUNBUFFERED": "1",
            "RAY_DASHBOARD_ADDRESS": f"{self.service}:{DASHBOARD_PORT}",
            "RAY_JOB_SUBMISSION_ID": self.job_id,
            **self._token(),
        }

    def _token(self) -> dict[str, str]:
        is_on = self.spec.get("authOptions", {}).get("mode") == "token"
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if is_on else {}


def _container(group: Document) -> Document:
    container: Document = group["template"]["spec"]["containers"][0]
    assert not {"command", "args"} & container.keys(), "then KubeRay runs more than this"
    return container


def _with_files(command: str) -> str:
    return f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"


def _json(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))
