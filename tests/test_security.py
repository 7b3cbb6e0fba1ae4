"""What docs/security.md promises of our own code, read off the code: nothing in it can run what a file brings along."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SOURCES = sorted([*(PROJECT / "speechclip").rglob("*.py"), *(PROJECT / "pipelines").glob("*.py")])
CALLS_THAT_RUN_DATA = re.compile(
    r"(c?pickle|cloudpickle|dill|joblib|marshal|shelve)\.(load|loads|open|Unpickler)|eval|exec|os\.system"
    r"|yaml\.(load|full_load|unsafe_load)(_all)?|.*\.(extractall|extract)|shutil\.unpack_archive"
)
# By each of these Ray unpickles what a file brings along.
SWITCHES = re.compile(r"RAY_DATA_(WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION|AUTOLOAD_\w+)")


def dangers(source: str) -> Iterator[str]:
    """The calls in a module that could run code out of data."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if CALLS_THAT_RUN_DATA.fullmatch(name):
            yield name
        if name.endswith("torch.load") and not name.startswith("safetensors") and options.get("weights_only") != "True":
            yield f"{name} without weights_only=True"
        yield from (
            f"{name} with {option}={options[option]}"
            for option, harmless in (("allow_pickle", "False"), ("shell", "False"), ("trust_remote_code", "False"))
            if options.get(option, harmless) != harmless
        )


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_no_module_can_run_code_out_of_data(file: Path) -> None:
    assert list(dangers(file.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(data)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "tarfile.open(file).extractall(folder)",
        "archive.extract(member)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_each_of_these_would_be_seen(line: str) -> None:
    assert list(dangers(line))


def test_harmless_likes_of_them_are_not() -> None:
    assert (
        list(dangers("torch.load(f, weights_only=True); np.load(f); safetensors.torch.load(d); yaml.safe_load(t)"))
        == []
    )


def test_nothing_switches_on_what_lets_ray_unpickle_files() -> None:
    assert SWITCHES.search("RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR")
    files = [*SOURCES, PROJECT / "ray_config.yaml", PROJECT / "Makefile", *(PROJECT / "cluster").rglob("*")]
    assert [file for file in files if file.is_file() and SWITCHES.search(file.read_text())] == []
