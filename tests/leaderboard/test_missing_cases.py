"""Failures: the cases without a record are named at the top of page and Markdown, and escaped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

import leaderboard
from leaderboard.wording.text import FAILURES_MEAN
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored

from .planted import HOSTILE

Maker = Callable[..., Stored]


def test_the_page_names_what_it_lacks(make_stored: Maker, tmp_path: Path) -> None:
    fine, missing = make_stored([6, 6], attack="bim"), make_stored([6, 1]).record
    failures = [
        Failure(
            label=f"a | {HOSTILE}",
            reason="it\x1b[2J *failed*",
            case=missing.case,
            attack=missing.attack_card,
        ),
        Failure(label="0123456789abcdef", reason=HOSTILE),
    ]
    page = leaderboard.publish([fine], tmp_path, title="t", failures=failures).read_text(
        encoding="utf-8"
    )
    notice = page.partition('id="lost"')[2].partition("</div>")[0]
    assert page.index('id="lost"') < page.index('id="glance"')
    assert "2 cases not scored." in notice
    assert "may be too high" in notice
    assert "0123456789abcdef: &lt;script&gt;" in notice
    assert "it[2J *failed*" in notice
    assert "<script>alert" not in page
    assert "failed or not readable: PGD-40" in page
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert f"**Not scored: 2.** {FAILURES_MEAN}" in text
    assert "- a \\| &lt;script&gt;alert(1)&lt;/script&gt;: it\\[2J \\*failed\\*" in text
    console = Console(file=io.StringIO(), width=100, color_system=None)
    leaderboard.show([fine], console, failures=failures)
    assert isinstance(console.file, io.StringIO)
    assert "incomplete. failed or not readable: PGD-40" in console.file.getvalue()


def test_a_page_that_lacks_nothing_says_nothing(make_stored: Maker, tmp_path: Path) -> None:
    page = leaderboard.publish([make_stored([6])], tmp_path, title="t").read_text(encoding="utf-8")
    assert 'id="lost"' not in page
    assert "not scored" not in (tmp_path / "leaderboard.md").read_text(encoding="utf-8").lower()
