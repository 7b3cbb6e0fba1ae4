from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.runtime_env import RuntimeEnv as RaysOwn

from speechclip.config import load_settings
from speechclip.errors import InvalidInput
from speechclip.runtime_env import RuntimeEnv


def write(folder: Path, metadata: object) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"cluster_name": "x", "metadata": metadata}))
    return str(path)


def read(folder: Path, runtime_env: Any, *overrides: str) -> dict[str, Any]:
    return load_settings(write(folder, {"runtime_env": runtime_env}), {}, overrides).runtime_env.fields()


def test_it_is_a_key_of_metadata_and_set_changes_it(tmp_path: Path) -> None:
    given = {"env_vars": {"OMP_NUM_THREADS": "1"}, "pip": ["six"]}
    assert read(tmp_path, given) == given
    assert read(tmp_path, given, "runtime_env.env_vars.A='2'")["env_vars"] == {"OMP_NUM_THREADS": "1", "A": "2"}
    assert read(tmp_path, None) == {}


def test_it_has_the_fields_of_rays_runtime_env() -> None:
    assert set(RuntimeEnv.__struct_fields__) == {name for name in RaysOwn.known_fields if not name.startswith("_")}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"speech_clip": {}}, "metadata has the unknown key 'speech_clip'; use speechclip or runtime_env"),
        ({"runtime_env": {"env_var": {}}}, "there is no key runtime_env.env_var"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "runtime_env.env_vars[...] must be a text, not a whole number"),
        ({"runtime_env": ["pip"]}, "metadata.runtime_env is not a mapping"),
        ({"speechclip": {"runtime_env": {}}}, "metadata.speechclip has runtime_env; write it as metadata.runtime_env"),
    ],
    ids=["metadata", "runtime_env", "a number", "a list", "misplaced"],
)
def test_an_unknown_key_anywhere_is_named(tmp_path: Path, metadata: object, words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        load_settings(write(tmp_path, metadata), {}, [])
    assert words in str(error.value)


SECRET_NAMES = [
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "aws_session_token", "PGPASSWORD", "API_KEYS",
    "MYSQL_PWD", "GOOGLE_CREDENTIALS", "OPENAI_APIKEY", "RAY_AUTH_TOKEN",
]  # fmt: skip
SECRET_VALUES = [
    "AKIAIOSFODNN7EXAMPLE", "x=ASIAIOSFODNN7EXAMPLE", "hf_" + "a" * 34, "ghp_" + "A1" * 18, "https://me:pass@host/x",
    "-----BEGIN RSA PRIVATE KEY-----", "redis://:pass@host",
]  # fmt: skip
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HOME": "/opt/weights", "KEYBOARD": "us",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "RAY_AUTH_TOKEN_PATH": "/run/token", "AWS_PROFILE": "lab",
    "AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "RAY_AUTH_MODE": "token", "HTTPS_PROXY": "http://proxy:3128",
}  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_name_of_a_secret_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^metadata\.runtime_env\.env_vars\.{name} looks like a secret, .*nodes"):
        read(tmp_path, {"env_vars": {"A": "b", name: "x"}})


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_value_like_a_secret_is_refused_and_not_repeated(tmp_path: Path, value: str) -> None:
    for given, place in (({"env_vars": {"A": value}}, "env_vars.A"), ({"pip": ["six", value]}, "pip.1")):
        with pytest.raises(InvalidInput) as error:
            read(tmp_path, given)
        assert f"runtime_env.{place} looks like a secret" in str(error.value)
        assert value not in str(error.value)


def test_a_secret_by_set_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"env_vars\.HF_TOKEN looks like"):
        read(tmp_path, {}, "runtime_env.env_vars.HF_TOKEN=abc")


def test_what_only_sounds_like_a_secret_is_taken(tmp_path: Path) -> None:
    assert read(tmp_path, {"env_vars": HARMLESS}) == {"env_vars": HARMLESS}
