"""`verify` on the command line: one claim, one word, and its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.bench.pack import pack, unpack
from robustbench_med.bench.record import Stored
from robustbench_med.bench.verify import verify as verifying
from robustbench_med.bench.verify.verify import Finding
from robustbench_med.cli.verify_command import record_folder
from robustbench_med.errors import ResultsError
from tests.bench.toys import save_npz, save_timm

COMMITTED = Path(__file__).parents[2] / "results" / "quick"  # above it `make run` puts its own
CASE = "777b754755782482"


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(words))
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        return 2, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("finding", "code", "result"),
    [
        (Finding("match", 0, 64), 0, "match: all 64 samples as recorded"),
        (Finding("within rounding", 2, 64), 0, "within rounding: 2 of 64 samples differ"),
        (Finding("mismatch", 9, 64, ("accuracy fell",)), 1, "accuracy fell"),
        (Finding("mismatch", lines=("other weights",)), 1, "mismatch, by running"),
    ],
)
def test_the_word_and_the_exit_code(
    finding: Finding, code: int, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "verify", lambda stored, **options: finding)
    homes, output = run("verify", CASE, "--results", str(COMMITTED))
    assert homes == code
    assert result in output
    assert "phantom_chest · chest_resnet · deepfool" in output


def test_a_record_is_named_by_folder_file_or_id() -> None:
    home = COMMITTED / CASE
    for named in (str(home), str(home / "record.json"), CASE):
        assert record_folder(named, COMMITTED) == home.resolve()


def test_records_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="expected a record's folder, its record.json, or a cas"):
        record_folder("0123", COMMITTED)
    for suite in ("a", "b"):
        unpack(COMMITTED, tmp_path / suite, only=[CASE])
    with pytest.raises(ResultsError, match="expected one record .*, got several: name one of"):
        record_folder(CASE, tmp_path)
    (tmp_path / "empty").mkdir()
    code, line = run("verify", str(tmp_path / "empty"))
    assert code == 2
    assert "expected a record in" in line


def test_the_committed_record_is_taken_before_that_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    for suite in ("quick", "local/quick"):
        unpack(COMMITTED, results / suite, only=[CASE])
    assert record_folder(CASE, results) == (results / "quick" / CASE).resolve()
    assert record_folder(CASE, results / "local") == (results / "local" / "quick" / CASE).resolve()
    monkeypatch.setattr(verifying, "verify", lambda stored, **options: Finding("match", 0, 64))
    code, output = run("verify", CASE, "--results", str(results))
    assert code == 0
    assert f"record: {results}/quick/{CASE}" in output.replace("\n", "")
    shutil.rmtree(results / "quick")
    code, output = run("verify", CASE, "--results", str(results))
    assert f"record: {results}/local/quick/{CASE}" in output.replace("\n", "")


def test_code_is_run_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    call_arguments: list[bool] = []

    def look(stored: object, *, code: bool, **options: object) -> Finding:
        call_arguments.append(code)
        return Finding("match", 0, 64)

    monkeypatch.setattr(verifying, "verify", look)
    for words in ((), ("--run-code",)):
        assert run("verify", CASE, "--results", str(COMMITTED), *words)[0] == 0
    assert call_arguments == [False, True]
    assert "--run-code" in run("verify", "--help")[1]


def test_a_run_that_saves_images_is_verified_from_them(tmp_path: Path) -> None:
    npz, spec = save_npz(tmp_path / "mine.npz"), save_timm(tmp_path / "w.safetensors")
    grid = ["--dataset", str(npz), "--victim", spec, "--attack", "fgsm", "--eps", "2/255"]
    options = ["--results", str(tmp_path / "results"), "--examples", "0", "--save-images"]
    code, output = run("run", "quick", *grid, *options)
    assert code == 0, output
    (path,) = (tmp_path / "results").rglob("record.json")
    assert "--save-images" in json.loads(path.read_text())["provenance"]["command"]
    assert (path.parent / "images.safetensors").exists()
    code, output = run("verify", str(path), "--images")
    assert code == 0
    assert "match: all 12 samples as recorded, from the saved images" in output
    assert "not checked: that the other images are robust" in output
    suite = tmp_path / "own.toml"
    suite.write_text(
        f'title = "Own"\nsave_images = true\n[[grids]]\ndatasets = ["{npz}"]\n'
        f'victims = ["{spec}"]\nattacks = ["fgsm"]\nladder = ["1/255"]\n'
    )
    code, output = run("run", str(suite), "--results", str(tmp_path / "own"), "--examples", "0")
    assert code == 0, output
    assert len(list((tmp_path / "own").rglob("images.safetensors"))) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_several_records_and_folders_end_in_one_summary_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    homes = store.homes(COMMITTED)[:4]
    unpack(COMMITTED, tmp_path / "records" / "quick", only=[home.name for home in homes[:3]])
    unpack(COMMITTED, tmp_path / "records" / "local" / "quick", only=[homes[3].name])
    if packed:
        pack(tmp_path / "records" / "quick")
    words = {homes[0].name: "match", homes[1].name: "within rounding", homes[2].name: "mismatch"}

    def judge(stored: Stored, **options: object) -> Finding:
        return Finding(words.get(stored.record.case_id, "match"), 1, 64)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "verify", judge)
    code, output = run("verify", str(tmp_path / "records"))
    assert code == 1
    assert "3 records: 1 match, 1 within rounding, 1 mismatch" in output
    assert homes[3].name not in output  # `run` writes there
    assert output.splitlines()[-1].endswith(homes[2].name)
    code, output = run("verify", str(homes[0]), str(homes[1] / "record.json"))
    assert code == 0
    assert "2 records: 1 match, 1 within rounding" in output
    local = tmp_path / "records" / "local"
    assert run("verify", str(local))[0] == 0
    assert run("verify", str(tmp_path / "records"), str(local))[1].count("\nrecord: ") == 3


def test_a_damaged_record_among_several_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = store.homes(COMMITTED)[:2]
    unpack(COMMITTED, tmp_path, only=[home.name for home in homes])
    (tmp_path / homes[0].name / "record.json").write_text("{")
    monkeypatch.setattr(verifying, "verify", lambda stored, **options: Finding("match", 0, 64))
    code, output = run("verify", str(tmp_path))
    assert code == 2
    assert "2 records: 1 match, 1 not verified" in output
    assert "not verified: expected a readable record in" in output


def test_a_renamed_folder_is_named_as_the_cause(tmp_path: Path) -> None:
    (home,) = unpack(COMMITTED, tmp_path, only=[CASE])
    home.rename(tmp_path / "my-copy")
    code, line = run("verify", str(tmp_path / "my-copy"))
    assert code == 2
    assert f"the folder was renamed; call it {CASE} again" in line
    assert "edited" not in line


NET = """
import torch
from torch import nn

