"""A run on Ray as a user starts it, and its end by SIGKILL with all that Ray started."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TIMEOUT_SECONDS = 240


def start(manifest: Path, store: Path, num_cpus: int, *options: str) -> subprocess.Popen[str]:
    """`speechclip featurize` with toy encoders in fp32."""
    command = [sys.executable, "-m", "speechclip", "featurize", "--manifest", str(manifest), "--store", str(store)]
    command += ["--speech", "toy", "--image", "toy", "--text", "toy", "--codec", "fp32"]
    command += ["--num-cpus", str(num_cpus), "--json"]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    """The summary of a run that ends well."""
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, err
    summary: dict[str, int] = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1, "--json gives the line alone"
    return summary


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once it is so, or once the run is over."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and not is_so():
        assert time.monotonic() < deadline, f"not so within {TIMEOUT_SECONDS} s"
        time.sleep(0.05)


def kill_tree(process: subprocess.Popen[str], *, driver_first: bool = True) -> int:
    """SIGKILL to the driver and to Ray's processes, which outlive it; how the driver ended."""
    if process.poll() is None:
        driver = psutil.Process(process.pid)
        others = driver.children(recursive=True)
        for each in [driver, *others] if driver_first else [*others, driver]:
            _kill(each)
        process.communicate()
        _, alive = psutil.wait_procs(others, timeout=30)
        assert not alive, alive
    return process.returncode


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
