"""The plugin as a project of somebody else sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.gate.fixture import Robustness
from robustbench_med.stats import intervals
from robustbench_med.stats.paired_tests import mcnemar
from tests.bench.toys import save_npz, save_timm

ROOT = Path(__file__).parents[2]
Plugin = tuple[str, ...]

MODEL = "timm:test_resnet(weights='w.safetensors')"
SPEC = "pgd(eps=[0.2/255, 8/255], steps=3)"
HEAD = f"""
import pytest
MODEL = {MODEL!r}
SPEC = {SPEC!r}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, its images and, in records/mine, its record.

    The record is made before any pytester starts: pytester unloads the modules that were loaded
    while it lived, and libraries that are loaded twice (triton) end the process.
    """
    folder = tmp_path_factory.mktemp("files")
    save_npz(folder / "mine.npz", n=24)
    save_timm(folder / "w.safetensors")
    gate = Robustness(cache=tmp_path_factory.mktemp("cache"), update=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gate.holds("records/mine", MODEL, "mine.npz", SPEC)
        gate(MODEL, "mine.npz", "fgsm(eps=1/255)")
    return folder


@pytest.fixture
def project(
    files: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """Return a project of somebody else with that model and those images."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this checkout, wherever the environment points
    for name in ("mine.npz", "w.safetensors"):
        shutil.copy(files / name, pytester.path)
    return pytester


@pytest.fixture
def recorded_project(files: Path, project: pytest.Pytester) -> pytest.Pytester:
    """Return that project with the record."""
    shutil.copytree(files / "records", project.path / "records")
    return project


def run(project: pytest.Pytester, plugin: Plugin, body: str, *args: str) -> pytest.RunResult:
    """Run a test file with the plugin in this process."""
    project.makepyfile(test_mine=HEAD + body)
    return run_pytest(project, plugin, *args)


def run_pytest(project: pytest.Pytester, plugin: Plugin, *args: str | Path) -> pytest.RunResult:
    return project.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", *args)


HOLDS = """
def test_holds(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", SPEC)
"""


@pytest.mark.slow
def test_a_threshold_passes_or_fails_with_what_the_sample_says(
    project: pytest.Pytester, plugin: Plugin
) -> None:
    body = """
def test_low(robustness):
    found = robustness(MODEL, "mine.npz", SPEC)
    assert found.accuracy >= 0.0
    assert found.accuracy == found.at(8 / 255) <= found.clean
    assert found.interval.low <= found.accuracy <= found.interval.high
    assert len(found.records) == 1

def test_high(robustness):
    assert robustness(MODEL, "mine.npz", SPEC).accuracy >= 0.99

def test_masks(robustness):
    robustness(MODEL, "mine.npz", SPEC).dice
"""
    result = run(project, plugin, body)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "E *assert 0.* >= 0.99",
            "E *measured on 24 images, 95 % interval 0.* to *",
            "E *0.99 lies outside it, so the difference is not chance",
            "expected masks, got labels: read .accuracy",
        ]
    )


@pytest.mark.slow
def test_a_wrong_spec_fails_with_one_line(project: pytest.Pytester, plugin: Plugin) -> None:
    body = """
def test_typo(robustness):
    robustness(MODEL, "mine.npz", "pgg(eps=2/255)")

def test_no_record(robustness):
    robustness.holds("records/none")

def test_halves(robustness):
    robustness.holds("records/none", MODEL)

def test_direction(robustness):
    robustness.holds("records/none", MODEL, "mine.npz", SPEC, fails="up")
"""
    result = run(project, plugin, body)
    result.assert_outcomes(failed=4)
    text = result.stdout.str()
    assert "expected a known attack, got 'pgg': did you mean 'pgd'?" in text
    assert "expected a record in records/none, got none: name model, data and attacks, and" in text
    assert "Traceback" not in text
    assert "fixture.py" not in text


@pytest.mark.slow
def test_update_writes_the_record_that_then_holds(project: pytest.Pytester, plugin: Plugin) -> None:
    first = run(project, plugin, HOLDS)
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["*run pytest --robustness-update to write it*"])
    wrote = run(project, plugin, HOLDS, "--robustness-update")
    wrote.assert_outcomes(passed=1)
    wrote.stdout.fnmatch_lines(["*- robustness -*", "wrote records*mine*"])
    (path,) = (project.path / "records" / "mine").glob("*/record.json")
    before = path.read_bytes()
    run(project, plugin, HOLDS).assert_outcomes(passed=1)
    again = run(project, plugin, HOLDS, "--robustness-update")
    again.assert_outcomes(passed=1)
    assert "wrote" not in again.stdout.str()
    assert path.read_bytes() == before
    rerun = "\ndef test_again(robustness):\n    assert robustness.holds('records/mine').identical\n"
    run(project, plugin, rerun).assert_outcomes(passed=1)


