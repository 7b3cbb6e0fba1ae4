"""The settings of a command: from where they come, and that docs/configuration.md lists all of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from speechclip.config import RunSettings, Settings, load_settings
from speechclip.errors import InvalidInput
from speechclip.featurization.plan import TaskSizes

PROJECT = Path(__file__).parent.parent


def write(folder: Path, settings: object) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"cluster_name": "x", "metadata": {"speechclip": settings}}))
    return str(path)


def test_options_win_over_set_which_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"speech": "toy", "image": "toy", "text": "toy", "featurize": {"max_rejected": 0.5}})
    settings = load_settings(
        path, {"speech": "hubert:x", "image": None}, ["image=clip:y", "featurize.tasks.shard_items=7"]
    )
    assert (settings.speech, settings.image, settings.text) == ("hubert:x", "clip:y", "toy")
    assert settings.featurize == RunSettings(max_rejected=0.5, tasks=TaskSizes(shard_items=7))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="shard_itmes"):
        load_settings(write(tmp_path, {}), {}, ["featurize.tasks.shard_itmes=7"])
    with pytest.raises(InvalidInput, match="stroe"):
        load_settings(write(tmp_path, {"stroe": "x"}), {}, [])
    with pytest.raises(InvalidInput, match="key=value"):
        load_settings(write(tmp_path, {}), {}, ["codec"])


def test_an_error_names_the_file_that_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.yaml"):
        load_settings(str(tmp_path / "nothing.yaml"), {}, [])
    with pytest.raises(InvalidInput, match="is not a mapping"):
        load_settings(write(tmp_path, "text"), {}, [])


def test_local_paths_become_absolute_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, {"store": "store", "manifest": "s3://b/m.parquet"}, [])
    assert settings.store == str(tmp_path / "store")
    assert settings.manifest == "s3://b/m.parquet"


def test_an_error_about_a_missing_setting_names_its_option_and_its_key() -> None:
    settings = load_settings(str(PROJECT / "ray_config.yaml"), {}, [])
    with pytest.raises(InvalidInput, match=r"--store.*metadata\.speechclip\.store"):
        settings.need("store")
    with pytest.raises(InvalidInput, match="--speech"):
        settings.encoder_requests()


def test_layers_apply_to_speech_only() -> None:
    settings = load_settings(str(PROJECT / "ray_config.yaml"), {"speech": "toy", "image": "toy", "layers": (1, 2)}, [])
    assert [request.layers for request in settings.encoder_requests()] == [(1, 2), None]


def test_the_run_folder_of_a_training_may_be_in_the_config(tmp_path: Path) -> None:
    found = load_settings(write(tmp_path, {"run": "s3://b/run"}), {}, [])
    assert found.need("run", "--out") == "s3://b/run"
    with pytest.raises(InvalidInput, match="no run given; give --out, or set"):
        load_settings(write(tmp_path, {"store": "s"}), {}, []).need("run", "--out")


def leaves(settings: msgspec.Struct, parent: str = "") -> Iterator[tuple[str, object]]:
    """Each key with its dots, and its value."""
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, msgspec.Struct):
            yield from leaves(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def test_the_page_lists_every_key_with_its_default_and_an_example_that_works(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`)? ?\| `(.*?)` \| \S", page, re.MULTILINE)
    defaults = {key: value for key, value in leaves(Settings()) if not key.startswith("runtime_env.")}
    assert {key: yaml.safe_load(default) if default else None for key, default, _ in rows} == defaults
    assert len(rows) == len(defaults)
    for key, _, example in rows:
        found = dict(leaves(load_settings(write(tmp_path, {}), {}, [f"{key}={example}"])))
        assert found[key] != defaults[key], key
        assert {name: value for name, value in found.items() if name != key} == {
            name: value for name, value in leaves(Settings()) if name != key
        }
