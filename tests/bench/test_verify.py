"""Verify: a record is recomputed by rerunning its case, or from its saved images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from robustbench_med import registry
from robustbench_med.bench import adversarial_images, store
from robustbench_med.bench.execute import Outcome
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Flag, Record, Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.verify import noise
from robustbench_med.bench.verify import verify as verifying
from robustbench_med.bench.verify.consistency import contradictions
from robustbench_med.bench.verify.expected import from_rerun
from robustbench_med.bench.verify.recompute import recompute_metrics
from robustbench_med.bench.verify.replay import changed, replan, run_again
from robustbench_med.bench.verify.rounding import rounded_otherwise
from robustbench_med.bench.verify.verify import verify
from robustbench_med.errors import ResultsError, SpecError, VictimError
from robustbench_med.stats import Estimate
from robustbench_med.stats.intervals import wilson
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
        "ladder": ["0.02/255", "0.6/255", "8/255"],
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


def edited(stored: Stored, change: Callable[[pd.DataFrame], None], **entries: Any) -> Stored:  # noqa: ANN401
    """Return a copy of a record with other samples and entries, all it says of them made anew."""
    samples = stored.samples.copy()
    change(samples)
    new = Stored(stored.record.model_copy(update=entries), samples, stored.folder)
    rungs = tuple(
        rung.model_copy(update={"metrics": rung.metrics | found})
        for rung, found in zip(new.record.rungs, recompute_metrics(new), strict=True)
    )
    return new._replace(record=new.record.model_copy(update={"rungs": rungs}))


def untouched(samples: pd.DataFrame) -> None:
    """Change nothing."""


@pytest.fixture(scope="module")
def rerun(kept: Stored) -> Outcome:
    """Return the case of `kept` run once more."""
    return run_again(replan(kept.record.case))


@pytest.fixture(autouse=True)
def _once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rerun the case of `kept` once for all tests that edit its record."""
    if "edited_" not in request.node.name:
        return
    again: Outcome = request.getfixturevalue("rerun")
    monkeypatch.setattr(verifying, "run_again", lambda planned, **rest: again)