@pytest.mark.slow
def test_nothing_is_written_that_would_not_hold(project: pytest.Pytester, plugin: Plugin) -> None:
    body = (
        HOLDS
        + """
def test_radius(robustness):
    robustness.holds("records/radius", MODEL, "mine.npz", SPEC, at=0.5)

def test_direction(robustness):
    robustness.holds("records/direction", MODEL, "mine.npz", SPEC, fails="up")

def test_few(robustness):
    robustness.holds("records/few", MODEL, "mine.npz", SPEC, n=2)

def test_wrote_and_failed(robustness):
    robustness.holds("records/other", MODEL, "mine.npz", "fgsm(eps=1/255)", fails="drop")
    assert False
"""
    )
    result = run(project, plugin, body, "--robustness-update")
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(["wrote records*mine*", "wrote records*other*"])
    written = {path.name for path in (project.path / "records").iterdir()}
    assert written == {"mine", "other"}
    (path,) = (project.path / "records" / "mine").glob("*/record.json")
    before = path.read_bytes()
    break_it(project.path / "w.safetensors")
    again = "\ndef test_again(robustness):\n    robustness.holds('records/mine')\n"
    for lines in (HOLDS, again):
        result = run(project, plugin, lines, "--robustness-update")
        result.assert_outcomes(failed=1)
        assert "NaN" in result.stdout.str()
        assert "wrote" not in result.stdout.str()
        assert path.read_bytes() == before


def break_it(path: Path) -> None:
    """Make the model of a file answer NaN."""
    tensors = load_file(path)
    tensors["fc.bias"] = torch.full_like(tensors["fc.bias"], torch.nan)
    save_file(tensors, path)


@pytest.mark.slow
def test_a_record_of_own_files_holds_in_another_checkout(
    project: pytest.Pytester, plugin: Plugin
) -> None:
    body = """
from pathlib import Path
HERE = Path(__file__).parent
MODEL = f"timm:test_resnet(weights='{HERE}/w.safetensors')"

def test_holds(robustness):
    robustness.holds(HERE / "records" / "mine", MODEL, HERE / "mine.npz", SPEC)
"""
    run(project, plugin, body, "--robustness-update").assert_outcomes(passed=1)
    there = project.path / "elsewhere"
    there.mkdir()
    for name in ("records", "mine.npz", "w.safetensors", "test_mine.py"):
        (project.path / name).rename(there / name)
    (path,) = there.glob("records/mine/*/record.json")
    before = path.read_bytes()
    for option in ((), ("--robustness-update",)):
        result = run_pytest(project, plugin, there, *option)
        result.assert_outcomes(passed=1)
    assert path.read_bytes() == before
    shutil.copy(there / "mine.npz", project.path / "mine.npz")
    save_npz(there / "mine.npz", n=22)
    result = run_pytest(project, plugin, there)
    result.assert_outcomes(failed=1)
    assert "mine.npz are not those of the record" in result.stdout.str()


@pytest.mark.slow
def test_a_record_written_anew_says_how_to_run_it(
    recorded_project: pytest.Pytester, plugin: Plugin
) -> None:
    project = recorded_project
    weaken(project.path / "w.safetensors")
    again = "\ndef test_again(robustness):\n    robustness.holds('records/mine')\n"
    result = run(project, plugin, again, "--robustness-update")
    result.assert_outcomes(passed=1)
    (path,) = (project.path / "records" / "mine").glob("*/record.json")
    command = store.read(path.parent).record.provenance.command
    assert command == f"python -m robustbench_med verify records/mine/{path.parent.name}"
    result_of_command = CliRunner().invoke(cli.app, command.split()[3:])
    assert result_of_command.exit_code == 0
    lines = result_of_command.output.splitlines()
    assert "match: all 24 samples as recorded, by running the case again" in lines


def weaken(path: Path) -> None:
    """Make the model of a file wrong on many images."""
    tensors = load_file(path)
    tensors["fc.weight"] = -tensors["fc.weight"] * (torch.arange(tensors["fc.weight"].shape[1]) % 3)
    save_file(tensors, path)


@pytest.mark.slow
def test_a_weaker_model_fails_with_what_was_lost_and_can_be_recorded(
    recorded_project: pytest.Pytester, plugin: Plugin
) -> None:
    project = recorded_project
    (old,) = (project.path / "records" / "mine").glob("*/record.json")
    strong = _stand_all(project.path / "records" / "mine")
    weaken(project.path / "w.safetensors")
    result = run(project, plugin, HOLDS)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"accuracy at eps .* dropped from 1\.000 to 0\.\d+ on 24 images of 12 patients: .*",
            r"\d+ images lost, 0 gained: p = .* \(signs flipped by patient, one-sided, corrected",
            r"a drop of [01]\.\d+ takes \d+ images to be seen with 80 % power",
            r"the smallest drop that 24 images show with 80 % power is 0\.\d+; one of 0\.\d+ takes",
            r"record: records/mine \(rewrite it with --robustness-update\)",
        ]
    )
    assert strong == 24
    run(project, plugin, HOLDS, "--robustness-update").assert_outcomes(passed=1)
    (new,) = (project.path / "records" / "mine").glob("*/record.json")
    assert new.parent != old.parent
    run(project, plugin, HOLDS).assert_outcomes(passed=1)


