"""The language of the project: short sentences and plain words, in every page, docstring, comment and help text."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *PROJECT.glob("*.md"),
        *(PROJECT / "docs").rglob("*.md"),
        *(page for page in PROJECT.glob("*/*.md") if page.name == "README.md"),
    ]
)
SOURCES = sorted(path for room in ("speechclip", "pipelines", "benchmarks") for path in (PROJECT / room).rglob("*.py"))
MOST_WORDS = 40
# A stranger has to read these twice, or they have another meaning in a field that he knows.
RIDDLES = (
    r"\bwhat of it\b", r"\bin its stead\b", r"\bsuch of them\b", r"\bgives? way\b", r"\b(?:its|their) like\b",
    r"\bwhosoever\b", r"\bheeds?\b", r"\banew\b", r"\bstands? beside\b", r"\bin case of need\b", r"\bthe weather\b",
)  # fmt: skip


def sentences(text: str) -> Iterator[str]:
    """The sentences of running text: without code, tables, headings and the addresses of links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^( {4,}| *\||#|<).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``?[^`]*``?", "code", text)
    for paragraph in re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) ", text, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.:;!?])[\s\"')*]+", " ".join(paragraph.split()))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings and comments of a module, each with its line."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("# ")


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module that a person may read: string constants with a space, docstrings among them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def troubles(text: str) -> list[str]:
    """The sentences that are too long, and those with a riddle."""
    found = []
    for sentence in sentences(text):
        # A list of names with their numbers is a table in a line.
        count = len(re.sub(r"code [\d.,]+", "", sentence).split())
        if count > MOST_WORDS:
            found.append(f"{count} words: {sentence}")
        found += [f"{riddle}: {sentence}" for riddle in RIDDLES if re.search(riddle, sentence, re.IGNORECASE)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_has_short_sentences_and_no_riddle(page: Path) -> None:
    assert not troubles(page.read_text())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PROJECT)))
def test_a_module_has_short_sentences_and_no_riddle(source: Path) -> None:
    assert not [(line, trouble) for line, text in prose(source) for trouble in troubles(text)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PROJECT)))
def test_a_message_has_no_riddle(source: Path) -> None:
    for line, text in messages(source):
        found = [riddle for riddle in RIDDLES if re.search(riddle, text, re.IGNORECASE)]
        assert not found, f"{source.name}:{line}: {found[0]}: {text}"


def test_a_long_sentence_and_a_riddle_are_found() -> None:
    assert troubles("word " * 41)
    assert troubles("A collection that stops gives way to a run.")
    assert not troubles("`gc` deletes the file. It is older than seven days.")
