"""The documentation site: it shows every public name, and its links lead to pages of the site."""

import inspect
import re
from itertools import pairwise
from pathlib import Path

import pytest
from site_pages import PAGES, linked_sources, rewrite_links, source_page

import speechclip

PROJECT = Path(__file__).parent.parent
DOCUMENTS = sorted([*(PROJECT / path for path in PAGES), *(PROJECT / "docs").rglob("*.md")])
CODE_BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LIST_ITEM = re.compile(r" *([-*]|\d+\.) ")


@pytest.mark.parametrize("name", speechclip.__all__)
def test_a_public_name_is_in_the_api_reference_and_has_a_docstring(name: str) -> None:
    shown = re.findall(r"^::: speechclip\.(\w+)$", (PROJECT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert name in shown, f"docs/api.md lacks the line '::: speechclip.{name}'"
    assert inspect.getdoc(getattr(speechclip, name)), f"speechclip.{name} has no docstring"


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("store.md", "jobs.md#signals", "jobs.md#signals"),
        ("store.md", "../README.md", "index.md"),
        ("store.md", "../cluster/README.md#on-kubernetes", "make-a-cluster.md#on-kubernetes"),
        ("store.md", "../cluster", "make-a-cluster.md"),
        ("store.md", "../pyproject.toml", "source/pyproject.toml.md"),
        ("decisions/0001.md", "../store.md", "../store.md"),
        ("decisions/0001.md", "../../pyproject.toml", "../source/pyproject.toml.md"),
        ("index.md", "docs/store.md", "store.md"),
        ("index.md", "ray_config.yaml", "source/ray_config.yaml.md"),
        ("make-a-cluster.md", "../docs/jobs.md", "jobs.md"),
        ("store.md", "../no_such_file.py", "../no_such_file.py"),
        ("store.md", "https://docs.ray.io/page.md", "https://docs.ray.io/page.md"),
        ("store.md", "#format", "#format"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_its_file(page: str, link: str, expected: str) -> None:
    assert rewrite_links(f"See [this]({link}).", page) == f"See [this]({expected})."


def test_a_link_in_a_code_block_stays() -> None:
    block = "```\n[x](../README.md)\n```"
    assert rewrite_links(f"[x](../README.md)\n\n{block}\n\n[y](jobs.md)\n", "store.md") == (
        f"[x](index.md)\n\n{block}\n\n[y](jobs.md)\n"
    )


def test_each_linked_source_file_gets_a_page() -> None:
    assert "ray_config.yaml" in set(linked_sources("index.md"))
    assert "README.md" not in set(linked_sources("cluster.md"))


def test_a_source_page_shows_the_whole_file_although_it_holds_fences() -> None:
    text = (PROJECT / "docs" / "site_pages.py").read_text()
    assert "```" in text
    assert f"````python\n{text}\n````\n" in source_page("docs/site_pages.py")


# A git host shows such a list well. mkdocs makes it a part of the paragraph above.
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_list_begins_after_an_empty_line(document: Path) -> None:
    lines = CODE_BLOCK.sub("", document.read_text()).splitlines()
    for above, line in pairwise(lines):
        if LIST_ITEM.match(line) and above.strip():
            assert LIST_ITEM.match(above) or above.startswith(" "), f"put an empty line above {line!r}"
