"""Packed records are read as folders are, exactly, and packing loses nothing when killed."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustbench_med.bench import pack as packing
from robustbench_med.bench import packed, store
from robustbench_med.bench.execute import Outcome, execute
from robustbench_med.bench.pack import discard, pack, unpack
from robustbench_med.bench.record import Record
from robustbench_med.errors import ResultsError
from robustbench_med.files import write_bytes
from tests.bench.toys import dataset_of, planned_of, prepared_of
from tests.toys import generic_victim, grey_images


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    victim, x = generic_victim(2), grey_images(8)
    setup = prepared_of(victim, dataset_of(x, victim.logits(x).argmax(1), 2))
    outcomes = []
    for seed in (1, 2, 3):
        planned = planned_of(setup.data)
        case = planned.case.model_copy(update={"seed": seed})
        planned = planned._replace(case=case)
        outcomes.append(execute(planned, lambda: setup, command="c", examples=1))
    return outcomes


@pytest.fixture
def folder(outcomes: list[Outcome], tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    for outcome in outcomes:
        store.write(folder, *outcome)
    return folder


def contents(folder: Path) -> dict[str, tuple[str, pa.Table]]:
    return {
        home.name: (store.read(home).record.model_dump_json(), store.table_of(home))
        for home in store.homes(folder)
    }


def test_packed_records_are_read_exactly_as_folders_are(folder: Path) -> None:
    loose, before = store.read_all(folder)[0], contents(folder)
    result = pack(folder)
    assert result.records == 3
    assert not list(folder.glob("*/record.json"))
    assert not list(folder.glob("*/samples.parquet"))
    assert len(list(folder.glob("*/example_0_clean.png"))) == 3  # pictures stay
    after = contents(folder)
    assert after.keys() == before.keys()
    for case_id, (record, table) in after.items():
        assert record == before[case_id][0]
        assert table.schema.equals(before[case_id][1].schema, check_metadata=True)
        assert table.equals(before[case_id][1])
    for was, now in zip(loose, store.read_all(folder)[0], strict=True):
        assert was.folder == now.folder
        pd.testing.assert_frame_equal(was.samples, now.samples, check_exact=True)
        assert store.finished(folder, was.record.case_id)


def test_a_folder_without_pictures_is_gone_and_its_record_is_read_all_the_same(
    folder: Path,
) -> None:
    for picture in folder.glob("*/*.png"):
        picture.unlink()
    names = [home.name for home in store.homes(folder)]
    pack(folder)
    assert {path.name for path in folder.iterdir()} == {packed.RECORDS, packed.SAMPLES}
    home = folder / names[0]
    assert store.has_record(home)
    assert store.read(home).folder == str(home)
    assert store.files_of(home) == (folder / packed.RECORDS, folder / packed.SAMPLES)
    assert store.homes_below(folder.parent) == [folder / name for name in names]


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = [path.read_bytes() for path in pack(folder).files]
    os.utime(copy / store.homes(copy)[0].name / "record.json", (1, 1))
    assert [path.read_bytes() for path in pack(copy).files] == first
    assert [path.read_bytes() for path in pack(copy).files] == first  # packing again


def test_unpacking_gives_back_the_folders(folder: Path, tmp_path: Path) -> None:
    before = {home.name: (home / "record.json").read_bytes() for home in store.homes(folder)}
    tables = {home.name: store.table_of(home) for home in store.homes(folder)}
    pack(folder)
    copies = unpack(folder, tmp_path / "loose")
    assert {home.name: (home / "record.json").read_bytes() for home in copies} == before
    for home in copies:
        assert pq.read_table(home / "samples.parquet").equals(tables[home.name])
        assert (home / "example_0_clean.png").exists()
    one = unpack(folder, tmp_path / "single", only=[copies[0].name])
    assert [home.name for home in one] == [copies[0].name]


def test_a_run_into_a_packed_folder_adds_folders_and_they_count(
    folder: Path, outcomes: list[Outcome]
) -> None:
    pack(folder)
    case_id = outcomes[0].record.case_id
    late = outcomes[0].record.model_copy(update={"notes": ("late",)})
    store.write(folder, late, outcomes[0].samples, outcomes[0].files)
    assert store.read(folder / case_id).record.notes != ("late",)  # it was finished before
    store.write(folder, late, outcomes[0].samples, outcomes[0].files, replace=True)
    assert store.read(folder / case_id).record.notes == ("late",)
    assert len(store.read_all(folder)[0]) == 3
    pack(folder)
    assert not list(folder.glob("*/record.json"))
    assert store.read(folder / case_id).record.notes == ("late",)
    discard(folder / case_id)
    assert len(store.read_all(folder)[0]) == 2
    assert not (folder / case_id).exists()


def table(values: dict[str, Any]) -> pa.Table:
    return pa.table(values)


@pytest.mark.parametrize(
    "tables",
    [
        [  # one name with several types, and a column that one case alone has
            {"truth": pa.array([1, 2]), "case": pa.array(["a", None])},
            {"truth": pa.array([[1, 0], [], None]), "scores": pa.array([[0.5], [1.0, 2.0], None])},
            {"truth": pa.array([[0.5]]), "correct": pa.array([True])},
        ],
        [  # undefined values
            {"x": pa.array([np.nan, np.inf, -np.inf, None, -0.0])},
            {"x": pa.array([np.nan, 1.0], pa.float32())},
            {"x": pa.array([None, None])},
            {"x": pa.array([[np.nan], [np.inf, None]])},
        ],
        [{}, {"x": pa.array([], pa.int8())}, {"x": pa.array([3], pa.int8())}],  # no rows
        [{}],
    ],
)
def test_every_table_comes_back_with_its_own_types(
    tables: list[dict[str, Any]], tmp_path: Path, outcomes: list[Outcome]
) -> None:
    named = {f"{i:016x}": table(values) for i, values in enumerate(tables)}
    lines = {name: outcomes[0].record.model_copy(update={"case_id": name}) for name in named}
    (tmp_path / packed.RECORDS).write_bytes(packed.encode_records(lines))
    (tmp_path / packed.SAMPLES).write_bytes(packed.encode_samples(named))
    pack = packed.open_packed(tmp_path)
    assert pack is not None
    for name, expected in named.items():
        found = pack.table(name)
        assert found.schema.equals(expected.schema, check_metadata=True)
        assert found.to_pydict().keys() == expected.to_pydict().keys()
        for column in expected.column_names:  # NaN is not equal to itself
            assert repr(found[column].to_pylist()) == repr(expected[column].to_pylist())


# --- damage --------------------------------------------------------------------------------------


def first_line(folder: Path, change: Any) -> None:  # noqa: ANN401 - a function of a line
    path = folder / packed.RECORDS
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[0] = change(lines[0])
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE: dict[str, tuple[Any, int, str]] = {  # what is done, how many records it costs, the line
    "cut records": (lambda f: cut(f / packed.RECORDS), 3, "a damaged file: Compressed file ended"),
    "no gzip": (lambda f: (f / packed.RECORDS).write_text("{}"), 3, "a damaged file: Not a gzipp"),
    "cut samples": (lambda f: cut(f / packed.SAMPLES), 3, "expected a readable record in"),
    "no samples": (lambda f: (f / packed.SAMPLES).unlink(), 3, f"got no {packed.SAMPLES}"),
    "no id": (lambda f: first_line(f, lambda _: "{}"), 3, "a line without a case id: line 1"),
    "an id of another": (
        lambda f: first_line(f, lambda line: line.replace('"seed":', '"seed":1', 1)),
        1,
        "the record was edited",
    ),
    "half a line": (lambda f: first_line(f, lambda line: line[:90]), 1, "expected a readable reco"),
    "twice": (
        lambda f: first_line(f, lambda line: f"{line}\n{line}"),
        3,
        "two records of case",
    ),
}


@pytest.mark.parametrize(("damage", "count", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_packs_cost_one_clear_line_a_record_or_one_in_all(
    folder: Path,
    damage: Any,  # noqa: ANN401
    count: int,
    message: str,
) -> None:
    pack(folder)
    damage(folder)
    stored, damaged = store.read_each(folder)
    assert len(stored) == 3 - count
    assert damaged
    for one in damaged:
        assert message in one.line
        assert str(folder) in one.line
        assert "\n" not in one.line
    with pytest.raises(ResultsError, match="not packed: "):
        pack(folder)


def test_a_record_lost_beside_a_damaged_pack_costs_no_other(folder: Path) -> None:
    lost = store.homes(folder)[0]
    (lost / "record.json").unlink()
    (folder / packed.RECORDS).write_bytes(b"no gzip")
    stored, damaged = store.read_each(folder)
    assert len(stored) == 2
    assert {one.home for one in damaged} == {folder / packed.RECORDS, lost}


def test_samples_of_one_case_alone_are_missing(folder: Path) -> None:
    pack(folder)
    pack_ = packed.open_packed(folder)
    assert pack_ is not None
    tables = {case_id: pack_.table(case_id) for case_id in pack_.ids[1:]}
    (folder / packed.SAMPLES).write_bytes(packed.encode_samples(tables))
    stored, (damaged,) = store.read_each(folder)
    assert len(stored) == 2
    assert damaged.home == folder / pack_.ids[0]
    assert damaged.record is not None  # it says what is missing
    assert f"no samples of case {pack_.ids[0]}" in damaged.line
    assert not store.finished(folder, pack_.ids[0])


def test_a_damaged_record_is_not_packed(folder: Path) -> None:
    home = store.homes(folder)[0]
    (home / "samples.parquet").write_bytes(b"PAR1")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ResultsError, match="not packed: expected a readable record in"):
        pack(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_without_records_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="expected records in .*, got none"):
        pack(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "there is no such folder"), ("file.txt", "file.txt: a file")]
)
def test_what_is_no_folder_is_named_as_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file.txt").write_text("no folder")
    with pytest.raises(ResultsError, match=words):
        pack(tmp_path / name)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_nothing_is_lost(
    folder: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    steps, remove = iter(range(100)), Path.unlink

    def write(path: Path, content: bytes) -> Path:
        if next(steps) == moment:
            raise Killed
        return write_bytes(path, content)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if next(steps) == moment:
            raise Killed
        remove(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "write_bytes", write)
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            pack(folder)
    stored, damaged = store.read_each(folder)
    assert damaged == []
    assert len(stored) == 3
    assert contents(folder).keys() == before.keys()
    pack(folder)
    assert not list(folder.glob("*/record.json"))
    assert not list(folder.glob("*/samples.parquet"))
    assert {k: v[0] for k, v in contents(folder).items()} == {k: v[0] for k, v in before.items()}


def test_a_record_that_a_run_replaced_while_the_others_were_read_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, read = store.homes(folder)[0], store.read_each

    def read_and_replace(path: Path) -> Any:  # noqa: ANN401
        result = read(path)
        os.utime(home / "record.json", (1, 1))
        return result

    monkeypatch.setattr(store, "read_each", read_and_replace)
    pack(folder)
    assert [path.parent for path in folder.glob("*/record.json")] == [home]


def test_two_calls_pack_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    write = write_bytes

    def slow(path: Path, content: bytes) -> Path:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        inside[0] -= 1
        return write(path, content)

    monkeypatch.setattr(packing, "write_bytes", slow)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(pack, [folder, folder]))
    assert [result.records for result in results] == [3, 3]
    assert most[0] == 1


def test_a_record_that_a_run_replaced_meanwhile_is_kept(
    folder: Path, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing._empty
    late: Record = outcomes[0].record.model_copy(update={"notes": ("late",)})

    def empty(home: Path, written: int) -> None:
        if home.name == late.case_id:
            store.write(folder, late, outcomes[0].samples, {}, replace=True)
            os.utime(home / "record.json", (1, 1))  # clocks are coarse
        real(home, written)

    monkeypatch.setattr(packing, "_empty", empty)
    pack(folder)
    assert store.read(folder / late.case_id).record.notes == ("late",)
