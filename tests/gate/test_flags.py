"""A flag that keeps a row from ranking fails the gate, unless it is accepted by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leaderboard import make_boards
from robustbench_med.bench import store
from robustbench_med.bench.checks import NAMES
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.gate.fixture import Robustness
from robustbench_med.gate.flags import accepted, judge
from tests.bench.lies import LIES, Lying
from tests.bench.toys import dataset_of
from tests.regression.test_shipped import QUICK, RECORDS
from tests.toys import Small, grey_images

READ = store.read(RECORDS / "quick" / QUICK["chest_resnet deepfool"])
SPEC = "pgd(eps=0.02, steps=8)"
LIE = "gradients_disagree"
FLAG = Flag(name=LIE, meaning="They lie.", value=0.5, threshold=0.0)


def flagged(*flags: Flag, **changes: Any) -> Stored:  # noqa: ANN401
    """Return a shipped record with other flags."""
    return READ._replace(record=READ.record.model_copy(update={"flags": flags, **changes}))


def over(count: int) -> dict[str, Any]:
    assert READ.record.audit is not None
    return {"audit": READ.record.audit.model_copy(update={"over_budget": count})}


# --- which, and in what words ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_that_unranks_a_row_is_refused_in_the_words_of_the_page(name: str) -> None:
    stored = flagged(FLAG.model_copy(update={"name": name}))
    found = judge([stored], ())
    assert found.refused == (name,)
    ((row,),) = (board.rows for board in make_boards([stored]))
    assert row.standing == "flagged"
    (reason,) = row.reasons
    (line,) = found.lines
    assert line.endswith(reason.partition(": ")[2])
    said = found.message("robustness")
    assert "They lie (measured " in said
    assert f"{name} in {stored.record.case.label}" in said
    assert f"robustness(..., accept=('{name}',))" in said
    assert judge([stored], (name,)).refused == ()


def test_a_budget_that_no_flag_speaks_of_is_refused_too() -> None:
    stored = flagged(**over(3))
    assert judge([stored], ()).refused == ("over_budget",)
    assert len(flagged(FLAG, **over(3)).record.doubts) == 2
    assert flagged(**over(0)).record.doubts == ()


def test_of_several_flags_those_accepted_are_told_and_the_others_refused() -> None:
    other = FLAG.model_copy(update={"name": "zero_gradients"})
    found = judge([flagged(FLAG), flagged(other), flagged(FLAG)], ("zero_gradients",))
    assert found.refused == (LIE,)
    assert len(found.lines) == 2
    assert found.message("robustness").startswith("expected numbers that nothing gives a reason")
    assert [line.startswith("accepted: zero_gradients in ") for line in found.accepted] == [True]


def test_what_the_record_is_flagged_for_is_nothing_new() -> None:
    now = flagged(FLAG)
    assert judge([now], (), flagged(FLAG)).refused == ()
    assert "flagged as in its record" in judge([now], (), flagged(FLAG)).accepted[0]
    checked = READ.record.checks
    without = flagged(checks=tuple(check for check in checked if check.name != LIE))
    assert judge([now], (), without).lines[0].endswith("its record was made without this check")


def test_names_that_no_check_has_are_refused() -> None:
    assert accepted(LIE) == accepted([LIE]) == (LIE,)
    with pytest.raises(UnknownNameError, match="did you mean 'gradients_disagree'"):
        accepted(("gradient_disagree",))
    for wrong in (3, None, [3], True):
        with pytest.raises(SpecError, match="expected accept as names of flags, got"):
            accepted(wrong)


# --- a module that lies ---------------------------------------------------------------------------


def lying(lie: str = "opposite", seed: int = 3) -> Lying:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = Small(1, 2).eval()
    module = LIES[lie](body) if lie else Lying(body)
    assert isinstance(module, Lying)
    return module.eval()


def data_of(seed: int = 3) -> Dataset:
    """Return images whose truth is what the honest network calls them."""
    x = grey_images(32, side=12, seed=5)
    module = lying("", seed)
    with torch.no_grad():
        logits = module(x)
    y = (logits[:, 0] - logits[:, 1] > (logits[:, 0] - logits[:, 1]).median()).logical_not().long()
    return dataset_of(x, y, 2)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def gate(tmp_path: Path, told: list[str]) -> Robustness:
    return Robustness(cache=tmp_path / "cache", tell=told.append)


def failure(ask: Any) -> str:  # noqa: ANN401 - a call without arguments
    with pytest.raises(pytest.fail.Exception) as failed:
        ask()
    return str(failed.value)


def test_a_lying_module_fails_the_threshold_and_can_be_accepted(
    gate: Robustness, told: list[str]
) -> None:
    data = data_of()
    found = gate(lying(""), data, SPEC)
    assert 0 <= found.accuracy <= found.clean
    for lie in ("opposite", "in grad mode"):
        said = failure(lambda lie=lie: gate(lying(lie), data, SPEC))
        assert "gradients_disagree in " in said or "answers_differ_under_attack in " in said
        assert "the module's own forward operations" in said
        assert "accept=(" in said
    assert told == []
    assert gate(lying(), data, SPEC, accept=LIE).accuracy >= 0
    assert told[0].startswith("accepted: gradients_disagree in ")
    assert "expected a known flag to accept" in failure(
        lambda: gate(lying(), data, SPEC, accept="lies")
    )


def test_the_marker_accepts_for_all_calls(tmp_path: Path, told: list[str]) -> None:
    gate = Robustness(cache=tmp_path, settings={"accept": (LIE,)}, tell=told.append)
    assert gate(lying(), data_of(), SPEC).accuracy >= 0
    assert len(told) == 1


def test_a_module_that_begins_to_lie_fails_its_record(
    gate: Robustness, tmp_path: Path, told: list[str]
) -> None:
    home, data = tmp_path / "records", data_of()
    update = Robustness(cache=gate.cache, update=True, tell=told.append)
    update.holds(home, lying(""), data, SPEC, name="net")
    written = {path: path.read_bytes() for path in home.glob("*/record.json")}
    said = failure(lambda: gate.holds(home, lying(), data, SPEC, name="net"))
    assert "its record has no such flag" in said
    assert "robustness.holds(..., accept=('gradients_disagree',))" in said
    assert f"record: {home}" in said
    assert gate.holds(home, lying(), data, SPEC, name="net", accept=LIE).holds
    assert gate.holds(home, lying(), data, SPEC, name="net", at=0).holds
    # nor is it written unless its flag is accepted
    said = failure(lambda: update.holds(home, lying(), data, SPEC, name="net"))
    assert said.startswith("not written: expected numbers")
    assert {path: path.read_bytes() for path in home.glob("*/record.json")} == written
    del told[:]
    update.holds(home, lying(), data, SPEC, name="net", accept=LIE)
    assert [line.split()[0] for line in told] == ["wrote", "accepted:"]
    (path,) = home.glob("*/record.json")
    assert [flag["name"] for flag in json.loads(path.read_text())["flags"]] == [LIE]
    del told[:]
    assert gate.holds(home, lying(), data, SPEC, name="net").holds  # nothing new
    assert told[0].startswith("flagged as in its record: gradients_disagree")


def test_a_weaker_and_lying_module_is_said_to_be_both(gate: Robustness, tmp_path: Path) -> None:
    home, data = tmp_path / "records", data_of()
    Robustness(cache=gate.cache, update=True, tell=print).holds(
        home, lying(""), data, "pgd(eps=0.0001, steps=4)", name="net"
    )
    away = lying()
    with torch.no_grad():
        for one in away.body.get_submodule("head").parameters():
            one.neg_()
    said = failure(lambda: gate.holds(home, away, data, "pgd(eps=0.0001, steps=4)", name="net"))
    assert "dropped from" in said
    assert LIE in said
