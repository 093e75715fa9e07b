"""The command line: one line for every mistake, and the whole path for one's own data and model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leaderboard
from robustbench_med import cli, registry
from robustbench_med.bench import plan as planning
from robustbench_med.bench import setup as preparing
from robustbench_med.bench import steps, store
from robustbench_med.bench.execute import execute
from robustbench_med.bench.record import Stored
from robustbench_med.bench.suite import find_suite
from robustbench_med.paths import PACKED_RECORDS
from robustbench_med.studies.study import studies
from tests.bench.toys import save_npz, save_timm, small_phantoms

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in an empty folder with few images, away from a person's own folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUSTBENCH_MED_DATA", raising=False)
    with small_phantoms():
        yield


class CommandResult:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Call:
    """Runs a command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: str | Path) -> CommandResult:
        self._monkeypatch.setattr(sys, "argv", ["robustbench_med", *map(str, words)])
        self._capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = self._capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(monkeypatch, capsys)


def refused(result: CommandResult, *fragments: str) -> None:
    """Check that a mistake cost one line on stderr, exit code 2, and nothing else."""
    assert result.code == 2, result.out + result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("robustbench_med: ")
    assert "Traceback" not in result.out + result.err
    for part in fragments:
        assert part in lines[0]


QUICK = ("run", "quick", "--attack", "fgsm", "--eps", "2/255", "--results", "r")


# --- every mistake of a person -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("run", "quik"), ("expected a known suite, got 'quik'", "'quick'", "medmnist")),
        (("plan", "quik"), ("did you mean 'quick'",)),
        (("plan", "study"), ("did you mean 'studies'", "segmentation, studies")),
        (("run", "studies", "--study", "bogus"), ("expected a known study", "finlayson_2018")),
        (("plan", "studies", "--study", "finlayson"), ("did you mean 'finlayson_2018'",)),
        (
            (*QUICK, "--study", "finlayson_2018"),
            ("--study: expected the suite studies, got quick",),
        ),
        (("run", "gone.toml"), ("expected a suite at gone.toml",)),
        ((*QUICK, "--dataset", "phantom_chst"), ("got 'phantom_chst'", "'phantom_chest'")),
        ((*QUICK, "--victim", "chest_resnt"), ("got 'chest_resnt'", "'chest_resnet'")),
        ((*QUICK, "--attack", "pgdd"), ("expected a known attack, got 'pgdd'", "'pgd'", "fgsm")),
        ((*QUICK, "--attack", "pgd(stepz=1)"), ("got 'stepz'", "steps")),
        ((*QUICK, "--eps", "-1/255"), ("expected eps >= 0, got -0.00392157",)),
        ((*QUICK, "--eps", "8"), ("expected eps <= 1", "8 grey levels are 8/255")),
        ((*QUICK, "--knowledge", "adaptve"), ("expected knowledge adaptive", "'adaptve'")),
        ((*QUICK, "--eps", "abc"), ("'abc'",)),
        ((*QUICK, "--eps", "1e999", "--victim", "chest_resnet"), ("expected",)),
        ((*QUICK, "--eps", "2/255,1/255"), ("rising eps",)),
        ((*QUICK, "--norm", "l7"), ("norm",)),
        ((*QUICK, "--objective", "nonsense"), ("expected an objective",)),
        ((*QUICK, "--dataset", "gone.npz"), ("gone.npz: expected a .npz file",)),
        ((*QUICK, "--victim", "timm:resnet18"), ("weights='FILE.safetensors'",)),
        ((*QUICK, "--victim", "timm:resnt18(weights='w')"), ("timm model", "resnet18")),
        ((*QUICK, "--device", "tpu9"), ("expected a device of this machine",)),
        ((*QUICK, "--case", "0" * 16), ("expected ids of single cases of this plan", "`plan`")),
        (("run", "medmnist", "--data", "gone"), ("--data to be a folder", "nothing there")),
        (("show", "chest_resnt"), ("did you mean 'chest_resnet'",)),
        (("train", "chest_resnt"), ("did you mean 'chest_resnet'",)),
        (
            ("leaderboard", "gone"),
            ("expected a folder of records, got gone: there is no such folder",),
        ),
    ],
)
def test_a_mistake_costs_one_line(
    call: Call, words: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    refused(call(*words), *fragments)
    written = (
        [path for path in Path("r").rglob("*") if path.is_file()] if Path("r").exists() else []
    )
    assert written == []


def test_a_suite_file_without_its_ending_is_not_called_unknown(call: Call) -> None:
    Path("suite.txt").write_text("title = 'Mine'")
    message = "expected a suite file whose name ends in .toml, got 'suite.txt': rename the file"
    refused(call("plan", "suite.txt"), message)
    Path("quick").write_text("")  # a shipped suite goes before a file of its name
    assert find_suite("quick").grids


def test_usage_errors_exit_with_2(call: Call) -> None:
    for words in (("run", "-n", "0"), ("run", "--nonsense"), ("list", "nonsense"), ("nonsense",)):
        result = call(*words)
        assert result.code == 2
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("changed", "fragments"),
    [
        ({"test_images": None}, ("expected the key 'test_images'", "MedMNIST keys")),
        ({"test_labels": None}, ("expected the key 'test_labels'",)),
        ({"test_labels": np.full((12, 1), -2)}, ("expected labels in 0..", "got -2")),
        (
            {"info": json.dumps({"classes": ["a", "b"]}), "test_labels": np.full((12, 1), 2)},
            ("expected labels in 0..1", "got 2..2"),
        ),
        ({"test_images": np.full((12, 32, 32), np.nan, np.float32)}, ("expected finite images",)),
        ({"test_images": np.full((12, 32, 32), 1.5, np.float32)}, ("float images in [0,1]",)),
    ],
)
def test_a_file_that_breaks_the_contract(
    call: Call, tmp_path: Path, changed: dict[str, Any], fragments: tuple[str, ...]
) -> None:
    data = save_npz(tmp_path / "own.npz", **changed)
    victim = save_timm(tmp_path / "w.safetensors")
    refused(call(*QUICK, "--dataset", data, "--victim", victim), "own", *fragments)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_a_truncated_file(call: Call, tmp_path: Path, fraction: float) -> None:
    data = save_npz(tmp_path / "own.npz")
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * fraction)])
    refused(call(*QUICK, "--dataset", data, "--victim", "timm:resnet18(weights='w')"), "own.npz")


