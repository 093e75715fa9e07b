"""The store: written once, atomically; killed and concurrent runs lose nothing that is finished."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_med.bench import store
from robustbench_med.bench.execute import execute
from robustbench_med.bench.record import Record
from robustbench_med.errors import ResultsError
from tests.bench.toys import dataset_of, planned_of, prepared_of, save_npz, save_timm
from tests.toys import generic_victim, grey_images

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome() -> Any:  # noqa: ANN401 - an Outcome, imported lazily by nobody
    victim = generic_victim(2)
    x = grey_images(8)
    setup = prepared_of(victim, dataset_of(x, victim.logits(x).argmax(1), 2))
    return execute(planned_of(setup.data), lambda: setup, command="c", examples=1)


def again(record: Record, **changed: Any) -> Record:  # noqa: ANN401
    return record.model_copy(update=changed)


def test_a_record_comes_back_as_it_was_written(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    home = store.write(tmp_path, *outcome)
    assert home == tmp_path / outcome.record.case_id
    found = store.read(home)
    assert found.record.model_dump_json() == outcome.record.model_dump_json()
    assert found.folder == str(home)
    expected = outcome.samples.drop(columns="scores")
    pd.testing.assert_frame_equal(
        found.samples.drop(columns="scores"), expected, check_dtype=False, check_exact=False
    )
    names = {path.name for path in home.iterdir()}
    assert names == {"record.json", "samples.parquet", *outcome.files}
    for name, content in outcome.files.items():
        assert (home / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [home.name]  # no temporary folder left
    assert home.stat().st_mode & 0o777 == 0o755


def test_a_record_is_standard_json(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    text = (store.write(tmp_path, *outcome) / "record.json").read_text()

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    values = json.loads(text, parse_constant=refuse)
    clean = values["rungs"][0]["metrics"]
    assert clean["linf"]["value"] == "NaN"
    cost = outcome.record.cost.model_copy(update={"seconds": float("inf")})
    infinite = again(outcome.record, cost=cost)
    text = infinite.model_dump_json()
    assert json.loads(text, parse_constant=refuse)["cost"]["seconds"] == "Infinity"
    assert Record.model_validate_json(text).cost == cost


def test_the_second_writer_keeps_the_first_record(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    home = store.write(tmp_path, *outcome)
    before = (home / "record.json").stat()
    late = again(outcome.record, notes=("late",))
    assert store.write(tmp_path, late, outcome.samples, outcome.files) == home
    assert (home / "record.json").stat().st_mtime_ns == before.st_mtime_ns
    assert "late" not in store.read(home).record.notes
    assert len(list(tmp_path.iterdir())) == 1


def test_replace_puts_the_new_record_in_place_of_all_of_the_old(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    home = store.write(tmp_path, *outcome)
    late = again(outcome.record, notes=("late",), examples=())
    store.write(tmp_path, late, outcome.samples, {}, replace=True)
    assert store.read(home).record.notes == ("late",)
    assert {path.name for path in home.iterdir()} == {"record.json", "samples.parquet"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_nothing(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_flush", full)
    with pytest.raises(ResultsError, match="expected to write .*, got: No space left on device"):
        store.write(tmp_path, *outcome)
    assert list(tmp_path.iterdir()) == []
    assert not store.finished(tmp_path, outcome.record.case_id)


def test_what_is_written_is_flushed_before_it_is_renamed(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flushed: list[str] = []
    real = store._flush

    def watching(path: Path) -> None:
        assert path == tmp_path or not (tmp_path / outcome.record.case_id).exists()
        flushed.append(path.name)
        real(path)

    monkeypatch.setattr(store, "_flush", watching)
    store.write(tmp_path, *outcome)
    assert {"record.json", "samples.parquet", *outcome.files} <= set(flushed)
    assert flushed[-1] == tmp_path.name  # the rename itself


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("record.json", b"{", "expected a readable record in"),
        ("record.json", b"\xff\xfe\x00", "expected a readable record in"),
        ("record.json", b"{}", "expected a readable record in"),
        ("samples.parquet", b"PAR1", "expected a readable record in"),
        ("samples.parquet", None, "got no samples.parquet"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_a_line(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    home = store.write(tmp_path, *outcome)
    if content is None:
        (home / name).unlink()
    else:
        (home / name).write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        store.read(home)
    found, broken = store.read_all(tmp_path)
    assert found == []
    assert len(broken) == 1
    assert message in broken[0]
    assert str(home) in broken[0]
    assert "\n" not in broken[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns=["correct", "eps"]),
            "got no column eps, correct in the samples",
        ),
        (lambda table: table.iloc[1:], "rows of samples for 8 images at"),
        (
            lambda table: table[table["sample"] != table["sample"][0]],
            "rows of samples for 8 images",
        ),
        (
            lambda table: pd.concat([table.iloc[1:], table.iloc[1:2]]),
            "rows of samples for 8 images",
        ),
        (lambda table: table.assign(eps=table["eps"] * 2), "rows of samples for 8 images at"),
        (lambda table: table.iloc[:0], "got 0 rows of samples for 8 images"),
    ],
)
def test_a_table_that_lacks_columns_or_rows_is_damaged(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    change: Any,  # noqa: ANN401
    message: str,
) -> None:
    home = store.write(tmp_path, *outcome)
    change(outcome.samples).to_parquet(home / "samples.parquet", index=False)
    with pytest.raises(ResultsError, match=message):
        store.read(home)
    assert not store.finished(tmp_path, outcome.record.case_id)
    _, (damaged,) = store.read_each(tmp_path)
    assert damaged.home == home
    assert damaged.record is not None
    assert damaged.record.case == outcome.record.case  # it says what is missing


@pytest.mark.parametrize("last", [None, 0.9])
def test_a_record_of_other_radii_than_its_case_is_damaged(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    last: float | None,
) -> None:
    rungs = outcome.record.rungs[:-1]
    if last is not None:
        rungs = (*rungs, outcome.record.rungs[-1].model_copy(update={"eps": last}))
    store.write(tmp_path, outcome.record.model_copy(update={"rungs": rungs}), *outcome[1:])
    found, (damaged,) = store.read_each(tmp_path)
    assert not found
    assert "not at those of its case" in damaged.line


def test_a_record_that_its_samples_do_not_bear_out_is_damaged(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    right = outcome.samples.assign(correct=1.0, success=False)
    home = store.write(tmp_path, outcome.record, right, {})
    assert store.read(home).record.case == outcome.record.case  # it can be read, and verified
    found, (damaged,) = store.read_each(tmp_path)
    assert not found
    assert "expected a record that agrees with its own samples" in damaged.line
    assert "of samples that say 1.000; run that case again with --force" in damaged.line
    odd = outcome.samples.assign(correct="yes")
    store.write(tmp_path, outcome.record, odd, {}, replace=True)
    assert "of another kind than its name says: correct" in store.read_each(tmp_path)[1][0].line


def test_a_record_of_an_older_schema_is_one_clear_line(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    path = store.write(tmp_path, *outcome) / "record.json"
    text = path.read_text()
    assert '"schema_version": 2' in text
    path.write_text(text.replace('"schema_version": 2', '"schema_version": 1'))
    found, (damaged,) = store.read_each(tmp_path)
    assert not found
    assert "a record of schema 1, where this version reads schema 2: run its case" in damaged.line


def test_a_folder_that_lost_its_record_is_damaged(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    home = store.write(tmp_path, *outcome)
    (home / "record.json").unlink()
    found, (damaged,) = store.read_each(tmp_path)
    assert not found
    assert "got no record.json" in damaged.line
    assert damaged.record is None


def test_an_invalid_record_has_no_samples(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    broken = again(outcome.record, status="invalid", reason="NaN", rungs=())
    home = store.write(tmp_path, broken, pd.DataFrame(), {})
    assert store.read(home).record.reason == "NaN"


def test_no_record_at_all(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="got no record.json"):
        store.read(tmp_path)


@pytest.mark.parametrize("field", ["case_id", "seed", "n", "ladder"])
def test_a_record_whose_id_is_not_its_cases_is_refused(
    outcome: Any,  # noqa: ANN401
    tmp_path: Path,
    field: str,
) -> None:
    home = store.write(tmp_path, *outcome)
    values = json.loads((home / "record.json").read_text())
    if field == "case_id":
        values["case_id"] = ("0" if values["case_id"][0] != "0" else "1") + values["case_id"][1:]
    else:
        values["case"][field] = {"seed": 5, "n": 3, "ladder": [0.5]}[field]
    (home / "record.json").write_text(json.dumps(values))
    with pytest.raises(ResultsError, match="expected case"):
        store.read(home)


def test_a_record_in_another_folder_is_refused(outcome: Any, tmp_path: Path) -> None:  # noqa: ANN401
    home = store.write(tmp_path, *outcome)
    home.rename(tmp_path / ("f" * 16))
    _, broken = store.read_all(tmp_path)
    assert len(broken) == 1


# --- the folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [".", "suite", "deep/suite"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in its place")
    with pytest.raises(ResultsError, match="expected a writable results folder, got .*--results"):
        store.check_writable(tmp_path / "file" / below)


def test_what_killed_runs_left_is_swept_and_what_runs_now_is_not(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".a.x.tmp", ".b.y.tmp", "kept"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "record.json").write_text("{}")
    for folder in (old, other):
        os.utime(folder, (1, 1))
    store.check_writable(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, other.name}


# --- killed and concurrent runs ------------------------------------------------------------------


def command(folder: Path) -> list[str]:
    data, victim = save_npz(folder / "own.npz", n=24), save_timm(folder / "w.safetensors")
    words = [sys.executable, "-m", "robustbench_med", "run", "quick", "--dataset", str(data)]
    words += ["--victim", victim, "--eps", "1/255,4/255", "--examples", "1", "--device", "cpu"]
    for steps in (2, 3, 4, 5):
        words += ["--attack", f"pgd(steps={steps})"]
    return [*words, "--results", str(folder / "results")]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        words,
        cwd=CHECKOUT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def homes(results: Path) -> list[Path]:
    return [path for path in results.glob("*/*") if path.is_dir() and path.name[0] != "."]


def whole(home: Path) -> bool:
    store.read(home)  # raises where anything is missing
    return True


def wait_for(results: Path, finished: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while len(homes(results)) < finished and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def hidden(results: Path) -> set[Path]:
    """Return the folders that a run writes in before it has a record."""
    return set(results.glob("*/.*"))


@pytest.mark.parametrize("moments", [(1,), pytest.param((0, 3), marks=pytest.mark.slow)])
def test_kill_9_loses_at_most_the_running_case_and_two_runs_at_once_finish_the_rest(
    tmp_path: Path, moments: tuple[int, ...]
) -> None:
    words, results = command(tmp_path), tmp_path / "results"
    for finished in moments:  # killed when the first record appears, again when the next does
        process = start(words)
        wait_for(results, finished, process)
        time.sleep(0.0 if finished else 4.0)  # 0: somewhere before the first record
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        assert all(whole(home) for home in homes(results))
    before = {home: (home / "record.json").stat().st_mtime_ns for home in homes(results)}
    unfinished = hidden(results)
    for process in [start(words) for _ in range(2)]:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        count = re.search(r"^(\d) of 4 cases are finished", output, flags=re.MULTILINE)
        assert count is not None, output
        assert int(count[1]) >= len(before)  # the other run may have finished more
    after = homes(results)
    assert len(after) == 4
    assert all(whole(home) for home in after)
    assert hidden(results) <= unfinished
    for home, stamp in before.items():
        assert (home / "record.json").stat().st_mtime_ns == stamp
    stored = store.read(after[0])
    assert f"--case {stored.record.case_id} --force" in stored.record.provenance.command
