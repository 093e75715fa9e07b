"""Commands that write what a person takes along: a model's own name, the files for a paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.errors import SpecError
from tests.bench.toys import save_npz, save_timm


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_a_name_stands_on_the_board_and_changes_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    data, victim = save_npz(tmp_path / "mine.npz"), save_timm(tmp_path / "w.safetensors")
    words = ("--dataset", data, "--victim", victim, "--attack", "fgsm", "--eps", "1/255,2/255")
    run = ("run", "quick", *words, "--results", "r", "--examples", "0")
    assert call(*run).exit_code == 0
    (before,) = store.read_all(Path("r/custom"))[0]
    # a finished case keeps its name unless it runs again
    again = call(*run, "--name", "Our  ResNet")
    assert f"finished under another name, {before.record.model_card.title}: 1" in again.output
    result = call(*run, "--name", "Our  ResNet", "--force")
    assert result.exit_code == 0, result.output
    assert "Our ResNet" in result.output
    assert "w.safetensors" not in result.output
    (after,) = store.read_all(Path("r/custom"))[0]
    assert after.record.case == before.record.case
    assert (after.record.model_card.title, after.record.model_card.named) == ("Our ResNet", True)
    assert "--name 'Our  ResNet'" in after.record.provenance.command
    # a record without the option is as it was before there was one
    assert "named" not in before.record.model_dump_json()
    assert call("verify", Path(after.folder)).exit_code == 0

    # what a paper takes from these records
    result = call("report", "r/custom", "--latex", "--out", "paper")
    assert result.exit_code == 0, result.output
    assert "for a paper: paper/tables.tex, with 1 figure\n" in result.output
    assert "Our ResNet &" in Path("paper/tables.tex").read_text(encoding="utf-8")
    assert {path.suffix for path in Path("paper/figures").iterdir()} == {".svg", ".pdf"}
    assert len(Path("paper/wide.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2


@pytest.mark.parametrize(
    "words",
    [
        ("--victim", "chest_resnet", "--name", "X"),
        ("--name", "X"),
        ("--victim", "a.py:f", "--victim", "b.py:f", "--name", "X"),
        ("--victim", "a.py:f", "--name", "  "),
    ],
)
def test_a_name_needs_one_model_of_ones_own(words: tuple[str, ...]) -> None:
    result = call("plan", "quick", "--dataset", "phantom_chest", *words)
    assert isinstance(result.exception, SpecError)
    assert "expected --name NAME with one --victim" in str(result.exception)