def test_a_file_that_is_not_the_one_its_card_states(call: Call, tmp_path: Path) -> None:
    save_npz(tmp_path / "pneumoniamnist.npz", side=28)
    result = call(*QUICK, "--dataset", "pneumoniamnist", "--data", tmp_path)
    refused(result, "pneumoniamnist: expected MD5", "SHA-256", "download it again")


def test_weights_that_are_not_those_of_their_card(call: Call) -> None:
    card = registry.find("models", "chest_resnet").model_copy(update={"sha256": "0" * 64})
    with registry.register("models", card, replace=True):
        refused(call(*QUICK, "--victim", "chest_resnet"), "expected sha256 000000000000..., got")


def test_damaged_weights_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04 a pickle of some kind")
    victim = f"timm:test_resnet(weights='{tmp_path / 'w.safetensors'}')"
    result = call(*QUICK, "--dataset", "phantom_chest", "--victim", victim)
    refused(result, "expected a safetensors file")


def test_a_shipped_victim_with_another_number_of_classes(call: Call, tmp_path: Path) -> None:
    data = save_npz(tmp_path / "own.npz", k=3, side=64)
    result = call(*QUICK, "--dataset", data, "--victim", "chest_resnet")
    refused(result, "K = 2", "K = 3", "choose a victim")


def test_a_timm_victim_with_another_number_of_classes(call: Call, tmp_path: Path) -> None:
    data = save_npz(tmp_path / "own.npz", k=3)
    victim = save_timm(tmp_path / "w.safetensors", k=2)
    refused(call(*QUICK, "--dataset", data, "--victim", victim), "number of classes")


