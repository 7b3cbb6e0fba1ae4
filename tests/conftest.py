"""Fixtures that every room's tests share: real storage on a local folder and over HTTP, and small real feature sets."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support import s3_servers
from support.fault_proxy import FaultProxy, Schedule


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crds", help="folder of KubeRay's CRDs; by default crds/ if it is there, else their tests skip")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes of files are named by number alone: libsndfile stamps some with the time, and two workers must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback, spoken to over HTTP."""
    with s3_servers.moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def seaweedfs_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of an independent make, for the slow suites."""
    with s3_servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with what the AWS environment shall be for this test, and nothing of this machine's own besides."""

    def become(**values: str) -> None:
        for name in [name for name in os.environ if name.upper().startswith("AWS_")]:
            monkeypatch.delenv(name)
        nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        for name, value in (nowhere | {"AWS_EC2_METADATA_DISABLED": "true"} | values).items():
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture
def s3_uri(s3_endpoint: str, aws: Callable[..., None]) -> str:
    """A fresh bucket's address, with endpoint and credentials in the standard AWS environment alone."""
    aws(**s3_servers.environment(s3_endpoint))
    return f"s3://{s3_servers.new_bucket(s3_endpoint)}/store"


@pytest.fixture(scope="session")
def _session_proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(_session_proxy: FaultProxy, aws: Callable[..., None]) -> Iterator[FaultProxy]:
    """The AWS environment leads through a proxy that breaks requests once the test gives it a schedule."""
    aws(**s3_servers.environment(_session_proxy.url))
    yield _session_proxy
    _session_proxy.schedule(Schedule())


@pytest.fixture
def proxied_uri(s3_endpoint: str, proxy: FaultProxy) -> str:
    """A fresh bucket's address, to be reached through the proxy."""
    return f"s3://{s3_servers.new_bucket(s3_endpoint)}/store"


@pytest.fixture(params=["local", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a store: a folder, then a bucket."""
    if request.param == "local":
        return str(tmp_path / "store")
    uri: str = request.getfixturevalue("s3_uri")
    return uri


@pytest.fixture
def features() -> list[tuple[str, np.ndarray]]:
    """Five all-layer features of different lengths, as the frames spec stores them."""
    generator = np.random.default_rng(0)
    lengths = (1, 42, 43, 137, 260)
    return [
        (f"{n:064x}", generator.standard_normal((13, length, 768)).astype("<f2")) for n, length in enumerate(lengths)
    ]


@pytest.fixture
def ray_ends() -> Iterator[None]:
    """Ray is stopped after a test that starts it in its own process, so that the next test can start its own."""
    yield
    import ray

    ray.shutdown()
