"""Attacks and defenses in files of the user's own, from the command to `verify`."""

from __future__ import annotations

from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor
from typer.testing import CliRunner, Result

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.errors import SpecError
from tests.bench.toys import save_npz, save_timm

MINE = '''
import torch
from robustbench_med.defense import Defended

def brighten(problem, *, rng, part: float = 1.0):
    """Return brighter images."""
    return problem.ball.step(problem.x, torch.ones_like(problem.x), problem.x, part)

def nothing(victim):
    """Return the victim as it is."""
    return Defended(victim)
'''


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.mark.slow
def test_functions_of_a_file_are_run_recorded_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("mine.py").write_text(MINE)
    data, victim = save_npz(tmp_path / "mine.npz"), save_timm(tmp_path / "w.safetensors")
    model = ("--dataset", data, "--victim", victim)
    words = (*model, "--attack", "mine.py:brighten(part=0.5)", "--eps", "2/255,8/255")
    places = ("--results", "r", "--examples", "0")
    defenses = ("--defense", "none", "--defense", "mine.py:nothing")
    # two processes: each executes the file itself
    try:
        result = call("run", "quick", *words, *places, *defenses, "--jobs", "2")
    finally:  # other tests start workers that know other folders
        get_reusable_executor().shutdown(wait=True)
    assert result.exit_code == 0, result.output
    records, broken = store.read_all(Path("r/custom"))
    assert (len(records), broken) == (2, [])
    bare, defended = sorted(records, key=lambda stored: stored.record.case.defense == "none")[::-1]
    for stored in records:
        record = stored.record
        assert record.case.attack == "mine.py:brighten"
        assert record.case.attack_sha256 == record.attack_card.sha256 != ""
        assert any("the attack brighten is code from outside" in note for note in record.notes)
        assert record.audit is not None
        assert record.audit.max_size == pytest.approx((1 / 255, 4 / 255), abs=1e-6)
    assert (bare.record.case.defense_sha256, bare.record.defense_card) == ("", None)
    assert defended.record.case.defense_sha256 == defended.record.case.attack_sha256
    assert any("the defense nothing is code from outside" in n for n in defended.record.notes)
    assert defended.record.rungs[1].metrics["accuracy"] == bare.record.rungs[1].metrics["accuracy"]

    # a record may come from anybody: its file runs only where a person says so
    result = call("verify", Path(defended.folder))
    assert isinstance(result.exception, SpecError)
    assert "pass --run-code if you trust it" in str(result.exception)
    assert call("verify", Path(defended.folder), "--run-code").exit_code == 0
    # other code is another case, and the record says so
    Path("mine.py").write_text(MINE + "\n# changed\n")
    result = call("verify", Path(defended.folder), "--run-code")
    assert result.exit_code == 1
    assert "the code of mine.py:brighten is not that of the record" in result.output
    result = call("plan", "quick", *words, "--results", "r")
    assert result.exit_code == 0
    assert "All cases are finished" not in result.output


def test_show_explains_a_function_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("mine.py").write_text(MINE)
    result = call("show", "mine.py:brighten")
    assert result.exit_code == 0, result.output
    for part in ("brighten", "Return brighter images.", "part", "mine.py, your own file"):
        assert part in result.output
    assert call("show", "mine.py:nothing").exit_code == 0
