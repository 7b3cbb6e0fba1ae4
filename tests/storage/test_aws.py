"""Profile, region, endpoint and credentials are found in one place, and both clients of S3 use them."""

import datetime
import ipaddress
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support import s3_servers
from support.fault_proxy import FaultProxy

from speechclip.errors import InvalidInput
from speechclip.storage.aws import delta_options, environment, find_endpoint
from speechclip.store import FeatureStore

Aws = Callable[..., None]
KEYS = {"AWS_ACCESS_KEY_ID": s3_servers.KEY_ID, "AWS_SECRET_ACCESS_KEY": s3_servers.SECRET}


def assert_both_clients_work(endpoint: str) -> None:
    """`store.json` is written and read by s3fs, the catalog by Delta's client."""
    store = FeatureStore(f"s3://{s3_servers.new_bucket(endpoint)}/store")
    store.create()
    assert store.exists()
    assert store.snapshot().version == 0


def test_a_profile_is_enough(s3_endpoint: str, aws: Aws, tmp_path: Path) -> None:
    aws(**s3_servers.write_profile(tmp_path, s3_endpoint))
    assert_both_clients_work(s3_endpoint)


def test_a_profiles_own_endpoint_is_enough(s3_endpoint: str, aws: Aws, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = eu-west-3\nendpoint_url = {s3_endpoint}\n")
    aws(AWS_CONFIG_FILE=str(config), **KEYS)
    assert_both_clients_work(s3_endpoint)


def test_no_variable_in_any_spelling_sends_delta_to_another_endpoint(
    s3_endpoint: str, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta's client reads these variables itself, and without our options they would win over the profile."""
    aws(**s3_servers.environment(s3_endpoint))
    nowhere = "http://127.0.0.1:1"
    for name, value in {
        "AWS_ENDPOINT": nowhere, "aws_endpoint_url": nowhere, "aws_endpoint_url_s3": nowhere,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true", "aws_region": "nowhere-1", "AWS_SKIP_SIGNATURE": "true",
        "AWS_CONDITIONAL_PUT": "disabled",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert_both_clients_work(s3_endpoint)


def test_a_service_endpoint_wins_over_the_general_one(s3_endpoint: str, aws: Aws) -> None:
    aws(AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_ENDPOINT_URL_S3=s3_endpoint, AWS_DEFAULT_REGION="us-east-1", **KEYS)
    assert_both_clients_work(s3_endpoint)


VPC = "https://bucket.vpce-1a2b3c4d-5e6f.s3.eu-west-1.vpce.amazonaws.com"


@pytest.mark.parametrize(
    ("settings", "endpoint", "region"),
    [
        ({}, "https://s3.amazonaws.com", "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (
            {"AWS_DEFAULT_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"},
            "https://s3-fips.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
        (
            {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
            "https://s3.dualstack.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3": VPC}, VPC, "eu-west-1"),
    ],
)
def test_amazons_own_endpoints_are_found(aws: Aws, settings: dict[str, str], endpoint: str, region: str) -> None:
    aws(**settings)
    assert find_endpoint(environment()) == (endpoint, region, False)


def test_a_profile_may_want_the_bucket_in_the_host(aws: Aws, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-west-1\ns3 =\n    addressing_style = virtual\n")
    aws(AWS_CONFIG_FILE=str(config))
    assert find_endpoint(environment()) == ("https://s3.eu-west-1.amazonaws.com", "eu-west-1", True)


def test_the_region_is_the_buckets_own(s3_endpoint: str, aws: Aws) -> None:
    s3_servers.client(s3_endpoint).create_bucket(
        Bucket="in-paris", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"}
    )
    aws(**s3_servers.environment(s3_endpoint))
    assert delta_options("in-paris")["AWS_REGION"] == "eu-west-3"


def test_temporary_credentials_are_always_fresh(s3_endpoint: str, aws: Aws, tmp_path: Path) -> None:
    """As from SSO or an assumed role: they have a token and end soon."""
    program = tmp_path / "credentials.py"
    program.write_text(
        "import datetime, json, time\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'key', 'SecretAccessKey': 'secret',\n"
        "                  'SessionToken': f'token-{time.time_ns()}', 'Expiration': end.isoformat()}))\n"
    )
    config = tmp_path / "config"
    config.write_text(
        f"[default]\nregion = us-east-1\nendpoint_url = {s3_endpoint}\n"
        f"credential_process = {sys.executable} {program}\n"
    )
    aws(AWS_CONFIG_FILE=str(config))
    bucket = s3_servers.new_bucket(s3_endpoint)
    first, second = delta_options(bucket)["AWS_SESSION_TOKEN"], delta_options(bucket)["AWS_SESSION_TOKEN"]
    assert first.startswith("token-")
    assert first != second


def test_a_token_left_over_in_the_environment_is_refused(s3_endpoint: str, aws: Aws, tmp_path: Path) -> None:
    """Delta's client would send it along with the profile's keys."""
    aws(**s3_servers.write_profile(tmp_path, s3_endpoint), AWS_SESSION_TOKEN="stale")
    with pytest.raises(InvalidInput, match=r"AWS_SESSION_TOKEN is set.*unset it") as caught:
        FeatureStore(f"s3://{s3_servers.new_bucket(s3_endpoint)}/store").create()
    assert "stale" not in str(caught.value)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """The certificate of an authority, and a key and certificate for 127.0.0.1 that it has signed."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    extensions: tuple[x509.ExtensionType, ...] = (x509.BasicConstraints(ca=True, path_length=None), host)
    paths = (folder / "authority.pem", folder / "server.pem")
    for path, name, key, extension in zip(paths, names, keys, extensions, strict=True):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + builder.add_extension(extension, False)
            .sign(keys[0], hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
    return paths


def test_both_clients_trust_the_authority_of_the_aws_settings(
    s3_endpoint: str, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.delenv("SSL_CERT_FILE")
    with FaultProxy(s3_endpoint, certificate) as proxy:
        aws(**s3_servers.environment(proxy.url), AWS_CA_BUNDLE=str(authority))
        assert_both_clients_work(s3_endpoint)
