"""CONTRIBUTING.md names the layers and the targets of make as they are."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "CONTRIBUTING.md").read_text()


def test_its_layers_are_those_that_import_linter_checks() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    (contract,) = [c for c in settings["tool"]["importlinter"]["contracts"] if c.get("containers") == ["speechclip"]]
    table = PAGE.partition("| layer |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    assert rows == [layer.split(" | ") for layer in contract["layers"]]


def test_every_target_of_make_that_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGE, re.MULTILINE))
    assert "check" in named
    assert named <= targets
