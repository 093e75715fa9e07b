"""Verify: a record is recomputed by rerunning its case, or from its saved images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from robustbench_med.bench import saved, store
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Estimate, Record, Stored
from robustbench_med.bench.rerun import changed, replan
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.verify import verify
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import ResultsError, SpecError
from tests.bench.toys import save_npz, save_timm

COMMITTED = Path(__file__).parents[2] / "results" / "quick"


def suite_of(**grid: Any) -> Suite:  # noqa: ANN401 - any field
    about = {"name": "toy", "title": "Toy", "summary": "", "source": ""}
    return Suite.model_validate(about | {"seed": 0, "grids": [grid]})


def made(folder: Path, *, images: bool = True, **changed: Any) -> Stored:  # noqa: ANN401
    """Run one case on drawn squares and return its record."""
    folder.mkdir(parents=True, exist_ok=True)
    side = changed.pop("side", 32)
    grid = {
        "datasets": [str(save_npz(folder / "mine.npz", n=24, side=side))],
        "victims": [save_timm(folder / "mine.safetensors")],
        "attacks": ["pgd(steps=5)"],
        "norm": "linf",
        "ladder": ["0.02/255", "0.1/255", "8/255"],
    }
    planned, broken = plan(suite_of(**grid | changed))
    assert not broken, broken
    results = folder / "results"
    store.check_writable(results)
    quiet = Console(quiet=True)
    assert not run_cases(planned, results, console=quiet, command="", examples=0, images=images)
    return store.read(results / planned[0].case.id)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return made(tmp_path_factory.mktemp("kept"))


def _far(moved: float) -> float:
    """Return how far an interval moves with its value: with one image, not at all."""
    return moved if abs(moved) > 0.2 else 0.0


def edited(stored: Stored, folder: Path, change: Callable[[pd.DataFrame], None]) -> Stored:
    """Return a copy of a record whose samples were changed, and its shares with them."""
    samples = stored.samples.copy()
    change(samples)
    rungs = []
    for i, rung in enumerate(stored.record.rungs):
        rows = samples.iloc[i * stored.record.n : (i + 1) * stored.record.n]
        found = {
            "accuracy": rows["correct"].mean(),
            "attack_success": rows.loc[rows["attacked"], "broken"].mean(),
        }
        metrics = {
            name: Estimate(
                value=float(found[name]),
                low=one.low + _far(float(found[name]) - one.value),
                high=one.high + _far(float(found[name]) - one.value),
            )
            if name in found
            else one
            for name, one in rung.metrics.items()
        }
        rungs.append(rung.model_copy(update={"metrics": metrics}))
    record = stored.record.model_copy(update={"rungs": tuple(rungs)})
    return Stored(record, samples, stored.folder)


def test_a_case_run_again_matches_to_the_last_sample(kept: Stored) -> None:
    found = verify(kept)
    assert found.lines == ()
    assert (found.word, found.differing, found.samples) == ("match", 0, 24)
    broken = kept.samples.groupby("eps")["broken"].sum()
    assert broken.iloc[-1] > 0  # else the match says nothing of the attack


@pytest.mark.slow
@pytest.mark.parametrize("case", ["1cb58b70cc63fd4d", "d6fbaa133d993950"])
def test_committed_records_match_at_their_operating_point(case: str) -> None:
    stored = store.read(COMMITTED / case)
    assert stored.record.threshold
    found = verify(stored)
    assert (found.word, found.lines) == ("match", ())


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attacks": ["fgsm"]},
        {"attacks": ["deepfool"]},
        pytest.param(
            {"attacks": ["uap_gradient"], "split": "val", "fit": 8, "datasets": ["phantom_fundus"]}
            | {"victims": ["fundus_resnet"], "n": 8},
            marks=pytest.mark.slow,
        ),
        {"objective": "targeted(target=1)"},
        pytest.param(
            {"datasets": ["phantom_brain"], "victims": ["brain_deeplab"], "n": 3}
            | {"attacks": ["segpgd(steps=3)"], "ladder": ["1/255", "4/255"]},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"datasets": ["phantom_fundus"], "victims": ["fundus_resnet"], "n": 8}
            | {"surrogates": ["fundus_densenet"], "attacks": ["fgsm"]},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pgd", "fgsm", "deepfool", "universal", "targeted", "masks", "transfer"],
)
def test_saved_images_show_what_the_record_claims(changed: dict[str, Any], tmp_path: Path) -> None:
    stored = made(tmp_path, **changed)
    assert stored.record.images is not None
    assert stored.record.images.kept > 0
    found = verify(stored, images=True)
    assert found.lines == ()
    assert (found.word, found.differing) == ("match", 0)


def test_an_image_is_saved_once_at_the_lowest_radius_it_breaks(kept: Stored) -> None:
    tensors = load_file(Path(kept.folder) / saved.FILE)
    broken = kept.samples.groupby("sample")["broken"].any()
    assert len(tensors["images"]) == broken.sum()
    # in pgd's ladder, broken below is broken above by the same image
    which = tensors["which"]
    assert bool(((which[1:] == which[:-1]) | (which[:-1] < 0)).all())


def test_one_other_outcome_lies_within_the_interval(kept: Stored, tmp_path: Path) -> None:
    def stand(samples: pd.DataFrame) -> None:
        share = samples.groupby("eps")["broken"].mean()
        middle = samples["eps"] == (share - 0.4).abs().idxmin()
        row = samples.index[samples["broken"] & middle][0]
        samples.loc[row, ["broken", "correct"]] = [False, True]
        samples["prediction"] = samples["prediction"].mask(samples.index == row, samples["truth"])

    for images in (False, True):
        found = verify(edited(kept, tmp_path, stand), images=images)
        assert found.lines == ()
        assert (found.word, found.differing) == ("within interval", 1)


def test_a_claim_that_is_too_good_is_a_mismatch_with_both_values(
    kept: Stored, tmp_path: Path
) -> None:
    def stand(samples: pd.DataFrame) -> None:
        samples.loc[samples["eps"] > 0, "correct"] = samples["truth"] == samples["truth"]
        samples.loc[samples["eps"] > 0, "broken"] = False

    for images in (False, True):
        found = verify(edited(kept, tmp_path, stand), images=images)
        assert found.word == "mismatch"
        line = next(one for one in found.lines if one.startswith("accuracy at eps 8/255"))
        assert "recorded 1.000 [" in line
        assert "recomputed 0." in line


def test_a_metric_edited_alone_contradicts_its_samples(kept: Stored) -> None:
    rung = kept.record.rungs[-1]
    better = Estimate(value=0.99, low=0.0, high=1.0)
    rung = rung.model_copy(update={"metrics": rung.metrics | {"accuracy": better}})
    record = kept.record.model_copy(update={"rungs": (*kept.record.rungs[:-1], rung)})
    found = verify(Stored(record, kept.samples, kept.folder))
    assert found.word == "mismatch"
    assert any("the record says 0.990, its own samples" in line for line in found.lines)


def test_other_weights_and_other_images_are_said_plainly(tmp_path: Path) -> None:
    stored = made(tmp_path, images=False)
    save_timm(tmp_path / "mine.safetensors", change=0.3)
    found = verify(stored)
    assert found.word == "mismatch"
    assert "the weights of timm:test_resnet" in found.lines[0]
    assert "are not those of the record: expected " in found.lines[0]
    save_timm(tmp_path / "mine.safetensors")
    save_npz(tmp_path / "mine.npz", n=22)
    assert "mine.npz are not those of the record" in verify(stored).lines[0]


def test_a_damaged_weights_file_of_the_zoo_is_a_mismatch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from robustbench_med.models import load

    monkeypatch.setattr(load, "ZOO", tmp_path)
    card = store.read(COMMITTED / "d6fbaa133d993950").record.model_card
    (tmp_path / card.weights).write_bytes(b"flipped")
    found = verify(store.read(COMMITTED / "d6fbaa133d993950"))
    assert found.word == "mismatch"
    assert "expected sha256" in found.lines[0]


@pytest.mark.slow
def test_planning_a_committed_case_again_gives_the_same_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every field of a case survives the way back through a grid, for all kinds of case."""
    monkeypatch.setattr("robustbench_med.bench.plan.load_dataset", cache(load_dataset))
    folders = [path for path in sorted(COMMITTED.parent.glob("*/*/")) if path.name != "page"]
    seen = set[tuple[object, ...]]()
    for folder in folders:
        if not (folder / "record.json").exists():
            continue
        record = Record.model_validate_json((folder / "record.json").read_text())
        case = record.case
        kind = (case.attack, case.surrogate is None, case.norm, case.objective, case.budget)
        if record.dataset_card.synthetic and kind not in seen:
            seen.add(kind)
            assert changed(case, replan(case).case) == []
    assert len(seen) > 20


