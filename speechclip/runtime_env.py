"""`metadata.runtime_env`: what Ray prepares for the workers of a job. It must not hold a secret."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from speechclip.errors import InvalidInput
from speechclip.records import Record

WHERE = "metadata.runtime_env"
# Matches AWS_ACCESS_KEY_ID, HF_TOKEN and PGPASSWORD, but not TOKENIZERS_PARALLELISM and KEYBOARD.
SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTHORIZATION|(TOKEN|KEY|PWD)S?(?![A-Z])")
# Such a variable holds the path of a secret, not the secret.
NAMES_A_FILE = re.compile(r"_(FILE|PATH|DIR)$")
# Keys and tokens of AWS, GitHub, Hugging Face and Slack, a private key, a signed token, a password in an address.
SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{12}|\bgh[oprsu]_\w{20}|\bgithub_pat_|\bhf_[A-Za-z0-9]{20}|\bxox[a-z]-"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\beyJ[\w-]+\.eyJ|://[^/\s:@]*:[^/\s@]+@"
)


class RuntimeEnv(Record, frozen=True):
    """The fields of Ray's `runtime_env`, with the same types. Ray decides about a field that is not given."""

    env_vars: dict[str, str] = {}
    working_dir: str | None = None
    excludes: list[str] | None = None
    py_modules: list[str] | None = None
    py_executable: str | None = None
    pip: Any = None
    uv: Any = None
    conda: Any = None
    container: Any = None
    image_uri: str | None = None
    java_jars: list[str] | None = None
    worker_process_setup_hook: str | None = None
    config: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that are given, as a dictionary for `ray.init`."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value not in (None, {})}


def refuse_secrets(runtime_env: RuntimeEnv) -> None:
    """Raise `InvalidInput` if a name or a value looks like a secret. The message names the place, not the secret."""
    named = [name for name in runtime_env.env_vars if _is_secret_name(name)]
    places = [f"env_vars.{name}" for name in named] or [
        place for place, text in _texts(runtime_env.fields()) if SECRET_VALUE.search(text)
    ]
    if places:
        raise InvalidInput(
            f"{WHERE}.{places[0]} looks like a secret, and everybody who sees the job sees its runtime_env",
            "give it to the nodes, by workload identity, a profile or their own environment",
        )


def _is_secret_name(name: str) -> bool:
    return bool(SECRET_NAME.search(name.upper())) and not NAMES_A_FILE.search(name.upper())


def _texts(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in the tree, with its place, such as `env_vars.A` or `pip.1`."""
    if isinstance(tree, str):
        yield place, tree
    elif isinstance(tree, dict | list | tuple):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _texts(value, f"{place}.{name}" if place else str(name))
