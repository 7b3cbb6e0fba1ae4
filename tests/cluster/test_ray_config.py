"""The `ray up` files against Ray's own schema and checks, and the settings that they carry."""

from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from support import project_rules

from speechclip.config import load_settings
from speechclip.errors import InvalidInput

PROJECT = Path(__file__).parent.parent.parent
LOCAL, AWS = PROJECT / "ray_config.yaml", PROJECT / "cluster" / "ray_config.aws.yaml"
both = pytest.mark.parametrize("file", [LOCAL, AWS], ids=["local", "aws"])


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def check(config: dict[str, Any]) -> None:
    """What `ray up` does with a file before it speaks to anybody."""
    validate_config(prepare_config(config))


@both
def test_ray_up_takes_the_file(file: Path) -> None:
    check(read(file))


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speechclip": {}}, "'speechclip' was unexpected"),
        ({"provider": {"region": "x"}}, "'type' is a required property"),
        ({"setup_commands": "pip install speechclip"}, "is not of type 'array'"),
        ({"auth": {"ssh_usr": "ray"}}, "'ssh_usr' was unexpected"),
        ({"metadata": "text"}, "is not of type 'object'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ray_up_refuses_what_its_schema_forbids(file: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError), match=words):
        jsonschema_only(read(file) | change)


def jsonschema_only(config: dict[str, Any]) -> None:
    # prepare_config would stumble over some of these before the schema can speak.
    validate_config({**config, "cluster_synced_files": []})


def test_the_local_provider_refuses_types_of_nodes() -> None:
    with pytest.raises(click.ClickException, match="available_node_types"):
        check(read(LOCAL) | {"available_node_types": {"gpu": {"node_config": {}, "resources": {}}}})


def test_a_cloud_refuses_a_head_that_it_does_not_know_and_more_workers_than_it_may_have() -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        check(read(AWS) | {"head_node_type": "heda"})
    with pytest.raises(ValueError, match="max_workers"):
        check(read(AWS) | {"max_workers": 2})


@both
def test_no_node_starts_without_the_token_and_no_file_holds_it(file: Path) -> None:
    config = read(file)
    starts = [
        line for name in ("head", "worker") for line in config[f"{name}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(" RAY_AUTH_MODE=token ray start " in f" {line}" for line in starts)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "RAY_AUTH_TOKEN=" not in file.read_text()


@both
def test_the_settings_it_carries_are_read(file: Path) -> None:
    settings = load_settings(str(file), {}, [])
    assert settings.codec == "fp16"
    with pytest.raises(InvalidInput, match="stroe"):
        load_settings(str(file), {}, ["stroe=x"])


@both
def test_an_unknown_key_in_its_settings_is_an_error(file: Path, tmp_path: Path) -> None:
    config = read(file)
    config["metadata"]["speechclip"]["featurise"] = {}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(config))
    check(config)
    with pytest.raises(InvalidInput, match="featurise"):
        load_settings(str(tmp_path / "broken.yaml"), {}, [])


def test_the_cloud_has_a_head_without_work_and_gpus_of_a_fixed_number() -> None:
    config = read(AWS)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert types["gpu"]["min_workers"] == types["gpu"]["max_workers"]
    assert config["docker"]["image"].endswith(f"-ray{project_rules.locked('ray')}")
