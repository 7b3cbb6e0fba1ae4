"""CONTRIBUTING.md names only targets of make that exist."""

import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def test_every_target_of_make_that_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert "check" in named
    assert named <= targets
