"""Profile, region, endpoint and credentials of S3, found in one place by botocore's own rules.

s3fs follows these rules itself. Delta's client knows no profiles, and reads some environment variables in its own way.
So it gets every setting as an option, and options win over the environment. No setting enters a record, a log or an
error.
"""

import contextlib
import functools
import os
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from s3fs import S3FileSystem

from speechclip.errors import InvalidInput, UnsupportedStore
from speechclip.storage.retry import (
    CONNECT_SECONDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MAX_ATTEMPTS,
    READ_SECONDS,
    RETRY_SECONDS,
    with_retries,
)

Environment = tuple[tuple[str, str], ...]
# The client sends each request once, as `with_retries` retries.
CLIENT = {
    "retries": {"total_max_attempts": 1},
    "connect_timeout": CONNECT_SECONDS,
    "read_timeout": READ_SECONDS,
}
# This client retries by itself, but not if an answer breaks off.
DELTA = {
    "connect_timeout": f"{CONNECT_SECONDS}s",
    "timeout": f"{READ_SECONDS}s",
    "max_retries": str(MAX_ATTEMPTS),
    "retry_timeout": f"{RETRY_SECONDS}s",
    "backoff_config.init_backoff": f"{FIRST_PAUSE_SECONDS}s",
    "backoff_config.base": "3",
    "backoff_config.max_backoff": f"{LONGEST_PAUSE_SECONDS}s",
    "AWS_CONDITIONAL_PUT": "etag",
    "AWS_SKIP_SIGNATURE": "false",
}
# With these settings of Delta's client, commits would overwrite each other, or wait for a lock that does not exist.
UNSAFE = ("AWS_S3_ALLOW_UNSAFE_RENAME", "S3_ALLOW_UNSAFE_RENAME", "ALLOW_UNSAFE_RENAME", "AWS_S3_LOCKING_PROVIDER")


def environment() -> Environment:
    """The variables that decide on endpoint and credentials. Clients are cached by them."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.upper().startswith("AWS_")))


def filesystem() -> S3FileSystem:
    """The s3fs client of this process and environment."""
    return _filesystem(os.getpid(), environment())


def delta_options(bucket: str) -> dict[str, str]:
    """The options of Delta's client for this bucket. botocore renews temporary credentials before they end.

    Raises `InvalidInput` and `UnsupportedStore` for variables that would make commits fail or unsafe.
    """
    _refuse_unsafe()
    now = environment()
    options = DELTA | _place(bucket, now)
    credentials = _session(now).get_credentials()
    if credentials is not None:
        frozen = credentials.get_frozen_credentials()
        options |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
        if frozen.token:
            options["AWS_SESSION_TOKEN"] = frozen.token
        elif any(name.upper() == "AWS_SESSION_TOKEN" for name, _ in now):
            raise InvalidInput("AWS_SESSION_TOKEN is set, and the credentials in use have none: unset it")
    return options


def find_endpoint(now: Environment, region: str | None = None) -> tuple[str, str, bool]:
    """The endpoint, the region, and whether the bucket's name is part of the host name.

    With `region`, the endpoint of that region.
    """
    config = Config(signature_version=UNSIGNED, **CLIENT)
    meta = _session(now).create_client("s3", region_name=region, config=config).meta
    style = (meta.config.s3 or {}).get("addressing_style")
    return meta.endpoint_url, meta.region_name, style == "virtual"


def _refuse_unsafe() -> None:
    for name, value in os.environ.items():
        if name.upper() in UNSAFE and value.lower() not in ("", "0", "false", "off", "no", "n"):
            raise UnsupportedStore(
                f"{name} is set, and with it two runs could overwrite each other's commits", "unset it"
            )


@functools.lru_cache(maxsize=4)
def _session(_now: Environment) -> botocore.session.Session:
    return botocore.session.Session()


@functools.lru_cache(maxsize=4)
def _filesystem(_pid: int, _now: Environment) -> S3FileSystem:
    found = S3FileSystem(config_kwargs=CLIENT, skip_instance_cache=True)
    found.retries = 1
    return found


@functools.lru_cache(maxsize=16)
def _place(bucket: str, now: Environment) -> dict[str, str]:
    """The options of Delta's client that say where the bucket is."""
    endpoint, region, is_virtual = find_endpoint(now, _bucket_region(bucket, now))
    parts = urlsplit(endpoint)
    if is_virtual:
        endpoint = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}"
    bundle = _session(now).get_config_variable("ca_bundle")
    if bundle:
        # Delta's client has no option for it. A value that the user has set stays.
        os.environ.setdefault("SSL_CERT_FILE", bundle)
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ALLOW_HTTP": str(parts.scheme == "http").lower(),
        "AWS_REGION": region,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(is_virtual).lower(),
    }


def _bucket_region(bucket: str, now: Environment) -> str | None:
    """The region that the server names for the bucket, possibly not the configured one. None if it names none."""
    client = _session(now).create_client("s3", config=Config(signature_version=UNSIGNED, **CLIENT))

    def ask() -> Any:
        try:
            return client.head_bucket(Bucket=bucket)
        except ClientError as error:
            # The answer names the region even if it is 403 or 404.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
            return error.response

    with contextlib.closing(client):
        answer = with_retries("asking for the region", f"s3://{bucket}", ask)
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return str(region) if region else None
