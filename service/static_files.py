"""The pages' own files, and how one page is made of them that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from importlib.resources import files

CHARTS_STYLES = ("uPlot.min.css", "base.css")
CHARTS_SCRIPTS = ("uPlot.iife.min.js", "charts.js")
REPORT_STYLES = (*CHARTS_STYLES, "report.css")
REPORT_SCRIPTS = (*CHARTS_SCRIPTS, "report.js")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def text_of(name: str) -> str:
    """A file of `service/static`."""
    return (files("service") / "static" / name).read_text(encoding="utf-8")


def head(styles: Iterable[str], scripts: Iterable[str]) -> str:
    """These files as elements of a page's head; scripts see what those before them define."""
    style, script = ("\n".join(map(text_of, names)) for names in (styles, scripts))
    return f"<style>{style}</style>\n<script>{script}</script>"


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: the styles and scripts that stand in it, and what its own host serves."""
    sources = {"script": ["'self'"], "style": ["'self'"]}
    for kind, inline in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        sources[kind].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src {' '.join(sources['script'])}; style-src {' '.join(sources['style'])}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
