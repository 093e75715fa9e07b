"""`report`: its files, and one line for every mistake."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.bench.pack import pack, unpack
from robustbench_med.cli import report_command
from robustbench_med.errors import BenchError

RESULTS = Path(__file__).parents[2] / "results"
VICTIM = "fundus_resnet"
GOOD = '[[criteria]]\nmetric = "accuracy"\nattack = "clean"\nat_least = 0.5\n'


class Called:
    """Runs the command line in this process and keeps what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: str | Path) -> int:
        """Return the exit code."""
        self._monkeypatch.setattr(sys, "argv", ["robustbench_med", "report", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def refused(self, *fragments: str) -> None:
        """Check that it said one line on stderr that holds `parts`."""
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("robustbench_med: ")
        for part in fragments:
            assert part in self.err


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Called:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Called(monkeypatch, capsys)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two committed records of one victim and one of another, to copy."""
    ids: dict[str, list[str]] = {}
    for stored in store.read_all(RESULTS / "quick")[0]:
        case = stored.record.case
        if case.dataset == "phantom_fundus" and case.threat == "white_box":
            ids.setdefault(case.victim, []).append(case.id)
    selected = [*ids[VICTIM][:2], ids["fundus_densenet"][0]]
    suites = tmp_path_factory.mktemp("unpacked") / "suites"
    unpack(RESULTS / "quick", suites / "quick", only=selected)
    return suites


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    """Return a folder of records of its own for each test."""
    return Path(shutil.copytree(unpacked, tmp_path / "suites"))


def test_it_writes_html_and_json_beside_the_records(call: Called, folder: Path) -> None:
    assert call("--victim", VICTIM, folder) == 0
    page, data = folder / f"report-{VICTIM}.html", folder / f"report-{VICTIM}.json"
    assert f"report: {page}\nreport: {data}\n" in call.out
    held = json.loads(data.read_text())
    assert {Path(record["path"]).parts[0] for record in held["records"]} == {"quick"}
    assert all(len(record["record_sha256"]) == 64 for record in held["records"])
    pack(folder / "quick")
    assert call("--victim", VICTIM, folder) == 0
    packed = json.loads(data.read_text())
    assert packed["boards"] == held["boards"]
    files = {"quick/records.jsonl.gz": "record", "quick/all_samples.parquet": "samples"}
    for name, kind in files.items():
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert {record[f"{kind}_sha256"] for record in packed["records"]} == {digest}
    assert {record["path"] for record in packed["records"]} == {"quick/records.jsonl.gz"}
    assert "R2" in page.read_text()
    assert call("--victim", VICTIM, folder / "quick", "--out", "elsewhere") == 0
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == [page.name, data.name]


def test_it_says_which_criteria_are_met(call: Called, folder: Path) -> None:
    path = Path("plan.toml")
    path.write_text(GOOD + GOOD.replace("0.5", "1.0"))
    os.utime(path, (0, 0))
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "C1 met: accuracy at least 0.5 (50 %) on clean images, every dataset" in call.out
    assert "C2 not met: " in call.out
    assert "written after" not in call.out
    os.utime(path, (4e9, 4e9))
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "plan.toml is newer than the first record: it was written after the results" in call.out


def test_a_mistake_costs_one_line(call: Called, folder: Path) -> None:
    assert call("--victim", "fundus_resnt", folder) == 2
    call.refused("got 'fundus_resnt': did you mean 'fundus_resnet'?", "fundus_densenet")
    assert call("--victim", VICTIM, "gone") == 2
    call.refused("expected a folder of records, got gone: no such folder")
    assert call("--victim", VICTIM, folder, "--criteria", "gone.toml") == 2
    call.refused("expected criteria in gone.toml, got: No such file")
    Path("bad.toml").write_text(GOOD.replace("metric", "metrik"))
    assert call("--victim", VICTIM, folder, "--criteria", "bad.toml") == 2
    call.refused("bad.toml, criterion 1: expected a known key, got 'metrik'")
    Path("file").write_text("")
    assert call("--victim", VICTIM, folder, "--out", Path("file") / "below") == 2
    call.refused("expected to write into file/below, got: Not a directory")
    assert list(folder.glob("report-*")) == []


def test_every_model_gets_a_report_and_its_name_is_shown(call: Called, folder: Path) -> None:
    assert call(folder) == 0
    results = [path.name for path in sorted(folder.glob("report-*"))]
    assert results == [
        f"report-{name}.{kind}"
        for name in ("fundus_densenet", "fundus_resnet")
        for kind in ("html", "json")
    ]
    for name, title in (("fundus_densenet", "DenseNet"), (VICTIM, "ResNet")):
        assert f"{name}: {title} on Phantom fundus" in call.out
        assert json.loads((folder / f"report-{name}.json").read_text())["victim"] == name
    homes = (folder / "quick").iterdir()
    ours = [home for home in homes if store.read(home).record.case.victim == VICTIM]
    shutil.rmtree(min(ours))  # one of two: every model still has a record
    assert call("--victim", "DenseNet", "--victim", VICTIM, folder, "--out", "two") == 0
    assert [path.name for path in sorted(Path("two").glob("*.html"))] == results[::2]


def test_one_report_is_the_same_alone_and_among_all(call: Called, folder: Path) -> None:
    assert call(folder, "--out", "all") == 0
    assert call(folder, "--victim", VICTIM, "--out", "one") == 0
    for kind in ("html", "json"):
        name = f"report-{VICTIM}.{kind}"
        assert Path("all", name).read_bytes() == Path("one", name).read_bytes()


def test_a_title_of_two_models_is_refused(call: Called, folder: Path) -> None:
    for path in (folder / "quick").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["model_card"]["title"] = "Net"
        path.write_text(json.dumps(record))
    assert call("--victim", "net", folder) == 2
    call.refused(
        "expected the name of one model, got 'net', which is the title of 2: fundus_densenet, fun"
    )


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        (None, 0),
        ("not_met", 1),
        ("not-met", 1),
        ("not_tested", 1),
        ("not_tested, doubted", 1),
        ("doubted", 0),
    ],
)
def test_verdicts_decide_the_exit_code_where_asked(
    call: Called, folder: Path, levels: str | None, code: int
) -> None:
    path = Path("plan.toml")
    gone = 'eps = "3/255"\n'
    path.write_text(GOOD + GOOD.replace("0.5", "1.0") + GOOD.replace('attack = "clean"\n', gone))
    words = [] if levels is None else ["--fail-on", levels]
    assert call("--victim", VICTIM, folder, "--criteria", path, *words) == code
    assert (folder / f"report-{VICTIM}.html").exists()
    failed = [line for line in call.out.splitlines() if line.startswith("fails on")]
    criterion = {"not_met": "C2", "not_tested": "C3"}
    verdict = (levels or "").split(",")[0].replace("-", "_")
    expected = [f"fails on {verdict}: {criterion[verdict]} of {VICTIM}"] if code else []
    assert failed == expected
    assert ("1 not met: --fail-on not_met makes that exit code 1" in call.out) == (levels is None)


def test_a_criterion_that_is_met_and_doubted_fails_where_asked(call: Called, folder: Path) -> None:
    path = Path("plan.toml")
    path.write_text(GOOD)
    own_folder = next(
        path
        for path in sorted((folder / "quick").glob("*/record.json"))
        if json.loads(path.read_text())["case"]["victim"] == VICTIM
    )
    own_folder.write_text("{")
    words = ("--victim", VICTIM, folder, "--criteria", path)
    assert call(*words, "--fail-on", "doubted") == 1
    assert f"fails on doubted: C1 of {VICTIM}" in call.out


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--fail-on", "not_met"], ["expected --criteria with --fail-on, got none"]),
        (["--fail-on", "met", "--criteria", "p"], ["got 'met'", "not_met, not_tested"]),
        (["--fail-on", "", "--criteria", "p"], ["got ''", "doubted, not_met, not_tested"]),
        (["--fail-on", "not_mett", "--criteria", "p"], ["did you mean 'not_met'?"]),
    ],
)
def test_a_wrong_level_is_refused_before_anything_is_written(
    call: Called, folder: Path, words: list[str], fragments: list[str]
) -> None:
    Path("p").write_text(GOOD)
    assert call(folder, *words) == 2
    call.refused(*fragments)
    assert list(folder.glob("report-*")) == []


def tampered(home: Path) -> Path:
    """Change a score of a record, so that its own samples contradict it; return the record."""
    path = home / "record.json"
    record = json.loads(path.read_text())
    accuracy = record["rungs"][-1]["metrics"]["accuracy"]
    accuracy["value"] = 0.25 if accuracy["value"] != 0.25 else 0.5
    path.write_text(json.dumps(record))
    return path


def cut(home: Path) -> Path:
    """Cut a record off in the middle."""
    path = home / "record.json"
    path.write_bytes(path.read_bytes()[:200])
    return path


def without_samples(home: Path) -> Path:
    """Take the samples table away."""
    (home / "samples.parquet").unlink()
    return home / "samples.parquet"


def renamed(home: Path) -> Path:
    """Let a record lie in a folder of another name."""
    home.rename(home.with_name("0" * 16))
    return home.with_name("0" * 16) / "record.json"


DAMAGE = [tampered, cut, without_samples, renamed]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("words", [[], ["--victim", VICTIM]])
def test_where_no_record_can_be_read_the_cause_is_said(
    call: Called, folder: Path, damage: Callable[[Path], Path], words: list[str]
) -> None:
    """Not that there are none."""
    homes = sorted((folder / "quick").iterdir())
    for home in homes[1:]:
        shutil.rmtree(home)
    path = damage(homes[0])
    assert call(folder, *words) == 2
    call.refused("that can be read, got none: 1 cannot be read: ", str(path.parent))
    assert "run a suite first" not in call.err
    assert list(folder.glob("report-*")) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_model_whose_only_record_is_damaged_is_named(
    call: Called, folder: Path, damage: Callable[[Path], Path]
) -> None:
    """Among records of others that can be read: never that there is no such model."""
    (home,) = [
        path.parent
        for path in (folder / "quick").glob("*/record.json")
        if json.loads(path.read_text())["case"]["victim"] == "fundus_densenet"
    ]
    path = damage(home)
    assert call(folder, "--victim", "fundus_densenet") == 2
    call.refused("1 cannot be read: ", str(path.parent))
    assert call(folder) == 1
    assert f"{path.parent}" in call.out
    assert "not read: " in call.out
    assert (folder / f"report-{VICTIM}.html").exists()
    known = damage is not cut  # its own file still says whose it is
    message = "no report of fundus_densenet: none of its records can be read"
    assert (message in call.out) == known
    # what is known to be of another model is no doubt on this one
    held = json.loads((folder / f"report-{VICTIM}.json").read_text())
    assert len(held["unreadable"]) == (0 if known else 1)


def test_a_tampered_record_among_others_makes_its_row_incomplete(
    call: Called, folder: Path
) -> None:
    home = next(
        path.parent
        for path in sorted((folder / "quick").glob("*/record.json"))
        if json.loads(path.read_text())["case"]["victim"] == VICTIM
    )
    tampered(home)
    assert call(folder, "--victim", VICTIM) == 1
    held = json.loads((folder / f"report-{VICTIM}.json").read_text())
    assert home.name in held["unreadable"][0]
    assert "agrees with its own samples" in held["unreadable"][0]
    assert {board["standing"] for board in held["boards"]} == {"incomplete"}


def test_folders_are_looked_into_and_named_rightly(call: Called, folder: Path) -> None:
    deep = Path("work/results")
    deep.mkdir(parents=True)
    shutil.copytree(folder, deep / "suites")
    assert call("work", "--victim", VICTIM, "--out", "deep") == 0
    assert call(folder, "--victim", VICTIM, "--out", "flat") == 0
    deep_, flat = (
        json.loads(Path(d, f"report-{VICTIM}.json").read_text()) for d in ("deep", "flat")
    )
    assert deep_["boards"] == flat["boards"]
    home = next(iter((folder / "quick").iterdir()))
    assert call(home) == 2
    call.refused(f"got that of one record, {home}", f"pass {folder / 'quick'}")
    assert call(home / "record.json") == 2
    call.refused("record.json: a file")
    Path("empty").mkdir()
    assert call("empty") == 2
    call.refused("expected records below empty, got none: run a suite first")


def test_criteria_of_other_models_are_counted_and_a_model_that_is_missing_is_said(
    call: Called, folder: Path
) -> None:
    path = Path("plan.toml")
    path.write_text(
        "".join(GOOD + f'victim = "{name}"\n' for name in (VICTIM, "fundus_densenet", "fundus_vit"))
    )
    assert call(folder, "--criteria", path, "--fail-on", "not_met") == 0
    for location, name in enumerate((VICTIM, "fundus_densenet"), 1):
        held = json.loads((folder / f"report-{name}.json").read_text())["criteria"]
        assert [stored["number"] for stored in held["judged"]] == [f"C{location}"]
        assert held["others"] == 2
    page = (folder / f"report-{VICTIM}.html").read_text()
    assert "2 criteria of the file are for other models and not judged here" in page
    assert "C3 not tested: it is for 'fundus_vit', which has no record" in call.out
    assert call(folder, "--criteria", path, "--fail-on", "not_tested") == 1
    assert "fails on not_tested: C3" in call.out
    words = (folder, "--criteria", path, "--fail-on", "not_tested", "--victim", VICTIM)
    path.write_text(path.read_text().replace("fundus_vit", VICTIM))
    assert call(*words) == 0
    assert "C2 not judged: it is for 'fundus_densenet', which has no report" in call.out


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            'dataset = "phantom_funds"',
            "of dataset 'phantom_funds' (did you mean 'phantom_fundus'?)",
        ),
        ('attack = "pdg"', "no record is of attack 'pdg'"),
        ('defense = "jpeg"', "no record is of defense 'jpeg'"),
        ('objective = "targetted(target=0)"', "called 'targetted' (did you mean 'targeted'?)"),
        ('metric = "recall[sever]"', "no class 'sever' (did you mean 'severe'?); it has none, mod"),
    ],
)
def test_a_wrong_name_in_a_criterion_is_not_tested_and_says_what_there_is(
    call: Called, folder: Path, line: str, hint: str
) -> None:
    path = Path("plan.toml")
    base = {"metric": 'metric = "accuracy"', "at_least": "at_least = 0.0", "eps": 'eps = "2/255"'}
    base[line.split()[0]] = line
    path.write_text("[[criteria]]\n" + "\n".join(base.values()))
    assert call(folder, "--victim", VICTIM, "--criteria", path, "--fail-on", "not_tested") == 1
    assert "C1 not tested: " in call.out
    assert hint in call.out


def test_a_damaged_record_is_named_and_costs_exit_code_1(call: Called, folder: Path) -> None:
    damaged = sorted((folder / "quick").iterdir())[0] / "record.json"
    damaged.write_text("{")
    assert call("--victim", VICTIM, folder) == 1
    assert f"not read: expected a readable record in {damaged.parent}" in call.out
    page = (folder / f"report-{VICTIM}.html").read_text()
    assert "1 record in the folder could not be read" in page


def test_a_damaged_record_does_not_make_a_model_look_stronger(call: Called, folder: Path) -> None:
    """What is met without it is doubted, on the terminal and in both files."""
    path = Path("plan.toml")
    path.write_text(GOOD)
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "C1 met: " in call.out
    damaged = sorted((folder / "quick").iterdir())[0] / "record.json"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert call("--victim", VICTIM, folder, "--criteria", path) == 1
    assert "C1 met (doubted): " in call.out
    held = json.loads((folder / f"report-{VICTIM}.json").read_text())
    assert str(damaged.parent) in held["unreadable"][0]
    assert held["criteria"]["judged"][0]["doubted"]


def test_the_command_in_a_report_makes_it_again(call: Called, folder: Path) -> None:
    path = Path("it's a plan.toml")
    path.write_text(GOOD)
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    reports = folder / f"report-{VICTIM}.json"
    first = reports.read_bytes()
    reports.unlink()
    words = shlex.split(json.loads(first)["command"])
    assert words[:4] == ["python", "-m", "robustbench_med", "report"]
    assert call(*words[4:]) == 0
    assert reports.read_bytes() == first


class Full(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_a_console_that_takes_nothing_costs_no_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left") as caught:
        report_command.report(folder)
    assert not isinstance(caught.value, BenchError)
    assert len(list(folder.glob("report-*"))) == 4