def test_a_results_folder_that_cannot_be_written_is_told_before_any_work(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(planning, "plan", None)  # whoever works now fails loudly
    result = call("run", "quick", "--results", "file")
    refused(result, "expected a writable results folder, got file/quick", "--results DIR")
    refused(call("train", "chest_resnet", "--out", "file/zoo"), "expected a writable")


def test_a_target_that_no_class_has(call: Call, tmp_path: Path) -> None:
    data, victim = save_npz(tmp_path / "own.npz"), save_timm(tmp_path / "w.safetensors")
    result = call(
        *QUICK, "--dataset", data, "--victim", victim, "--objective", "targeted(target=7)"
    )
    refused(result, "expected target in 0..1, got 7")


@pytest.mark.parametrize("value", ["'a'", pytest.param("0.5", marks=pytest.mark.slow)])
def test_a_target_that_is_no_class_id(value: str, tmp_path: Path) -> None:
    """In a process of its own: here the type checker of the tests would find it first."""
    data, victim = save_npz(tmp_path / "own.npz"), save_timm(tmp_path / "w.safetensors")
    words = [*QUICK, "--dataset", str(data), "--victim", victim]
    done = _spawn(*words, "--objective", f"targeted(target={value})", cwd=tmp_path)
    result = CommandResult(done.returncode, done.stdout, done.stderr)
    refused(result, "expected target in 0..1", value)


# --- looking around ------------------------------------------------------------------------------


LISTED = ("models", "datasets", "attacks", "defenses")


@pytest.mark.parametrize("kind", [*LISTED, "suites", "studies"])
def test_list(call: Call, kind: str) -> None:
    result = call("list", kind, "--json")
    assert result.code == 0
    cards = json.loads(result.out)
    names = [card["name"] for card in cards]
    if kind == "suites":
        assert {"quick", "medmnist", "studies"} <= set(names)
    elif kind == "studies":
        assert {"finlayson_2018", "hirano_2021"} <= set(names)
    else:
        assert names == registry.names(kind)  # type: ignore[arg-type]
    result = call("list", kind)
    assert result.code == 0
    assert all(name in result.out for name in names)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("chest_resnet", ("model chest_resnet", "resnet", "phantom_chest", "balanced_accuracy")),
        ("phantom_chest", ("dataset phantom_chest", "classes", "synthetic")),
        ("pgd", ("attack pgd", "Madry", "steps", "40", "gradient steps per restart, >= 1")),
        ("mahalanobis", ("defense mahalanobis", "fpr", "0.05", "clean validation images")),
        ("quick", ("suite quick", "phantom_fundus", "ladder")),
        ("studies", ("suite studies", "finlayson_2018: Small targeted", "run studies --data")),
        (
            "finlayson_2018",
            ("study finlayson_2018", "claim: Small targeted", "all three tasks: 0 % (read;"),
        ),
    ],
)
def test_show(call: Call, name: str, fragments: tuple[str, ...]) -> None:
    result = call("show", name)
    assert result.code == 0
    for part in fragments:
        assert part in result.out


def test_show_prints_a_note_per_line(call: Call) -> None:
    lines = call("show", "phantom_chest").out.splitlines()
    start = lines.index("  notes:") + 1
    notes = registry.load("datasets")["phantom_chest"].notes
    assert len(notes) > 1
    assert lines[start : start + len(notes)] == [f"    - {note}" for note in notes]


def test_show_as_json_explains_every_parameter(call: Call) -> None:
    card = json.loads(call("show", "square", "--json").out)
    assert card["from"] == f"robustbench_med {version('robustbench-med')}"
    assert card["parameters"][1] == {
        "name": "p_init",
        "type": "float",
        "default": 0.8,
        "meaning": "fraction of the pixels in the first windows, > 0; halved on the paper's "
        "schedule.",
    }
    assert json.loads(call("show", "quick", "--json").out)["name"] == "quick"


def test_show_can_show_every_card(call: Call) -> None:
    for kind in LISTED:
        for name in registry.names(kind):  # type: ignore[arg-type]
            assert call("show", name).code == 0, name
    for name in (*studies(), "studies"):
        assert call("show", name).code == 0, name


