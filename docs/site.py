"""What the site, `make docs`, makes of files that lie elsewhere: README, CHANGELOG, and the sources that pages link to.

Links stay what they are for a reader of the repository. Here each leads to a page: of a Markdown file, of a source with
its lines numbered, or of a folder with what is in it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_PAGES = {ROOT / "README.md": "index.md", ROOT / "CHANGELOG.md": "changelog.md", DOCS / "adr": "adr/index.md"}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".sh": "sh", ".json": "json"}
# What a browser fetches by itself: of another host, or by a path that files have not.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*?\bsrc=["']?(?:https?:)?/[^"'>]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*?\bhref=["']?(?:https?:)?/[^"'>]*"""
)
_FETCHED_BY_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^"')]*""")
_made: dict[str, Path] = {}
"""Where what is behind a page of the site lies, for pages that are made here."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every decision."""
    decisions = next(part for part in config.nav if "Decisions" in part)
    decisions["Decisions"] = ["adr/index.md", *sorted(f"adr/{one.name}" for one in (DOCS / "adr").glob("0*.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for all that pages link to and that is none."""
    _made.clear()
    waiting = [Path(page.abs_src_path) for page in files.documentation_pages() if page.abs_src_path]
    waiting += [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    _made.update({uri: path for path, uri in _PAGES.items()})
    while waiting:
        path = waiting.pop()
        for target in _targets(path):
            uri = _uri(target)
            if DOCS not in target.parents and uri not in _made:
                _made[uri] = target
                if (text := _markdown(target)) is not None:
                    waiting.append(text)
    for uri, path in _made.items():
        inclusion = InclusionLevel.NOT_IN_NAV if uri.startswith("source/") else InclusionLevel.INCLUDED
        files.append(File.generated(config, uri, content=_content(path), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link of the repository to its page."""
    here = page.file.src_uri
    at = _markdown(_made[here]) if here in _made else DOCS / here
    if at is None:
        return markdown

    def led(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(at.parent / link[1]))
        return os.path.relpath(_uri(target), Path(here).parent) if target.exists() else link[1]

    return _LINK.sub(led, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """See that no page fetches anything from elsewhere: it must be whole without internet."""
    site = Path(config.site_dir)
    # Only a server shows 404.html, whose paths begin at its root.
    for pattern, files in (
        (_FETCHED, {*site.rglob("*.html")} - {site / "404.html"}),
        (_FETCHED_BY_STYLE, site.rglob("*.css")),
    ):
        for file in files:
            if found := pattern.search(file.read_text()):
                raise PluginError(
                    f"{file.relative_to(site)} would fetch {found[0]!r}: expected nothing of another host"
                )


def _targets(path: Path) -> list[Path]:
    """The files and folders of the repository that a page links to."""
    found = (Path(os.path.normpath(path.parent / link)) for link in _LINK.findall(path.read_text()))
    return [one for one in found if ROOT in one.parents and one.exists()]


def _uri(target: Path) -> str:
    """The page of a file or folder; a file of the site stays itself."""
    if target in _PAGES:
        return _PAGES[target]
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    return f"source/{target.relative_to(ROOT).as_posix()}.md"


def _markdown(path: Path) -> Path | None:
    """The Markdown that a page of a file or folder shows."""
    inside = path / "README.md" if path.is_dir() else path
    return inside if inside.suffix == ".md" and inside.exists() else None


def _content(path: Path) -> str:
    if path == DOCS / "adr":
        titles = {one.name: one.read_text().partition("\n")[0].lstrip("# ") for one in sorted(path.glob("0*.md"))}
        return "# Decisions\n\n" + "".join(f"- [{title}]({name})\n" for name, title in titles.items())
    name = path.relative_to(ROOT).as_posix()
    if (text := _markdown(path)) is not None:
        return text.read_text()
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n"
    if path.is_dir():
        inside = sorted(one.name + "/" * one.is_dir() for one in path.iterdir() if one.name != "__pycache__")
        return head + "".join(f"- `{one}`\n" for one in inside)
    return f'{head}``````{_LANGUAGES.get(path.suffix, "text")} linenums="1"\n{path.read_text()}\n``````\n'
