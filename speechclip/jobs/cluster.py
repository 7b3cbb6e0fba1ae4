"""The Ray cluster that a job runs on: the one it was submitted to, or a private one on this machine."""

import atexit
import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import ray
import ray.runtime_env

from speechclip import logs
from speechclip.errors import InvalidInput
from speechclip.runtime_env import WHERE, RuntimeEnv

logger = logging.getLogger(__name__)

# Decoded tasks wait here for their encoder, about 100 MB each; features never travel through it.
OBJECT_STORE_BYTES = 2**30


def connect(num_cpus: int | None = None, runtime_env: RuntimeEnv | None = None) -> None:
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private one that ends with this process.

    `num_cpus` bounds the logical CPUs of a private cluster; by default Ray counts the machine's. `runtime_env` is what
    the workers get; what the job was submitted with goes before it. Called again, it does nothing.
    """
    if ray.is_initialized():
        return
    wanted = join_runtime_env(runtime_env or RuntimeEnv(), os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core writes harmless warnings straight to the terminal; failures reach us as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if os.environ.get("RAY_ADDRESS"):
        # What workers print is in Ray's own logs; between lines of JSON it would be none.
        _init(runtime_env=wanted, log_to_driver=not logs.is_json())
        return
    _protect()
    # Ray ends processes beyond the CPUs after a second: on one or two CPUs decoding would start Python again and again.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    # Short: the path of a Unix socket holds 107 characters. "local": without it Ray may join a stranger's cluster.
    folder = tempfile.mkdtemp(prefix="sc-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        runtime_env=wanted,
        _temp_dir=folder,
    )
    atexit.register(ray.shutdown)
    logger.info("a private Ray cluster of %s CPUs runs in %s", ray.cluster_resources().get("CPU", 0), folder)


def join_runtime_env(runtime_env: RuntimeEnv, environment: Mapping[str, str]) -> dict[str, Any]:
    """What to add to what the job was submitted with, which wins as options do; Ray itself takes no field twice.

    `InvalidInput` where Ray would take neither ours nor the two together.
    """
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    ours, given = runtime_env.fields(), job.get("env_vars", {})
    variables = {name: value for name, value in ours.pop("env_vars", {}).items() if name not in given}
    added = {name: value for name, value in ours.items() if name not in job}
    if variables:
        added["env_vars"] = variables
    for name in sorted(runtime_env.fields().keys() - added.keys() | runtime_env.env_vars.keys() - variables.keys()):
        logger.info("%s: %s as the job was submitted with it", WHERE, name)
    try:
        ray.runtime_env.RuntimeEnv(**job | added)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{WHERE}: {' '.join(str(error).split())}") from None
    return added


def _init(**options: Any) -> None:
    """`ray.init`, which would take SIGTERM for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _protect() -> None:
    """Token authentication, with a token of our own: Ray's ports listen on every address of the machine.

    Ray switches it on itself where `RAY_AUTH_MODE` is unset, but would leave its token in a file at home.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # It only tells that authentication is on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
