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

CORRECT_IT = "see docs/configuration.md for what it may hold"

# Decoded tasks wait here for their encoder, about 100 MB each. Features never pass through it.
OBJECT_STORE_BYTES = 2**30


def connect(num_cpus: int | None = None, runtime_env: RuntimeEnv | None = None) -> None:
    """Join the cluster at `RAY_ADDRESS` (set by `ray job submit`), or start a private one that ends with this process.

    `num_cpus` is the number of logical CPUs of a private cluster, by default those of the machine. The workers get
    `runtime_env`, except for the fields that the job was submitted with. A second call does nothing.
    """
    if ray.is_initialized():
        return
    wanted = join_runtime_env(runtime_env or RuntimeEnv(), os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core prints harmless warnings on the terminal. Failures reach us as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if os.environ.get("RAY_ADDRESS"):
        # The output of workers is also in Ray's own logs. Here it would break a log of JSON lines.
        _init(runtime_env=wanted, log_to_driver=not logs.is_json())
        return
    _protect()
    # By default Ray ends an idle process after a second, and on one or two CPUs it would start Python again and again.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    # A short folder, because the path of a Unix socket has at most 107 characters.
    folder = tempfile.mkdtemp(prefix="sc-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _init(
        # Without an address Ray may join a cluster of somebody else.
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
    """The fields of `runtime_env` that the job was not submitted with. Ray accepts no field twice.

    For `env_vars` this holds variable by variable. Raises `InvalidInput` if Ray would refuse the fields, alone or
    together with those of the job.
    """
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    ours, given = runtime_env.fields(), job.get("env_vars", {})
    variables = {name: value for name, value in ours.pop("env_vars", {}).items() if name not in given}
    added = {name: value for name, value in ours.items() if name not in job}
    if variables:
        added["env_vars"] = variables
    for name in sorted(runtime_env.fields().keys() - added.keys() | runtime_env.env_vars.keys() - variables.keys()):
        logger.info("%s: %s is used as the job was submitted with it", WHERE, name)
    try:
        ray.runtime_env.RuntimeEnv(**job | added)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{WHERE}: Ray refuses it ({' '.join(str(error).split())})", CORRECT_IT) from None
    return added


def _init(**options: Any) -> None:
    """Call `ray.init`, and keep our own handler of SIGTERM, which Ray would replace."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _protect() -> None:
    """Set a token that every connection to this Ray must show, because Ray listens on every address of the machine.

    Ray turns this authentication on by itself if `RAY_AUTH_MODE` is unset. But it would leave a token in a file in the
    user's home.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # This logger only says that authentication is on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
