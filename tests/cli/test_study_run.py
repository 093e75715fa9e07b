"""What a run of studies says in a log before it attacks."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from shutil import copytree

import pytest
from rich.console import Console

from robustbench_med.cli import study_run
from robustbench_med.studies import measure
from robustbench_med.studies.study import studies

COMMITTED = Path(__file__).parents[2] / "results" / "studies" / "as_published"
NOTHING = study_run.Lacking(frozenset(), frozenset())


def _log(folder: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """Return what is printed while the protocols of a study run, which here compute nothing."""
    monkeypatch.setattr(measure, "measure", lambda *_, **__: None)
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, width=40)
    chosen = [studies()["pal_2021"]]
    assert not study_run.measure_studies(chosen, folder, None, console, NOTHING)
    return text.getvalue()


def test_a_log_names_each_protocol_that_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _log(tmp_path, monkeypatch, terminal=False).split("\n")
    named = [line for line in lines if line.startswith("as published: ")]
    wanted = studies()["pal_2021"].measurements()
    assert named == [f"as published: Pal et al. 2021 · {name}" for name in wanted]
    assert "as published: " not in _log(tmp_path, monkeypatch, terminal=True)


def test_a_log_does_not_name_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(COMMITTED, tmp_path / "as_published")
    assert "as published: " not in _log(tmp_path, monkeypatch, terminal=False)
