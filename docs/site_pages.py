"""Pages of the documentation site that come from files outside docs/. mkdocs calls the `on_...` functions.

The documents link to each other by relative paths, as a git host shows them: `[the README](../README.md)`. mkdocs
knows files in docs/ only. So these functions do two things:

- README.md and the other documents in `PAGES` become pages of the site.
- A link to any other file of the repository leads to a page that shows this file, `source/PATH`.

A link to a file that does not exist stays as it is. mkdocs then reports it, and the build fails.
"""

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Warnings of this logger fail a strict build.
logger = logging.getLogger("mkdocs.site_pages")

PROJECT = Path(__file__).parent.parent
# Documents outside docs/, and the page that shows each.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "report-a-vulnerability.md",
    "cluster/README.md": "make-a-cluster.md",
    "benchmarks/README.md": "benchmarks.md",
}
DOCUMENTS = {page: document for document, page in PAGES.items()}
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash"}
FENCE = re.compile(r"^ *(?:```|~~~).*?^ *(?:```|~~~) *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
EXTERNAL_ASSET = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(https?://[^\"'> ]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages for `PAGES`, and one page for each other file to which a document links."""
    for document, page in PAGES.items():
        files.append(File.generated(config, page, content=(PROJECT / document).read_text()))
    pages = [file.src_uri for file in files.documentation_pages()]
    for path in sorted({path for page in pages for path in linked_sources(page)}):
        files.append(File.generated(config, f"source/{path}.md", content=source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link that leaves docs/ to the page that shows its file."""
    return rewrite_links(markdown, page.file.src_uri)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of each script, style sheet and picture that a browser would load from another host."""
    for address in EXTERNAL_ASSET.findall(output):
        logger.warning("%s loads %s, but the site must work without a network", page.file.src_uri, address)
    return output


def linked_sources(page: str) -> Iterator[str]:
    """The paths, from the project's root, of the files that `page` links to and that are not pages themselves."""
    document = repository_path(page)
    if page.startswith("source/"):
        return
    for target in LINK.findall(FENCE.sub("", (PROJECT / document).read_text())):
        path = resolve(document, target)
        if site_page(path) == f"source/{path}.md":
            yield path


def rewrite_links(markdown: str, page: str) -> str:
    """The text of `page` with links between pages of the site. Code blocks stay as they are."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(lambda link: site_link(page, link[1]), markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(lambda link: site_link(page, link[1]), markdown[end:])])


def site_link(page: str, target: str) -> str:
    """The link in the site for `target`, a link in the document that `page` shows."""
    linked = site_page(resolve(repository_path(page), target))
    return posixpath.relpath(linked, posixpath.dirname(page) or ".") if linked else target


def site_page(path: str) -> str | None:
    """The file of the site that shows `path` of the repository. None if there is no such file."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES or f"{path}/README.md" in PAGES:
        return PAGES.get(path) or PAGES[f"{path}/README.md"]
    return f"source/{path}.md" if (PROJECT / path).is_file() else None


def repository_path(page: str) -> str:
    """The path, from the project's root, of the document that `page` shows."""
    return DOCUMENTS.get(page, f"docs/{page}")


def resolve(document: str, target: str) -> str:
    """The path, from the project's root, to which the link `target` of `document` leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), target))


def source_page(path: str) -> str:
    """Markdown that shows the file `path`. The search leaves it out."""
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    text = (PROJECT / path).read_text()
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall(r"`+", text)), 3)
    return f"---\nsearch: {{exclude: true}}\ntitle: {path}\n---\n\n{fence}{language}\n{text}\n{fence}\n"
