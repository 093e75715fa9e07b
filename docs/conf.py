"""Sphinx: what the docs are built from. `make docs` builds them; a warning is an error."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
GENERATED = HERE / "_build" / "generated"

sys.path.insert(0, str(HERE.parent))  # this checkout's modules, not another's

project = "robustbench_med"
author = "The robustbench_med developers"
copyright = author  # noqa: A001 - the name is Sphinx's
release = version = installed("robustbench-med")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
# autodoc names every annotation as a reference; those of other packages have no page here
nitpick_ignore_regex = [("py:.*", ".*")]
default_role = "code"  # `x` in a docstring is code
napoleon_attr_annotations = False  # a shape such as "b c *s" is no reST
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

highlight_language = "none"  # of blocks that name none: commands
html_theme = "furo"
html_title = "robustbench_med"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# the reader's own fonts and a tint that holds its contrast in light and dark
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5f73", "color-brand-content": "#0b5f73"},
    "dark_css_variables": {"color-brand-primary": "#6fc6d9", "color-brand-content": "#6fc6d9"},
}


def commands() -> str:
    """Return the help of every command as Markdown, as typer writes it."""
    words = ["robustbench_med.cli", "utils", "docs", "--name", "python -m robustbench_med"]
    written = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "typer", *words],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return written[written.index("**Usage**") :]  # the page has a heading of its own


GENERATED.mkdir(parents=True, exist_ok=True)
(GENERATED / "commands.md").write_text(commands(), encoding="utf-8")
