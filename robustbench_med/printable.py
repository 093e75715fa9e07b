"""Foreign texts made fit for a terminal, a page or a file."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    r"""Return `text` on one line without control characters, which could drive a terminal.

    >>> plain("a\x1b[2Jb\nc")
    'a[2Jb c'
    """
    return "".join(c for c in re.sub(r"\s+", " ", text) if c.isprintable()).strip()
