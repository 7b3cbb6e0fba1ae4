"""What KubeRay's operator (v1.7.0, utils/validation.go) and Kueue's webhook refuse, though the API server takes it."""

import re
from collections.abc import Iterator

import yaml

from support.kube_manifests import Document, of_kind

# utils/constant.go; a job's cluster gets a longer name than the job.
LONGEST_JOB_NAME = 47
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
# Behind a feature gate that is off.
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
MOST_GROUPS = 17
TOKEN_SINCE = (2, 52)


def findings(documents: list[Document]) -> Iterator[str]:
    """What is wrong with the RayJobs, one sentence each."""
    for job in of_kind(documents, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        found = [*_name(name), *_ending(spec), *_submission(spec), *_kueue(job)]
        if "rayClusterSpec" in spec:
            found += [*_cluster(spec["rayClusterSpec"]), *_auth(spec["rayClusterSpec"])]
        elif not spec.get("clusterSelector"):
            found.append("has neither rayClusterSpec nor clusterSelector")
        yield from (f"{name}: {sentence}" for sentence in found)


def _name(name: str) -> Iterator[str]:
    if len(name) > LONGEST_JOB_NAME:
        yield f"the name has {len(name)} characters, at most {LONGEST_JOB_NAME} are taken"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "the name is no DNS-1035 label"


def _ending(spec: Document) -> Iterator[str]:
    """When the cluster goes, and how often it is tried."""
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    strategy = spec.get("deletionStrategy", {})
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if strategy.get("deletionRules") and shuts_down:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    policies = [rule.get("policy") for rule in strategy.get("deletionRules", [])]
    if "DeleteWorkers" in policies and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers can't go with the autoscaler"
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and spec.get("clusterSelector"):
        yield "suspend can't go with clusterSelector"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("backoffLimit", 0) > 0 and (
        spec.get("clusterSelector") or spec.get("submissionMode") == "InteractiveMode"
    ):
        yield "backoffLimit can't go with clusterSelector or InteractiveMode"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"


def _submission(spec: Document) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode} is none of {', '.join(MODES)}"
    if mode == "SidecarMode":
        yield from (
            f"SidecarMode takes no {name}" for name in ("submitterPodTemplate", "submitterConfig") if name in spec
        )
    try:
        is_mapping = isinstance(yaml.safe_load(spec.get("runtimeEnvYAML") or "{}"), dict)
    except yaml.YAMLError:
        is_mapping = False
    if not is_mapping:
        yield "runtimeEnvYAML is no YAML mapping"


def _cluster(cluster: Document) -> Iterator[str]:
    autoscales = cluster.get("enableInTreeAutoscaling", False)
    is_v2 = autoscales and cluster.get("autoscalerOptions", {}).get("version", "v2") == "v2"
    head, workers = cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])
    yield from (f"{name} needs a feature gate that is off" for name in GATED if name in cluster)
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        yield "the backend rocksdb needs a feature gate that is off"
    names = [group["groupName"] for group in workers]
    yield from (f"two groups are called {name}" for name in {name for name in names if names.count(name) > 1})
    for name, group in [("head", head), *zip(names, workers, strict=True)]:
        yield from (f"{name}: {sentence}" for sentence in _group(group, is_v2))
    for group in workers:
        yield from (f"{group['groupName']}: {sentence}" for sentence in _size(group, autoscales, is_v2))
    names_set = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
    if "gcsFaultToleranceOptions" in cluster:
        yield from (
            f"head: {name} can't go with gcsFaultToleranceOptions"
            for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")
            if name in names_set
        )
        if "redis-password" in head.get("rayStartParams", {}):
            yield "head: redis-password can't go with gcsFaultToleranceOptions"
    elif "RAY_REDIS_ADDRESS" in names_set:
        yield "head: RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"


def _group(group: Document, is_v2: bool) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if group.get("resources") and any(name in params for name in RESOURCE_PARAMS):
        yield "resources stand in both `resources` and rayStartParams"
    if "labels" in params:
        yield "labels belong under `labels`, not into rayStartParams"
    if is_v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never or unset with autoscaler v2"


def _size(group: Document, autoscales: bool, is_v2: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if least is None or most is None:
        yield "minReplicas and maxReplicas must both be set"
    elif not least <= group.get("replicas", least) <= most:
        yield f"replicas {group.get('replicas')} is not between minReplicas {least} and maxReplicas {most}"
    if not is_v2:
        yield from (f"{name} needs autoscaler v2" for name in ("idleTimeoutSeconds", "priority") if name in group)
    if autoscales and group.get("suspend"):
        yield "suspend can't go with the autoscaler"


def _auth(cluster: Document) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not supported in a RayJob"
    if options.get("mode") == "token":
        version = re.match(r"(\d+)\.(\d+)\.\d+", cluster.get("rayVersion", ""))
        if version is None or tuple(map(int, version.groups())) < TOKEN_SINCE:
            yield f"token authentication needs rayVersion 2.52.0 or later, not {cluster.get('rayVersion')!r}"


def _kueue(job: Document) -> Iterator[str]:
    spec, metadata = job["spec"], job["metadata"]
    if QUEUE not in metadata.get("labels", {}):
        return
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue takes only jobs with shutdownAfterJobFinishes"
    if not spec.get("suspend"):
        yield "Kueue's jobs start suspended"
    if spec.get("clusterSelector"):
        yield "Kueue takes no clusterSelector"
    cluster = spec.get("rayClusterSpec", {})
    if len(cluster.get("workerGroupSpecs", [])) > MOST_GROUPS:
        yield f"Kueue takes at most {MOST_GROUPS} worker groups"
    if cluster.get("enableInTreeAutoscaling") and metadata.get("annotations", {}).get(ELASTIC) != "true":
        yield f"Kueue takes the autoscaler only with the annotation {ELASTIC}"