def test_a_case_run_again_matches_to_the_last_sample(kept: Stored) -> None:
    found = verify(kept)
    assert found.lines == ()
    assert (found.word, found.differing, found.samples) == ("match", 0, 24)
    broken = kept.samples.groupby("eps")["success"].sum()
    assert broken.iloc[-1] > 0  # else the match says nothing of the attack


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attacks": ["fgsm"]},
        {"attacks": ["deepfool"]},
        pytest.param(
            {
                "attacks": ["uap_gradient"],
                "split": "val",
                "n_fit": 8,
                "datasets": ["phantom_fundus"],
            }
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
    assert stored.record.images.n_images > 0
    found = verify(stored, images=True)
    assert found.lines == ()
    assert (found.word, found.differing) == ("match", 0)


def test_an_image_is_saved_once_at_the_lowest_radius_it_breaks(kept: Stored) -> None:
    tensors = load_file(Path(kept.folder) / adversarial_images.FILE)
    broken = kept.samples.groupby("sample")["success"].any()
    assert len(tensors["images"]) == broken.sum()
    # in pgd's ladder, broken below is broken above by the same image
    which = tensors["which"]
    assert bool(((which[1:] == which[:-1]) | (which[:-1] < 0)).all())


def one_stands(samples: pd.DataFrame, *, near: bool = True) -> None:
    """Say of one broken image that it stands, by a hair or by far."""
    share = samples.groupby("eps")["success"].mean()
    middle = samples["eps"] == (share - 0.15).abs().idxmin()
    right = np.array(
        [row[int(y)] for row, y in zip(samples["scores"], samples["truth"], strict=True)]
    )
    rows = samples["success"] & middle
    row = (right[rows.to_numpy()].argmax() if near else right[rows.to_numpy()].argmin()).item()
    row = samples.index[rows][row]
    samples.loc[row, ["success", "correct"]] = [False, True]
    samples["prediction"] = samples["prediction"].mask(samples.index == row, samples["truth"])
    truth = int(samples.loc[row, "truth"])
    surely = 0.501 if near else 0.99
    told = [1 - surely, 1 - surely]
    told[truth] = surely
    samples["scores"] = [
        told if i == row else one for i, one in zip(samples.index, samples["scores"], strict=True)
    ]
    if math.isfinite(samples.loc[row, "distance"]):
        below = samples["sample"] == samples.loc[row, "sample"]
        larger = samples[below & samples["success"]]["eps"].min()
        samples.loc[below, "distance"] = max(larger, samples.loc[row, "distance"])
    samples.loc[row, ["ssim", "psnr"]] = np.nan


def elsewhere(stored: Stored) -> Stored:
    """Return a record as if it had been made on another processor."""
    made_by = stored.record.provenance.model_copy(update={"cpu": "another", "torch": "2.10.0"})
    return stored._replace(record=stored.record.model_copy(update={"provenance": made_by}))


def test_one_other_outcome_is_rounding_on_another_machine_alone(kept: Stored) -> None:
    nearly = edited(kept, one_stands)
    found = verify(elsewhere(nearly))
    assert found.lines == ()
    assert (found.word, found.differing) == ("within rounding", 1)
    assert "recorded with torch 2.10.0 on another; you run torch" in found.machines
    found = verify(nearly)  # the very machine of the record
    assert (found.word, found.differing) == ("mismatch", 1)
    assert "rounding does not explain this" in found.lines[-1]
    found = verify(elsewhere(nearly), images=True)  # the image that breaks it lies beside
    assert "the saved images succeed on 1 samples recorded as robust" in found.lines
    assert found.word == "mismatch"


def test_one_other_outcome_that_no_rounding_gives_is_a_mismatch(kept: Stored) -> None:
    by_far = edited(kept, partial(one_stands, near=False))
    found = verify(elsewhere(by_far))
    assert found.word == "mismatch"
    assert any(line.startswith("scores of 1 samples, such as") for line in found.lines)


def test_one_other_outcome_excuses_no_flag_and_no_effort(
    kept: Stored, rerun: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *rest = rerun.record.checks
    raised = first.model_copy(update={"value": first.threshold + 5})
    assert rerun.record.cost is not None
    spent = {"forward": 3 * rerun.record.cost.forward}
    record = rerun.record.model_copy(
        update={
            "checks": (raised, *rest),
            "cost": rerun.record.cost.model_copy(update=spent),
        }
    )
    monkeypatch.setattr(verifying, "run_again", lambda *_, **__: rerun._replace(record=record))
    found = verify(elsewhere(edited(kept, one_stands)))
    assert (found.word, found.differing) == ("mismatch", 1)
    assert f"flag {first.name}: recorded none" in found.lines[0]
    assert "cost.forward" in found.lines[1]


def test_one_image_of_a_small_class_parts_no_record_from_its_rerun() -> None:
    none, one, three = (wilson(k, 15) for k in (0, 1, 3))
    assert not one.low <= none.value  # so its interval alone would refuse it
    assert verifying._alike("flips_to_normal", none, one, 1 / 15, 1)
    assert not verifying._alike("flips_to_normal", none, three, 1 / 15, 3)
    few, more, many = (Estimate(value=v, low=v, high=v) for v in (43.0, 44.0, 46.0))
    assert verifying._alike("positives", few, more, 0.1, 1)
    assert not verifying._alike("positives", few, many, 0.1, 1)


def test_a_claim_that_is_too_good_is_a_mismatch_with_both_values(kept: Stored) -> None:
    def stand(samples: pd.DataFrame) -> None:
        samples.loc[samples["eps"] > 0, "correct"] = True
        samples.loc[samples["eps"] > 0, "prediction"] = samples["truth"]
        samples.loc[samples["eps"] > 0, "success"] = False

    for images in (False, True):
        found = verify(edited(kept, stand), images=images)
        assert found.word == "mismatch"
        line = next(one for one in found.lines if one.startswith("accuracy at eps 8/255"))
        assert "recorded 1.000 [" in line
        assert "recomputed 0." in line
        assert len(found.lines) <= 12


def test_the_recorded_interval_is_not_its_own_judge(kept: Stored) -> None:
    """All stand, says the record, and its intervals are wide enough for anything."""

    def stand(samples: pd.DataFrame) -> None:
        samples.loc[samples["eps"] > 0, "success"] = False
        n = kept.record.n
        for name in ("prediction", "correct"):
            samples[name] = np.tile(samples[name].to_numpy()[:n], len(kept.record.rungs))

    fine = edited(kept, stand)
    wide = tuple(
        rung.model_copy(
            update={
                "metrics": {
                    name: one.model_copy(update={"low": 0.0, "high": 1.0})
                    for name, one in rung.metrics.items()
                }
            }
        )
        for rung in fine.record.rungs
    )
    for rungs in (fine.record.rungs, wide):
        record = fine.record.model_copy(update={"rungs": rungs})
        for images in (False, True):
            assert verify(fine._replace(record=record), images=images).word == "mismatch"
    own = contradictions(fine._replace(record=fine.record.model_copy(update={"rungs": wide})))
    assert any("the record says" in line and "[0.000, 1.000]" in line for line in own)


def _set(name: str, value: object) -> Callable[[pd.DataFrame], None]:
    def change(samples: pd.DataFrame) -> None:
        changed: Any = value(samples[name]) if callable(value) else value
        samples[name] = changed

    return change


def _swapped(samples: pd.DataFrame) -> None:
    samples["eps"] = samples["eps"].replace({8 / 255: 0.6 / 255, 0.6 / 255: 8 / 255})


SAMPLES = {  # a column each, and whether saved images show it
    "eps swapped": (_swapped, True),
    "patient": (_set("patient", "p1"), True),
    "truth": (_set("truth", lambda one: 1 - one), True),
    "distance": (_set("distance", lambda one: one * 3), True),
    "scores": (_set("scores", lambda one: [row[::-1] for row in one]), True),
    "linf": (_set("linf", lambda one: one / 2), True),
    "l2": (_set("l2", 0.0), True),
    "attacked": (_set("attacked", True), True),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_an_edited_column_is_a_mismatch(kept: Stored, name: str) -> None:
    change, by_images = SAMPLES[name]
    swapped = kept.samples.copy()
    change(swapped)
    lying = kept._replace(samples=swapped) if name == "eps swapped" else edited(kept, change)
    for images in (False, True)[: 1 + by_images]:
        for told in (lying, elsewhere(lying)):
            found = verify(told, images=images)
            assert found.word == "mismatch"
            assert name.split()[0] in " ".join(found.lines)


def _record(**entries: Any) -> Callable[[Record], Record]:  # noqa: ANN401
    return lambda record: record.model_copy(update=entries)


def _part(name: str, **entries: Any) -> Callable[[Record], Record]:  # noqa: ANN401
    return lambda record: record.model_copy(
        update={name: getattr(record, name).model_copy(update=entries)}
    )


def _metric(name: str, **entries: float) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        last = record.rungs[-1]
        new = last.metrics[name].model_copy(update=entries)
        rung = last.model_copy(update={"metrics": last.metrics | {name: new}})
        return record.model_copy(update={"rungs": (*record.rungs[:-1], rung)})

    return change


def _rungs(**entries: Any) -> Callable[[Record], Record]:  # noqa: ANN401
    return lambda record: record.model_copy(
        update={"rungs": tuple(one.model_copy(update=entries) for one in record.rungs)}
    )


ENTRIES = {  # what was planted, and whether the record or its saved images alone show it
    "flags": (_record(flags=()), True),
    "checks": (_record(checks=()), True),
    "dataset_card.synthetic": (_part("dataset_card", synthetic=True), True),
    "model_card.title": (_part("model_card", title="Better"), True),
    "audit.over_budget": (_part("audit", over_budget=5), True),
    "audit.max_size": (_part("audit", max_size=(0.0, 0.0, 0.0)), False),
    "eps": (_rungs(eps=0.5), True),
    "metrics": (_rungs(metrics={}), True),
    "f1": (_metric("f1", value=0.9), True),
    "accuracy": (_metric("accuracy", low=0.04, high=0.05), True),
    "threshold": (_record(threshold=(0.9,)), True),
    "cost": (_part("cost", forward=1), False),
    "notes": (_record(notes=("vouched for",)), False),
    "patients": (_record(patients=99), True),
}


@pytest.fixture(scope="module")
def flagged(kept: Stored) -> Stored:
    """Return the record as if a check had raised a flag."""
    check = kept.record.checks[0]
    flag = Flag(name=check.name, meaning="", value=1.0, threshold=check.threshold)
    checks = (check.model_copy(update={"value": 1.0}), *kept.record.checks[1:])
    record = kept.record.model_copy(update={"flags": (flag,), "checks": checks})
    return kept._replace(record=record)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_edited_entry_is_a_mismatch(kept: Stored, flagged: Stored, name: str) -> None:
    change, by_images = ENTRIES[name]
    honest = flagged if name in ("flags", "checks") else kept
    lying = honest._replace(record=change(honest.record))
    for images in (False, True)[: 1 + by_images]:
        for told in (lying, elsewhere(lying)):
            found = verify(told, images=images)
            assert found.word == "mismatch"
            assert name in " ".join(found.lines)


def _one(name: str, factor: float) -> Callable[[pd.DataFrame], None]:
    """Change what one attacked image that broke is said to have measured."""

    def change(samples: pd.DataFrame) -> None:
        broke = samples.loc[samples["success"], "sample"].iloc[0]
        rows = samples["sample"] == broke
        rows &= (samples["eps"] > 0) | (name == "distance")
        samples[name] = samples[name].where(~rows, samples[name] * factor)

    return change


def _score_moved(samples: pd.DataFrame) -> None:
    """Move the score of one attacked image by 0.1, on the side of the threshold where it lies."""
    scores = [list(map(float, one)) for one in samples["scores"]]
    place = max(
        (i for i in samples.index if samples.loc[i, "eps"] > 0), key=lambda i: max(scores[i])
    )
    top = int(np.argmax(scores[place]))
    scores[place] = [one - 0.1 if k == top else one + 0.1 for k, one in enumerate(scores[place])]
    samples["scores"] = scores


def _several_stand(samples: pd.DataFrame) -> None:
    for _ in range(5):
        one_stands(samples)


ALONE = {
    "scores": _score_moved,
    "distance": _one("distance", 1.2),
    "l2": _one("l2", 1.2),
    "outcome": _several_stand,
}


@pytest.mark.parametrize("name", ALONE)
def test_an_edited_sample_is_no_noise_of_a_machine(kept: Stored, name: str) -> None:
    lying = edited(kept, ALONE[name])
    if name == "distance":
        rows = lying.samples.iloc[: kept.record.n]
        of = rows["distance"].to_numpy(float)[rows["attacked"].to_numpy(bool)]
        assert not np.array_equal(of, kept.samples["distance"].to_numpy(float)[: len(of)])
        lying = lying._replace(record=lying.record.model_copy(update={"distance": None}))
    for told in (lying, elsewhere(lying)):
        found = verify(told)
        assert found.word == "mismatch"
        assert name in " ".join(found.lines)


def test_another_rounding_of_the_case_is_within_rounding(kept: Stored) -> None:
    """What the rule is for: the same case, every layer rounded otherwise, is no mismatch."""
    with rounded_otherwise():
        other = run_again(replan(kept.record.case))
    record = other.record.model_copy(
        update={"provenance": elsewhere(kept).record.provenance, "images": None}
    )
    moved = noise.distances("scores", kept.samples, other.samples).max()
    assert moved > 0
    found = verify(Stored(record, other.samples, kept.folder))
    assert found.lines == ()
    assert found.word in ("match", "within rounding")


def test_edited_noise_is_measured_by_column_and_has_a_floor(kept: Stored, rerun: Outcome) -> None:
    claim = from_rerun(rerun)
    none = noise.noise_of(claim, claim)
    assert none.samples == 2
    assert none.values["scores"] == none.values["l2"] == 0.05
    moved = claim.samples.copy()
    moved["scores"] = [(np.asarray(one) + 0.1).tolist() for one in moved["scores"]]
    moved["success"] = ~moved["success"]
    much = noise.noise_of(claim, claim._replace(samples=moved))
    assert much.values["scores"] == pytest.approx(0.3)
    assert much.samples == 2 + 2 * kept.record.n


def test_a_foreign_table_is_a_mismatch_or_one_line(kept: Stored) -> None:
    short = kept.record.model_copy(update={"rungs": kept.record.rungs[:-1]})
    assert "scores at eps 0, " in verify(kept._replace(record=short)).lines[0]
    found = verify(kept._replace(samples=kept.samples.drop(columns="success")))
    assert found.lines == ("no column success in the samples",)
    found = verify(kept._replace(samples=kept.samples.iloc[:-1]))
    assert found.lines == ("95 rows of samples for 24 images at 4 radii",)
    for name in ("eps", "success", "attacked", "sample", "distance"):
        found = verify(edited_alone(kept, name, [["x"]] * len(kept.samples)))
        assert found.lines[0].endswith(f"of another kind than its name says: {name}")
    without = kept.record.model_copy(update={"audit": None})
    assert "expected an audit and a cost" in verify(kept._replace(record=without)).lines[0]
    with pytest.raises(ResultsError, match="expected a samples table that can be scored in"):
        verify(edited_alone(kept, "scores", "many"))


def edited_alone(stored: Stored, name: str, value: Any) -> Stored:  # noqa: ANN401 - any column
    samples = stored.samples.copy()
    samples[name] = value
    return stored._replace(samples=samples)


def test_a_record_that_names_code_is_refused_unless_asked_for(kept: Stored, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    for field in ("victim", "surrogate"):
        case = kept.record.case.model_copy(update={field: f"{tmp_path}/net.py:make"})
        foreign = kept._replace(record=kept.record.model_copy(update={"case": case}))
        with pytest.raises(SpecError, match="got one that executes .*net.py:make.*--run-code"):
            verify(foreign)
        assert not marker.exists()
    case = kept.record.case.model_copy(update={"victim": f"{tmp_path}/net.py:make"})
    with pytest.raises(VictimError, match="expected a function 'make'"):
        verify(kept._replace(record=kept.record.model_copy(update={"case": case})), code=True)
    assert marker.exists()


def test_a_metric_edited_alone_contradicts_its_samples(kept: Stored) -> None:
    rung = kept.record.rungs[-1]
    better = Estimate(value=0.99, low=0.0, high=1.0)
    rung = rung.model_copy(update={"metrics": rung.metrics | {"accuracy": better}})
    record = kept.record.model_copy(update={"rungs": (*kept.record.rungs[:-1], rung)})
    found = verify(Stored(record, kept.samples, kept.folder))
    assert found.word == "mismatch"
    assert any(
        "the record says 0.990 [0.000, 1.000], its own samples" in line for line in found.lines
    )


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
    card = store.read(COMMITTED / "4314e4d76e1d8909").record.model_card
    (tmp_path / card.weights).write_bytes(b"flipped")
    found = verify(store.read(COMMITTED / "4314e4d76e1d8909"))
    assert found.word == "mismatch"
    assert "expected sha256" in found.lines[0]


@pytest.mark.slow
def test_planning_a_committed_case_again_gives_the_same_case() -> None:
    """Every field of a case survives the way back through a grid, for all kinds of case."""
    seen = set[tuple[object, ...]]()
    for folder in store.homes_below(COMMITTED.parent):
        record = store.read(folder).record
        case = record.case
        kind = (case.attack, case.surrogate is None, case.norm, case.objective, case.budget)
        has_weights = not registry.find("models", case.victim).trained_here
        if record.dataset_card.synthetic and has_weights and kind not in seen:
            seen.add(kind)
            assert changed(case, replan(case).case) == []
    assert len(seen) > 20


def test_an_image_outside_its_ball_is_a_mismatch(tmp_path: Path) -> None:
    stored = made(tmp_path)
    moved = _with_images(stored, lambda t: t["images"].add_(0.05 * (t["images"] < 0.5)))
    found = verify(moved, images=True)
    assert found.word == "mismatch"
    assert any("images are outside their ball" in line for line in found.lines)


def test_clean_images_in_place_of_adversarial_ones_show_nothing(tmp_path: Path) -> None:
    stored = made(tmp_path)
    emptied = _with_images(stored, lambda t: t["which"].fill_(-1))
    found = verify(emptied, images=True)
    assert found.word == "mismatch"
    assert found.differing == int(stored.samples.groupby("sample")["success"].any().sum())


def _with_images(stored: Stored, change: Callable[[dict[str, torch.Tensor]], Any]) -> Stored:
    path = Path(stored.folder) / adversarial_images.FILE
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
    path = Path(stored.folder) / adversarial_images.FILE
    other = _with_images(stored, lambda t: t.update(which=t["which"][:1]))
    with pytest.raises(ResultsError, match=r"expected images of .* at 3 radii, got .* at 1"):
        verify(other, images=True)
    for which, got in ((999, "999"), (-2, "-2")):

        def move(tensors: dict[str, torch.Tensor], to: int = which) -> None:
            tensors["which"].fill_(to)

        beyond = _with_images(stored, move)
        with pytest.raises(ResultsError, match=rf"expected which in -1\.\..* got {got}\.\.{got}"):
            verify(beyond, images=True)
    flat = _with_images(stored, lambda t: t.update(which=t["which"].float()))
    with pytest.raises(ResultsError, match="expected images of float32 and which of int32"):
        verify(flat, images=True)
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
    assert found.lines == ("recorded as invalid (NaN), but the rerun is valid",)
    tensors = load_file(tmp_path / "mine.safetensors")
    tensors["fc.bias"] = torch.full_like(tensors["fc.bias"], np.nan)
    save_file(tensors, tmp_path / "mine.safetensors")
    poisoned = again.case.model_copy(
        update={"victim_sha256": replan(again.case).case.victim_sha256}
    )
    card = replan(again.case).model
    record = again.model_copy(update={"case": poisoned, "case_id": poisoned.id, "model_card": card})
    assert verify(Stored(record, stored.samples, stored.folder)).word == "match"
    other = card.model_copy(update={"title": "Better"})
    lying = Stored(record.model_copy(update={"model_card": other}), stored.samples, stored.folder)
    assert verify(lying).lines[0] == "model_card is not that of the case"


def test_correct_is_what_prediction_says(kept: Stored) -> None:
    found = contradictions(edited_alone(kept, "correct", True))
    assert found == ["correct of the samples is not whether prediction is truth"]
