"""What the documents say is run: their Python blocks, and the commands' own help beside the README's."""

import re
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from PIL import Image
from support.crash_points import GC_POINTS, POINTS
from support.small_runs import train_small

from speechclip.cli import cli, main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.store import FeatureStore

PROJECT = Path(__file__).parent.parent
DOCUMENTS = sorted([PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")])


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("docs")
    manifest, store = str(folder / "m.parquet"), str(folder / "store")
    corpus = make_synthetic(folder / "corpus", num_concepts=6, num_voices=2)
    main(["ingest", "table", str(corpus), "--out", manifest])
    main(
        [
            "featurize",
            "--inline",
            "--manifest",
            manifest,
            "--store",
            store,
            "--speech",
            "toy",
            "--image",
            "toy",
            "--text",
            "toy",
        ]
    )
    return store


@pytest.fixture(scope="module")
def run(store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    (manifest,) = FeatureStore(store).manifests()
    out = str(tmp_path_factory.mktemp("run"))
    train_small(manifest, FeatureStore(store), out)
    return out


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to stand in, with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("hello.wav", 0.05 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    Image.new("RGB", (20, 20), "brown").save("dog.png")


# The stock reader leaves its file for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# docs/python.md trains on Ray, whose own code is behind its deprecations.
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if python_blocks(path)], ids=lambda path: path.name)
@pytest.mark.usefixtures("hello", "ray_ends")
def test_python_blocks_run(document: Path, store: str, run: str) -> None:
    names: dict[str, object] = {"store": store, "run": run}
    for block in python_blocks(document):
        exec(compile(block, str(document), "exec"), names)


def test_every_command_stands_in_the_readme_with_its_own_words() -> None:
    readme = (PROJECT / "README.md").read_text()
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        first = command.get_short_help_str(200).partition(";")[0].partition(":")[0].rstrip(".")
        assert f"`{name}`" in readme, name
        assert first in readme, f"README: {name} should say {first!r}"


def test_every_option_in_the_readme_exists() -> None:
    context = click.Context(cli)
    for line in re.findall(r"^\s*(?:\$ )?speechclip ([a-z].*)$", (PROJECT / "README.md").read_text(), re.MULTILINE):
        words = line.split()
        command = cli.get_command(context, words[0])
        assert command is not None, words[0]
        if isinstance(command, click.Group):
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in known, f"README: {line}"


def test_every_crash_point_has_its_line_in_the_protocol() -> None:
    cells = re.findall(r"^\| ([^|]+) \|", (PROJECT / "docs" / "store.md").read_text(), re.MULTILINE)
    told = [name for cell in cells for name in cell.removeprefix("`gc`: ").split("; ")]
    assert not (POINTS | GC_POINTS).keys() - set(told)


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
