"""Every page that a source file or a page names exists, and so does every section that it names of a page."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
FOLDERS = ("speechclip", "tests", "pipelines", "benchmarks", "cluster", "docs")
SUFFIXES = {".py", ".md", ".yaml", ".toml"}
# These name pages that only the built documentation site has. `mkdocs build` checks its links itself.
ABOUT_THE_SITE = {PROJECT / "docs" / "site_pages.py", PROJECT / "tests" / "test_docs_site.py"}

# A page's name, as in docs/store.md or cluster/README.md; a link's #anchor or a quoted section may follow it.
PAGE = re.compile(r"(?P<page>[\w./-]*\b[\w-]+\.md)\b(?:#(?P<anchor>[\w-]+))?")
SECTION = re.compile(r'docs/(?P<page>[\w/-]+\.md)[`)]*,\s+"(?P<section>[^"]+)"')
NOT_IN_THE_REPOSITORY = re.compile(r"SPEECHCLIP_SPEC|RAY_NOTES|\bSPEC \d\.\d")


def written_files() -> list[Path]:
    roots = [path for path in PROJECT.iterdir() if path.is_file()]
    below = [path for folder in FOLDERS for path in (PROJECT / folder).rglob("*")]
    return sorted(
        path for path in [*roots, *below] if path.suffix in SUFFIXES and path not in {*ABOUT_THE_SITE, Path(__file__)}
    )


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+?)\s*$", page.read_text(), re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def wrong_references(text: str, folder: Path) -> list[str]:
    """What `text`, the content of a file in `folder`, names and a reader of the repository cannot find."""
    text = re.sub(r"\n\s*(?:# )?", " ", text)
    wrong = NOT_IN_THE_REPOSITORY.findall(text)
    for match in PAGE.finditer(text):
        page = next(
            (root / match["page"] for root in (folder, PROJECT, PROJECT / "docs") if (root / match["page"]).is_file()),
            None,
        )
        if page is None:
            wrong.append(match["page"])
        elif match["anchor"] and match["anchor"] not in map(anchor, headings(page)):
            wrong.append(f"{match['page']}#{match['anchor']}")
    for match in SECTION.finditer(text):
        page = PROJECT / "docs" / match["page"]
        if page.is_file() and match["section"] not in headings(page):
            wrong.append(f'{match["page"]}, "{match["section"]}"')
    return wrong


def test_every_page_and_section_that_a_file_names_exists() -> None:
    wrong = {
        str(path.relative_to(PROJECT)): wrong_references(path.read_text(), path.parent) for path in written_files()
    }
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("See docs/nowhere.md.", ["docs/nowhere.md"]),
        ("A link: [x](nowhere.md#loss).", ["nowhere.md"]),
        ("A link: [x](model.md#loss), [y](model.md#gain).", ["model.md#gain"]),
        ('The loss (docs/model.md, "Loss").', []),
        ('The gain (docs/model.md,\n    "Gain").', ['model.md, "Gain"']),
        ('# The gain (docs/model.md,\n# "Training gains").', ['model.md, "Training gains"']),
        ("As SPEECHCLIP_SPEC 2.6 says.", ["SPEECHCLIP_SPEC"]),
        ("Two sizes (SPEC 2.8).", ["SPEC 2.8"]),
    ],
)
def test_a_reference_that_leads_nowhere_is_found(text: str, wrong: list[str]) -> None:
    assert wrong_references(text, PROJECT / "docs") == wrong
