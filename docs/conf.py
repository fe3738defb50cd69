"""The documentation site: Sphinx, since it has an API reference from docstrings beside pages in Markdown (MyST)."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pygments.lexer import RegexLexer
from pygments.token import Comment, Keyword, Name, Number, Text

# The compiled modules have no docstrings of their attributes, and the uncompiled ones are the same code.
os.environ["GEVENTWS_PURE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import geventws  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "geventws"
author = "the geventws developers"
copyright = "the geventws developers"
release = version = geventws.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["house.py"]

# What is linked to outside of these pages is read on the web.
REPOSITORY = "https://github.com/geventws/geventws/blob/main/"

myst_heading_anchors = 3

# A name in single quotes in a docstring leads to what it names, where that is here.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
# It wins over the `members` that a directive names, unless that has `no-members` as well.
autodoc_default_options = {"members": True}
# Of a signature's annotations the last part is enough.
python_use_unqualified_type_names = True
add_module_names = False
python_maximum_signature_line_length = 100

highlight_language = "bash"
html_theme = "furo"
html_title = f"geventws {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/geventws/geventws/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#0a7d6c", "color-brand-content": "#0a7d6c"},
    "dark_css_variables": {"color-brand-primary": "#5fc9b8", "color-brand-content": "#5fc9b8"},
}

_link = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]*)(#[^)\s]*)?(?=\))")
_include = re.compile(r"^```\{include\} (\S+)\n((?::\S+: .*\n)*)```$", re.MULTILINE)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts in what a page includes, and lets links to files that are no pages lead to the repository."""
    source[0] = _include.sub(partial(_included, app), _resolved(source[0], ROOT / "docs"))


def _included(app: Sphinx, found: re.Match[str]) -> str:
    """The text of a file that a page includes, from one mark or up to another."""
    path = ROOT / "docs" / found[1]
    # The page is made anew when that file has changed.
    app.env.note_dependency(str(path))
    text = path.read_text()
    for name, mark in re.findall(r"^:(\S+): (.*)$", found[2], re.MULTILINE):
        assert mark in text, f"{found[1]} has no {mark}"
        before, _, behind = text.partition(mark)
        text = behind if name == "start-after" else before
    return _resolved(text, path.parent)


def _resolved(text: str, folder: Path) -> str:
    """``text`` of a file in ``folder`` with links as they are from here."""

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if not target:
            return found[0]
        path = (folder / target).resolve()
        if path == ROOT / "SECURITY.md":
            return f"security.md{anchor}"
        if path == ROOT / "CHANGELOG.md":
            return f"changelog.md{anchor}"
        if path.is_relative_to(ROOT / "docs"):
            return f"{path.relative_to(ROOT / 'docs')}{anchor}"
        assert path.exists(), f"there is no {path}"
        return f"{REPOSITORY}{path.relative_to(ROOT)}{anchor}"

    # Code is left alone.
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _link.sub(link, part) for part in parts)


class HAProxyLexer(RegexLexer):  # type: ignore[misc]
    """Pygments has none for HAProxy's configuration."""

    name = "HAProxy"
    tokens: ClassVar = {
        "root": [
            (r"#.*$", Comment),
            (r"^(global|defaults|frontend|backend|listen)\b", Keyword),
            (r"^ +[\w-]+", Name.Builtin),
            (r"\d+(ms|s|m|h)?(?=\s)", Number),
            (r"[^\s#]+|[^\S\n]+|\n", Text),
        ]
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_lexer("haproxy", HAProxyLexer)
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
