"""`kuberay_commands` against what KubeRay 1.7.0 itself expects (its pod_test.go and job_test.go), and on our jobs."""

from typing import Any

import pytest
from support.kube_manifests import of_kind, render
from support.kuberay_commands import RayJobRun, flags, quantity, ray_start

DEFAULTS = " --block  --dashboard-agent-listen-port=52365 "


@pytest.mark.parametrize(
    ("text", "number"), [("2", 2), ("500m", 1), ("1500m", 2), ("5Gi", 5 * 2**30), ("256Mi", 2**28), ("1G", 10**9)]
)
def test_a_quantity_is_a_whole_number_rounded_up(text: str, number: int) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"include-log-monitor": "false"}, " --include-log-monitor=false "),
        ({"no-monitor": "true", "block": "false", "port": "1"}, " --no-monitor  --port=1 "),
        ({"num-cpus": "0"}, " --num-cpus=0 "),
    ],
)
def test_switches_are_said_without_a_value(params: dict[str, str], said: str) -> None:
    assert flags(params) == said


def test_a_worker_gets_its_gpu_and_what_it_may_take() -> None:
    limits = {"nvidia.com/gpu": "1", "cpu": "7", "memory": "26Gi"}
    assert ray_start({}, {"limits": limits}, address="head:6379") == (
        f"ray start  --address=head:6379 {DEFAULTS} --memory={26 * 2**30}  --metrics-export-port=8080 "
        " --num-cpus=7  --num-gpus=1 "
    )


def test_params_win_over_limits_and_requests_stand_in_for_them() -> None:
    start = ray_start({"num-cpus": "0", "dashboard-host": "::"}, {"limits": {"cpu": "2"}})
    assert start == f"ray start --head {DEFAULTS} --dashboard-host=::  --metrics-export-port=8080  --num-cpus=0 "
    assert " --num-cpus=3 " in ray_start({}, {"requests": {"cpu": "2500m"}})


def test_the_submitter_says_what_kuberays_own_test_expects() -> None:
    spec: dict[str, Any] = {
        "runtimeEnvYAML": "test: test",
        "metadata": {"testKey": "testValue"},
        "entrypoint": "echo no quote 'single quote' \"double quote\"",
        "entrypointNumCpus": 1,
        "entrypointNumGpus": 0.5,
        "entrypointResources": '{"Custom_1": 1, "Custom_2": 5.5}',
    }
    run = RayJobRun({"metadata": {"name": "job", "namespace": "ns"}, "spec": spec}, name="x")
    at = "http://job-x-head-svc.ns.svc.cluster.local:8265"
    assert run.submit_script() == (
        f"until python -c \"import urllib.request; r=urllib.request.urlopen('{at}/api/gcs_healthz', timeout=10); "
        "exit(0 if b'success' in r.read() else 1)\" >/dev/null 2>&1 ; "
        f'do echo "Waiting for Ray Dashboard GCS to become healthy at {at} ..." ; sleep 2 ; done ; '
        f"if ! ray job status --address {at} job-x >/dev/null 2>&1 ; then ray job submit --address {at} --no-wait "
        '--runtime-env-json "{\\"test\\":\\"test\\"}" --metadata-json "{\\"testKey\\":\\"testValue\\"}" '
        "--submission-id job-x --entrypoint-num-cpus 1.000000 --entrypoint-num-gpus 0.500000 "
        '--entrypoint-resources "{\\"Custom_1\\": 1, \\"Custom_2\\": 5.5}" '
        "-- echo no quote 'single quote' \"double quote\" ; fi ; "
        f"ray job logs --address {at} --follow job-x"
    )


def test_only_a_cluster_that_autoscales_starts_without_ray_s_own_monitor() -> None:
    scripts = {}
    for step in ("featurize", "train"):
        (job,) = of_kind(render(step), "RayJob")
        run = RayJobRun(job)
        scripts[step] = run.head_script()
        assert run.environment(run.spec["headGroupSpec"], "pod")["RAY_AUTH_TOKEN"] == run.token
    assert " --no-monitor " in scripts["featurize"]
    assert "--no-monitor" not in scripts["train"]
