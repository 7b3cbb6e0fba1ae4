"""The workers get `metadata.runtime_env`, except for the fields that the job was submitted with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speechclip.errors import InvalidInput
from speechclip.jobs.cluster import join_runtime_env
from speechclip.runtime_env import RuntimeEnv

# A driver on a private Ray. It prints the variables and the module that a worker finds, and its own variable.
DRIVER = """
import json, os, ray
from speechclip.jobs.cluster import connect
from speechclip.runtime_env import RuntimeEnv

@ray.remote
def look():
    import mark
    return os.environ.get("COLOUR"), os.environ.get("SHAPE"), mark.NAME

connect(1, RuntimeEnv(env_vars={"COLOUR": "blue", "SHAPE": "round"}, working_dir=%r))
found = ray.get(look.remote())
print(json.dumps([*found, os.environ.get("COLOUR")]))
"""


def join(ours: RuntimeEnv, job: dict[str, Any] | None) -> dict[str, Any]:
    environment = {} if job is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": job})}
    return join_runtime_env(ours, environment)


def test_outside_of_a_job_the_workers_get_all_fields() -> None:
    assert join(RuntimeEnv(env_vars={"A": "1"}, pip=["six"]), None) == {"env_vars": {"A": "1"}, "pip": ["six"]}
    assert join(RuntimeEnv(), None) == {}


def test_a_field_or_variable_that_the_job_was_submitted_with_wins() -> None:
    job = {"env_vars": {"A": "job"}, "working_dir": "gcs://_ray_pkg_0.zip"}
    ours = RuntimeEnv(env_vars={"A": "ours", "B": "ours"}, working_dir="/", excludes=["data"])
    # Ray adds these to the job's own fields. It would refuse a field that is in both.
    assert join(ours, job) == {"env_vars": {"B": "ours"}, "excludes": ["data"]}
    assert join(RuntimeEnv(env_vars={"A": "ours"}), job) == {}
    assert join(ours, {}) == ours.fields()


def test_fields_that_ray_refuses_alone_or_beside_the_jobs_own_are_an_error_in_one_sentence() -> None:
    with pytest.raises(InvalidInput, match=r"metadata\.runtime_env: .*uv_check.*got.*'packs'"):
        join(RuntimeEnv(uv={"packs": []}), None)
    with pytest.raises(
        InvalidInput, match=r"metadata\.runtime_env: Ray refuses it .*'pip' field, 'uv' field.*same time"
    ):
        join(RuntimeEnv(pip=["six"]), {"uv": ["six"]})


@pytest.mark.ray
def test_variables_and_files_reach_a_worker_of_a_private_ray(tmp_path: Path) -> None:
    (tmp_path / "mark.py").write_text("NAME = 'of the working dir'\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "COLOUR", "SHAPE")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER % str(tmp_path)], env=kept, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["blue", "round", "of the working dir", None]