def test_an_image_outside_its_ball_is_a_mismatch(tmp_path: Path) -> None:
    stored = made(tmp_path)
    moved = _with_images(stored, lambda t: t["images"].add_(0.05 * (t["images"] < 0.5)))
    found = verify(moved, images=True)
    assert found.word == "mismatch"
    assert any("images lie outside their ball" in line for line in found.lines)


def test_clean_images_in_place_of_adversarial_ones_show_nothing(tmp_path: Path) -> None:
    stored = made(tmp_path)
    emptied = _with_images(stored, lambda t: t["which"].fill_(-1))
    found = verify(emptied, images=True)
    assert found.word == "mismatch"
    assert found.differing == int(stored.samples.groupby("sample")["broken"].any().sum())


def _with_images(stored: Stored, change: Callable[[dict[str, torch.Tensor]], Any]) -> Stored:
    path = Path(stored.folder) / saved.FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert stored.record.images is not None
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = stored.record.images.model_copy(update={"sha256": sha256})
    record = stored.record.model_copy(update={"images": entry})
    return Stored(record, stored.samples, stored.folder)


def test_images_that_are_missing_damaged_or_of_another_case_are_refused(tmp_path: Path) -> None:
    stored = made(tmp_path)
    path = Path(stored.folder) / saved.FILE
    other = _with_images(stored, lambda t: t.update(which=t["which"][:1]))
    with pytest.raises(ResultsError, match=r"expected images of .* at 3 radii, got .* at 1"):
        verify(other, images=True)
    nameless = _with_images(stored, lambda t: t.update(other=t.pop("which")))
    with pytest.raises(ResultsError, match="expected images and which in"):
        verify(nameless, images=True)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ResultsError, match="these are not the images of the record"):
        verify(stored, images=True)
    path.unlink()
    with pytest.raises(ResultsError, match="expected saved images at .*No such file"):
        verify(stored, images=True)
    without = stored.record.model_copy(update={"images": None})
    with pytest.raises(ResultsError, match="got a record without: leave out --images"):
        verify(Stored(without, stored.samples, stored.folder), images=True)