def test_doctor(call: Call, tmp_path: Path) -> None:
    result = call("doctor")
    assert result.code == 0
    for part in ("torch", version("torch"), "timm", "python", "device", "cores", "(writable)"):
        assert part in result.out
    assert str(tmp_path / "cache") in result.out.replace("\n", "")


def test_doctor_tells_what_cannot_be_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "file"))
    result = call("doctor")
    assert result.code == 1
    assert "expected a writable" in result.out
    assert result.err == ""


def test_plan_prints_cases_and_an_estimate_and_computes_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "prepare_setup", None)
    result = call("plan", "quick", "--victim", "chest_resnet", "--attack", "pgd", "-n", "5")
    assert result.code == 0
    assert "Quick: 1 case" in result.out
    assert "chest_resnet" in result.out
    assert re.search(
        r"The cases take about .+ in one process: .+ for the attacks, or .+ for the checks\.",
        result.out.replace("\n", " "),
    )
    assert not (tmp_path / "results").exists()
    assert re.search(r"\b[0-9a-f]{16}\b", result.out)  # whole, however narrow the terminal


def _spawn(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "robustbench_med", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["list", "models"],
    ["show", "pgd"],
    ["list", "suites"],
    ["list", "studies"],
]


def test_looking_around_imports_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from robustbench_med.cli import main\n"
        "heavy = {'torch', 'timm', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'torchvision'}\n"
        f"for words in {LIGHT!r}:\n"
        "    sys.argv = ['robustbench_med', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert not stop.code, (words, stop.code)\n"
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))\n"
        "    print('end of', words)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.split(r"^end of .*$", done.stdout, flags=re.MULTILINE)
    assert len(printed) == len(LIGHT) + 1
    assert all(text.strip() for text in printed[:-1])


# --- running -------------------------------------------------------------------------------------


def own_data(tmp_path: Path, **changed: Any) -> tuple[str, ...]:  # noqa: ANN401
    data = save_npz(tmp_path / "own.npz", **changed)
    victim = save_timm(tmp_path / "w.safetensors")
    words = ("run", "quick", "--dataset", str(data), "--victim", victim)
    return (*words, "--eps", "1/255,8/255", "--attack", "fgsm", "--attack", "pgd(steps=3)")


def records(tmp_path: Path) -> dict[str, Stored]:
    (folder,) = (tmp_path / "results" / "local").glob("*")
    stored_records, broken = store.read_all(folder)
    assert broken == []
    return {stored.record.case.attack: stored for stored in stored_records}


def test_own_data_and_a_timm_model_end_to_end(call: Call, tmp_path: Path) -> None:
    result = call(*own_data(tmp_path))
    assert result.code == 0, result.out + result.err
    assert result.err == ""
    stored_records = records(tmp_path)
    assert set(stored_records) == {"fgsm", "pgd"}
    for stored in stored_records.values():
        record = stored.record
        assert (record.status, record.n, record.patients) == ("ok", 12, 6)
        assert [rung.eps for rung in record.rungs] == [0.0, 1 / 255, 8 / 255]
        assert record.audit is not None
        assert record.audit.over_budget == 0
        assert any("user's own" in note for note in record.notes)
        assert len(stored.samples) == 36
        for example in record.examples:
            assert (Path(stored.folder) / example.adversarial).is_file()
    page = Path(stored_records["pgd"].folder).parent / "leaderboard.html"
    assert f"leaderboard: {page.relative_to(tmp_path)}" in result.out
    assert page.is_file()
    # the records are told of by a later command too, and the page is written beside them
    page.unlink()
    assert call("leaderboard", page.parent.parent).code == 0
    assert page.is_file()


