import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from speechclip.encoders.families import FAMILIES, EncoderName, Family, Form, grammar
from speechclip.errors import InvalidInput

FORMS = [(family, form) for family in FAMILIES for form in family.forms]


@pytest.mark.parametrize(("family", "form"), FORMS, ids=[form.pattern for _, form in FORMS])
def test_every_example_is_a_name_of_its_family(family: Family, form: Form) -> None:
    parsed = EncoderName.parse(form.example)
    assert parsed.family == family.name
    assert str(parsed) == form.example
    assert form.example.startswith(form.pattern.partition("<")[0])


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_the_loader_of_every_family_exists(family: Family) -> None:
    module, function = family.loader.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_no_two_families_have_one_name() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_an_unknown_name_is_answered_with_every_form() -> None:
    with pytest.raises(InvalidInput) as refusal:
        EncoderName.parse("bert:base")
    assert refusal.value.problem == "'bert:base' names no encoder"
    assert grammar() in str(refusal.value.advice)
    for _, form in FORMS:
        assert form.pattern in grammar()


def test_the_table_loads_no_library() -> None:
    code = (
        "import sys, speechclip.encoders.families, speechclip.encoders.prepare\n"
        "print({'torch', 'transformers', 'open_clip', 'timm', 'torchaudio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_page_has_the_table() -> None:
    rows = [
        f"| `{form.pattern}` | {', '.join(family.modalities)} | {form.meaning} | `{form.example}` |"
        for family, form in FORMS
    ]
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    table = page.partition("| write | encodes | what it is | example |\n|---|---|---|---|\n")[2]
    assert table.partition("\n\n")[0].splitlines() == rows
