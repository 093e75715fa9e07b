"""Every sentence of the page, held against one golden file.

After a change that is meant: `UPDATE_GOLDEN=1 pytest tests/leaderboard/test_page_words.py`, and
read the difference as a reader of the page would.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from .visible import sentences

GOLDEN = Path(__file__).parent / "golden" / "page.txt"


def test_the_page_says_what_its_golden_file_says(mask_suite: Path, shields: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (mask_suite, shields)]
    lines = list(dict.fromkeys(line for page in pages for line in sentences(page)))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = GOLDEN.read_text(encoding="utf-8").splitlines()
    difference = "\n".join(difflib.unified_diff(known, lines, "golden", "page", lineterm=""))
    assert not difference, f"{difference}\n\nmeant? UPDATE_GOLDEN=1 pytest {Path(__file__).name}"