def make(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, width), nn.ReLU(), nn.Linear(width, 2))
"""


@pytest.mark.parametrize("kind", ["weights", "code", "spec"])
def test_own_files_may_lie_elsewhere_on_another_machine(kind: str, tmp_path: Path) -> None:
    there, folder = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    folder.mkdir()
    data, spec = save_npz(there / "mine.npz"), save_timm(there / "w.safetensors")
    old, new = there / "w.safetensors", folder / "renamed.safetensors"
    options: list[str] = []
    if kind == "code":
        old, new, options = there / "net.py", folder / "network.py", ["--run-code"]
        old.write_text(NET)
        spec = f"{old}:make(width=6)"
    grid = ["--dataset", str(data), "--victim", spec, "--attack", "fgsm", "--eps", "2/255"]
    recomputed = run("run", "quick", *grid, "--results", str(tmp_path / "r"), "--examples", "0")
    assert recomputed[0] == 0, recomputed[1]
    (record,) = (tmp_path / "r").rglob("record.json")
    moved_data = shutil.move(data, folder / "test.npz")
    code, line = run("verify", str(record), *options)
    assert code == 2
    assert f"expected the dataset {data} of the record" in line
    assert "--dataset FILE" in line
    shutil.move(old, new)
    code, line = run("verify", str(record), "--dataset", str(moved_data), *options)
    assert code == 2
    assert f"expected the file {old} of the record's model" in line
    assert "--victim FILE" in line
    location = f"timm:test_resnet(weights='{new}')" if kind == "spec" else str(new)
    where = ["--dataset", str(moved_data), "--victim", location, *options]
    code, output = run("verify", str(record), *where)
    assert code == 0, output
    assert "match: all 12 samples as recorded" in output
    # another file is told by its hash
    sibling = save_npz(folder / "other.npz", n=14)
    code, output = run("verify", str(record), *where, "--dataset", str(sibling))
    assert code == 1
    assert "mine.npz are not those of the record" in output
    if kind == "code":
        new.write_text(NET + "\n# another\n")
    else:
        save_timm(new, change=0.3)
    code, output = run("verify", str(record), *where)
    assert code == 1
    assert "are not those of the record" in output


def test_only_own_files_can_be_pointed_at() -> None:
    for option, part in (("--dataset", "--data DIR"), ("--victim", "your own model")):
        code, line = run("verify", str(COMMITTED / CASE), option, "own.npz")
        assert code == 2
        assert part in line