def test_finished_cases_are_skipped_and_force_redoes_them(call: Call, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    assert call(*words).code == 0
    stamps = {name: _stamp(stored) for name, stored in records(tmp_path).items()}
    result = call(*words)
    assert result.code == 0
    assert "2 of 2 cases are finished" in result.out
    assert {name: _stamp(stored) for name, stored in records(tmp_path).items()} == stamps
    result = call("plan", *words[1:])
    assert "All cases are finished." in result.out
    assert len(re.findall(r"\bfinished\b", result.out)) == 2 + 1  # a line each, and the last one
    assert call(*words, "--force").code == 0
    after = {name: _stamp(stored) for name, stored in records(tmp_path).items()}
    assert all(after[name] != stamp for name, stamp in stamps.items())


def test_plan_knows_the_finished_cases_of_packed_records(call: Call, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    assert call(*words, "--examples", "0").code == 0
    (folder,) = {Path(stored.folder).parent for stored in records(tmp_path).values()}
    assert call("pack", folder).code == 0
    assert not list(folder.glob("*/"))
    assert "2 of 2 cases are finished" in call(*words).out
    assert "All cases are finished." in call("plan", *words[1:]).out


def _stamp(stored: Stored) -> int:
    return (Path(stored.folder) / "record.json").stat().st_mtime_ns


def test_the_command_of_a_record_computes_that_case_again_and_alone(
    call: Call, tmp_path: Path
) -> None:
    words = own_data(tmp_path)
    assert call(*words, "--seed", "3", "-n", "10", "--norm", "l2").code == 0
    before = records(tmp_path)
    stamps = {name: _stamp(stored) for name, stored in before.items()}
    command_words = shlex.split(before["pgd"].record.provenance.command)
    assert command_words[:4] == ["python", "-m", "robustbench_med", "run"]
    assert call(*command_words[3:]).code == 0
    after = records(tmp_path)
    assert after["pgd"].record.case == before["pgd"].record.case
    assert str(after["pgd"].record.rungs) == str(before["pgd"].record.rungs)  # NaN included
    assert _stamp(after["pgd"]) != stamps["pgd"]
    assert _stamp(after["fgsm"]) == stamps["fgsm"]


def test_a_victim_that_answers_nan_makes_its_cases_invalid(call: Call, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    save_timm(tmp_path / "w.safetensors", change=float("nan"))
    result = call(*words)
    assert result.code == 0, result.out + result.err
    for stored in records(tmp_path).values():
        assert stored.record.status == "invalid"
        assert "NaN or Inf on 12 of 12 images" in stored.record.reason
        assert stored.record.rungs == ()
        assert stored.record.examples == ()
    assert "invalid" in result.out


RAISES = '''
from torch import Tensor, nn

class Raises(nn.Module):
    """Answer clean images and raise on the first gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise KeyError("a bug of the model")
        return self.linear(x.flatten(1))
'''


def test_a_victim_that_raises_costs_its_own_cases_only(call: Call, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    words = own_data(tmp_path)
    good = words[words.index("--victim") + 1]
    result = call(*words, "--victim", "raises.py:Raises")
    assert result.code == 1
    assert "Traceback" not in result.out + result.err
    assert result.out.count("not scored: ") == 2
    assert "KeyError: 'a bug of the model' (raises.py:" in result.out
    records_before = records(tmp_path)
    assert {stored.record.case.victim for stored in records_before.values()} == {good}
    page = (Path(records_before["pgd"].folder).parent / "leaderboard.html").read_text()
    assert "2 cases not scored." in page
    assert "KeyError: &#39;a bug of the model&#39;" in page


def test_a_case_that_fails_alone_of_its_row_leaves_it_incomplete(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = execute

    def but_pgd(planned: Any, *positional: Any, **options: Any) -> Any:  # noqa: ANN401
        if planned.case.attack == "pgd":
            raise RuntimeError("out of <memory>")
        return real(planned, *positional, **options)

    words = own_data(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "execute", but_pgd)
        result = call(*words)
    assert result.code == 1
    (stored,) = records(tmp_path).values()
    assert "incomplete" in result.out
    page = (Path(stored.folder).parent / "leaderboard.html").read_text()
    assert "1 case not scored." in page
    assert "RuntimeError: out of &lt;memory&gt;" in page
    assert "failed or not readable: PGD" in page
    # and once it has run, nothing is missing: nor where it fails again and its record stands
    assert call(*words).code == 0
    monkeypatch.setattr(steps, "execute", but_pgd)
    assert call(*words, "--force").code == 1
    page = (Path(stored.folder).parent / "leaderboard.html").read_text()
    assert "not scored" not in page
    assert "incomplete" not in page.partition("<tbody data-place")[2].partition("</tbody>")[0]


def test_a_missing_file_costs_its_own_dataset_only(call: Call, tmp_path: Path) -> None:
    result = call(*own_data(tmp_path), "--dataset", "gone.npz")
    assert result.code == 1
    assert "not scored: gone.npz: gone.npz: expected a .npz file" in result.out
    assert len(records(tmp_path)) == 2


def test_an_unlabelled_image_costs_nothing(call: Call, tmp_path: Path) -> None:
    labels = (np.arange(12) % 2)[:, None]
    labels[3] = -1
    result = call(*own_data(tmp_path, test_labels=labels))
    assert result.code == 0, result.out
    assert len(records(tmp_path)) == 2


def test_an_unreadable_record_is_left_out_with_a_line(call: Call, tmp_path: Path) -> None:
    assert call(*own_data(tmp_path)).code == 0
    home = Path(records(tmp_path)["pgd"].folder)
    (home / "samples.parquet").write_bytes(b"nothing")
    result = call("leaderboard", home.parent)
    assert result.code == 1  # the page is there, and incomplete
    assert "expected a readable record in" in result.out
    page = (home.parent / "leaderboard.html").read_text()
    assert "1 case not scored." in page
    assert f"expected a readable record in {home.name}" in page  # no folder of this machine
    assert "failed or not readable: PGD" in page


def test_where_no_record_can_be_read_no_page_is_left(call: Call, tmp_path: Path) -> None:
    assert call(*own_data(tmp_path)).code == 0
    folder = Path(records(tmp_path)["pgd"].folder).parent
    assert {path.name for path in folder.glob("leaderboard.*")} == set(leaderboard.FILES)
    for path in folder.glob("*/record.json"):
        path.write_text("{")
    result = call("leaderboard", folder)
    assert result.code == 1
    assert f"There is no leaderboard page: no record in {folder} can be read." in result.out
    assert result.out.count("not scored: ") == 2
    assert list(folder.glob("leaderboard.*")) == []  # neither old numbers nor an empty page


def test_a_pack_of_records_that_is_damaged_throughout_leaves_no_page(
    call: Call, tmp_path: Path
) -> None:
    assert call(*own_data(tmp_path)).code == 0
    folder = Path(records(tmp_path)["pgd"].folder).parent
    assert call("pack", folder).code == 0
    (folder / PACKED_RECORDS).write_bytes(b"nothing")
    result = call("leaderboard", folder)
    assert result.code == 1
    assert f"There is no leaderboard page: no record in {folder} can be read." in result.out
    assert f"not scored: record: expected packed records in {folder}" in result.out
    assert list(folder.glob("leaderboard.*")) == []


def test_stopping_by_hand_keeps_what_is_finished(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, executed = execute, []

    def once(*words: Any, **options: Any) -> Any:  # noqa: ANN401
        executed.append(1)
        if len(executed) == 2:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(steps, "execute", once)
    result = call(*own_data(tmp_path))
    assert result.code == 130
    assert result.err == (
        "robustbench_med: stopped; finished cases are kept; run the command again to go on\n"
    )
    assert len(records(tmp_path)) == 1


def test_train_writes_weights_and_card(call: Call) -> None:
    from robustbench_med.cards import Recipe

    shipped = registry.find("models", "chest_resnet")
    short = shipped.model_copy(update={"recipe": Recipe(epochs=1, batch=6)})
    with registry.register("models", short, replace=True):
        result = call("train", "chest_resnet", "--out", "zoo")
    assert result.code == 0, result.err
    assert "balanced accuracy" in result.out
    assert "not the shipped weights" in result.out
    assert {path.name for path in Path("zoo").iterdir()} == {
        "chest_resnet.safetensors",
        "chest_resnet.json",
    }
