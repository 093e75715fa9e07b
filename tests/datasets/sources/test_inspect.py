"""What `inspect` prints and writes where something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med.cli import app
from robustbench_med.errors import SpecError
from tests.datasets.sources.conftest import Inspect, edit, loaded, picture, save


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", "expected title, got 'titel': did you mean 'title'?"),
        ("normal =", "norml =", "expected no 'norml': did you mean 'normal'?"),
        ("normal =", "weather =", "expected no 'weather': there is no such setting"),
        ("format =", "fromat =", r"\[source\]: expected format, got 'fromat': did you mean"),
        ("title =", "# =", "expected title, got none"),
    ],
)
def test_a_mistyped_key_is_named(
    inspect: Inspect, films: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    inspect(films)
    edit(tmp_path / "mine.toml", f"\n{old}", f"\n{new}")
    with pytest.raises(SpecError, match=f"mine.toml: {message}"):
        loaded(tmp_path)


def test_nothing_is_printed_of_data_that_are_refused(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (films / "images" / "film03.png").write_bytes(b"no picture")
    done = CliRunner().invoke(app, ["inspect", "films"])
    assert done.exit_code != 0
    assert done.stdout == ""
    save(films / "images" / "film03.png", picture(1, 3))
    assert CliRunner().invoke(app, ["inspect", "films"]).exit_code == 0
    caplog.clear()
    words = [
        "run",
        "quick",
        "--dataset",
        "mine.toml",
        "--attack",
        "fgsm",
        "--eps",
        "2/255",
        "--model",
        "gone.py:net",
    ]
    assert CliRunner().invoke(app, words).exit_code != 0
    assert "splits were drawn" not in caplog.text


def test_a_card_without_labels_is_written_and_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        save(tmp_path / "alone" / f"{i}.png", picture(0, i))
    done = CliRunner().invoke(app, ["inspect", "alone"])
    assert done.exit_code == 2
    assert "labels or masks: put the images of each class into a folder" in done.output
    assert "complete it, and look at it again" in done.output
    assert (tmp_path / "mine.toml").exists()