def _stand_all(folder: Path) -> int:
    """Rewrite a record so that every image is right at every radius; return how many there are."""
    (path,) = folder.glob("*/record.json")
    stored = store.read(path.parent)
    stored.samples["correct"] = True
    store.write(folder, stored.record, stored.samples, {}, replace=True)
    return stored.record.n


@pytest.mark.slow
def test_another_question_than_the_record_answers_is_refused(
    recorded_project: pytest.Pytester, plugin: Plugin
) -> None:
    body = """
def test_steps(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", "pgd(eps=[0.2/255, 8/255], steps=4)")

def test_images(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", SPEC, n=20)

def test_radius(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", SPEC, at=0.5)

def test_level(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", SPEC, level=5.0)

def test_direction(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", SPEC, fails="up")

def test_several(robustness):
    robustness.holds("records/mine", MODEL, "mine.npz", [SPEC, "fgsm(eps=1/255)"])

def test_halves(robustness):
    robustness.holds("records/mine", MODEL)

def test_one_radius(robustness):
    robustness.holds("records/mine", at=8 / 255, level=0.01, fails="either")
"""
    result = run(recorded_project, plugin, body)
    result.assert_outcomes(failed=7, passed=1)
    text = result.stdout.str()
    assert "pgd takes other parameters than the record's: expected {'steps': 3" in text
    assert "n is not that of the record: expected None, got 20: pytest --robustness-update" in text
    assert "expected eps in the ladder of the record (0, 0.000784314, 8/255), got 0.5" in text
    assert "expected level in (0,1), got 5.0" in text
    assert "expected fails in drop, rise, either, got 'up'" in text
    assert "expected one attack for a record, got 2" in text
    assert "expected model, data and attacks together, or none of them" in text


@pytest.mark.slow
def test_the_marker_sets_defaults_and_selects(project: pytest.Pytester, plugin: Plugin) -> None:
    body = """
@pytest.mark.robustness(n=8, seed=3)
class TestFew:
    @pytest.mark.robustness(n=6)
    def test_closest(self, robustness):
        case = robustness(MODEL, "mine.npz", "fgsm(eps=1/255)").records[0].record.case
        assert (case.n, case.seed) == (6, 3)

    def test_call_wins(self, robustness):
        case = robustness(MODEL, "mine.npz", "fgsm(eps=1/255)", n=7).records[0].record.case
        assert (case.n, case.seed) == (7, 3)

def test_other():
    pass
"""
    result = run(project, plugin, body, "-m", "robustness", "--strict-markers")
    result.assert_outcomes(passed=2, deselected=1)


@pytest.mark.slow
def test_a_case_is_measured_once_a_session(project: pytest.Pytester, plugin: Plugin) -> None:
    body = """
from robustbench_med.bench import steps

def test_twice(robustness, monkeypatch):
    first = robustness(MODEL, "mine.npz", SPEC).records[0]
    monkeypatch.setattr(steps, "execute", None)
    again = robustness(MODEL, "mine.npz", SPEC).records[0]
    assert again.record.model_dump_json() == first.record.model_dump_json()
"""
    run(project, plugin, body).assert_outcomes(passed=1)


@pytest.mark.slow
def test_workers_of_xdist_share_what_they_measure(
    recorded_project: pytest.Pytester, plugin: Plugin
) -> None:
    project = recorded_project
    body = (
        HEAD
        + """
@pytest.mark.parametrize("i", range(4))
def test_holds(robustness, i):
    assert robustness.holds("records/mine", MODEL, "mine.npz", SPEC).identical

@pytest.mark.parametrize("i", range(6))
def test_update_tells(robustness, i):
    robustness.holds("records/other", MODEL, "mine.npz", "fgsm(eps=1/255)")
"""
    )
    project.makepyfile(test_mine=body)
    result = project.runpytest_subprocess(*plugin, "-n", "2", "--robustness-update")
    result.assert_outcomes(passed=10)
    assert result.stdout.str().count("wrote records") == 1
    (other,) = (project.path / "records" / "other").iterdir()  # nothing half-written beside it
    cache = project.path / "runpytest-0" / "robustness"  # of the session, not of a worker
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 2
    assert not list(cache.parent.glob("popen-*/robustness"))


def test_the_plugin_brings_in_nothing_heavy() -> None:
    """Every pytest of an environment imports it."""
    code = (
        "import sys, robustbench_med.gate; "
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'pydantic', 'robustbench_med.bench'}; "
        "found = sorted(heavy & set(sys.modules)); "
        "ours = sorted(m for m in sys.modules if m.startswith('robustbench_med')); "
        "print(found, ours)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    modules = ["robustbench_med", "robustbench_med.gate", "robustbench_med.version"]
    assert done.stdout.strip() == f"[] {modules}"


@pytest.mark.skipif(not os.environ.get("CHECK_SHAPES"), reason="shapes are not checked in this run")
@pytest.mark.parametrize("function", [intervals.wilson, mcnemar])
def test_types_are_checked_in_this_suite_though_pytest_loads_the_plugin(function: Any) -> None:  # noqa: ANN401
    with pytest.raises(Exception, match="(?i)type-check"):
        function(0.5, 3)
