"""Real S3 servers on loopback, each in a process of its own that ends with ours."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session

KEY_ID, SECRET, TOKEN = "test-key-id", "test-secret", "test-session-token"

# Its port goes to stdout; it ends when its stdin does, so also when we are killed. In our own process it would
# deadlock with whatever waits for it while holding Python's lock, as Delta's client does. It answers one request at a
# time, for it looks and writes without a lock of its own: of 400 races for one name, each of 4, one had two winners.
MOTO = """
import sys, threading
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

# S3 alone: to find out which service is meant takes as long as the answer, and so does a log that nobody reads.
application, turn = create_backend_app("s3"), threading.Lock()
WSGIRequestHandler.log_request = lambda *_: None

def answer(environ, start_response):
    with turn:
        return list(application(environ, start_response))

server = make_server(sys.argv[1], 0, answer, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def moto(host: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a moto server: quick to start, and as AWS answers; it checks no signature."""
    with subprocess.Popen(
        [sys.executable, "-c", MOTO, host],
        env=_plain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        try:
            endpoint = f"http://{host}:{int(server.stdout.readline())}"
            _wait(endpoint, server)
            yield endpoint
        finally:
            server.kill()


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """The endpoint of SeaweedFS, an independent implementation that checks signatures, with its files in `folder`."""
    ports = _free_ports(10)
    names = ("master", "volume", "filer", "s3")
    options = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=False)]
    settings = folder / "s3.json"
    credentials = [{"accessKey": KEY_ID, "secretKey": SECRET}]
    settings.write_text(
        json.dumps(
            {"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write"]}]}
        )
    )
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"), "-logtostderr=false", f"-logdir={folder}", "server",
        f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={settings}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=1000", "-master.volumeSizeLimitMB=256",
        "-s3.cacheCapacityMB=0", "-master.telemetry=false", *options,
    ]  # fmt: skip
    environment = _plain_environment() | {"GOMEMLIMIT": "400MiB"}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            endpoint = f"http://127.0.0.1:{ports[3]}"
            _wait(f"{endpoint}/healthz", server)
            yield endpoint
        finally:
            # Asked politely it takes 25 seconds.
            server.kill()


def environment(endpoint: str) -> dict[str, str]:
    """The standard AWS environment that leads there."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def write_profile(folder: Path, endpoint: str, name: str = "lab", *, is_temporary: bool = False) -> dict[str, str]:
    """The same by an AWS profile: its files in `folder`, and the environment that names it and holds no key.

    Temporary credentials come with a session token.
    """
    config, credentials = folder / "aws-config", folder / "aws-credentials"
    service = f"[services near]\ns3 =\n    endpoint_url = {endpoint}\n"
    config.write_text(f"[profile {name}]\nregion = us-east-1\nservices = near\n{service}")
    credentials.write_text(f"[{name}]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    if is_temporary:
        with credentials.open("a") as file:
            file.write(f"aws_session_token = {TOKEN}\n")
    return {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_PROFILE": name}


def client(endpoint: str) -> Any:
    """A plain client of that server, whatever the environment says."""
    nowhere = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    session = botocore.session.Session(session_vars={"profile": (None, None, None, None), **nowhere})
    return session.create_client(
        "s3", "us-east-1", endpoint_url=endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
    )


def new_bucket(endpoint: str) -> str:
    """The name of a fresh bucket."""
    name = f"bucket-{os.urandom(6).hex()}"
    client(endpoint).create_bucket(Bucket=name)
    return name


def _plain_environment() -> dict[str, str]:
    """Ours without the AWS settings: a profile that is none of its own confuses even a server."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("AWS_")}


def _wait(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until the server answers."""
    until = time.monotonic() + seconds
    while True:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        assert time.monotonic() < until, f"{url} did not answer within {seconds} s"
        with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