def test_images_of_real_data_are_never_saved_among_the_committed(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "mine.npz")
    grid = {"datasets": [str(path)], "victims": [save_timm(tmp_path / "w.safetensors")]}
    planned, _ = plan(suite_of(**grid, attacks=["fgsm"], ladder=["1/255"]))
    committed = COMMITTED.parent / "never"
    quiet = Console(quiet=True)
    with pytest.raises(SpecError, match="got real ones, which are never committed"):
        run_cases(planned, committed, console=quiet, command="", images=True)
    assert not committed.exists()


def test_an_invalid_record_matches_where_the_case_is_invalid_still(tmp_path: Path) -> None:
    stored = made(tmp_path, images=False)
    again = stored.record.model_copy(update={"status": "invalid", "reason": "NaN", "rungs": ()})
    found = verify(Stored(again, stored.samples, stored.folder))
    assert found.lines == ("recorded as invalid (NaN), and it ran",)
    tensors = load_file(tmp_path / "mine.safetensors")
    tensors["fc.bias"] = torch.full_like(tensors["fc.bias"], np.nan)
    save_file(tensors, tmp_path / "mine.safetensors")
    poisoned = again.case.model_copy(
        update={"victim_sha256": replan(again.case).case.victim_sha256}
    )
    record = again.model_copy(update={"case": poisoned, "case_id": poisoned.id})
    assert verify(Stored(record, stored.samples, stored.folder)).word == "match"
