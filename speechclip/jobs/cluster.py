"""The Ray cluster that a job runs on: the one it was submitted to, or a private one on this machine."""

import atexit
import logging
import os
import secrets
import shutil
import tempfile

import ray

logger = logging.getLogger(__name__)

# Decoded tasks wait here for their encoder, about 100 MB each; features never travel through it.
OBJECT_STORE_BYTES = 2**30


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private one that ends with this process.

    `num_cpus` bounds the logical CPUs of a private cluster; by default Ray counts the machine's. Called again, it does
    nothing.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core writes harmless warnings straight to the terminal; failures reach us as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    _protect()
    # Short: the path of a Unix socket holds 107 characters. "local": without it Ray may join a stranger's cluster.
    folder = tempfile.mkdtemp(prefix="sc-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        log_to_driver=False,
        _temp_dir=folder,
    )
    atexit.register(ray.shutdown)
    logger.info("a private Ray cluster of %s CPUs runs in %s", ray.cluster_resources().get("CPU", 0), folder)


def _protect() -> None:
    """Token authentication, with a token of our own: Ray's ports listen on every address of the machine.

    Ray switches it on itself where `RAY_AUTH_MODE` is unset, but would leave its token in a file at home.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # It only tells that authentication is on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
