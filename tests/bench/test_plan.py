"""Cases, suites and plans: stable ids, and one line for everything that is wrong."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_med import registry
from robustbench_med.bench.attack_spec import check_ladder
from robustbench_med.bench.case import Case
from robustbench_med.bench.plan import plan
from robustbench_med.bench.suite import Suite, find_suite, override, read_suite, suites
from robustbench_med.cards import Measured
from robustbench_med.errors import DataError, SpecError, UnknownNameError, VictimError
from robustbench_med.spec import number
from tests.bench.toys import MODEL, save_npz, save_timm, small_phantoms

FIELDS: dict[str, Any] = {
    "dataset": "phantom_chest",
    "data_sha256": "a" * 64,
    "split": "test",
    "n": 100,
    "victim": "chest_resnet",
    "victim_sha256": "b" * 64,
    "operating_point": "youden",
    "defense": "none",
    "defense_version": 0,
    "defense_sha256": "",
    "knowledge": "adaptive",
    "attack": "pgd",
    "attack_version": 1,
    "attack_sha256": "",
    "parameters": {"steps": 40, "reach": 2.5, "restarts": 1, "random_start": True},
    "objective": "untargeted",
    "guide": "float32",
    "channels": {},
    "draws": 1,
    "threat": "white_box",
    "surrogate": None,
    "surrogate_sha256": "",
    "norm": "linf",
    "ladder": (0.001, 0.002),
    "budget": "absolute",
    "n_fit": None,
    "train_sha256": "",
    "seed": 0,
}
OTHER: dict[str, Any] = {
    "dataset": "phantom_fundus",
    "data_sha256": "c" * 64,
    "split": "val",
    "n": None,
    "victim": "chest_vgg",
    "victim_sha256": "d" * 64,
    "operating_point": "argmax",
    "defense": "smoothing",
    "defense_version": 1,
    "defense_sha256": "0" * 64,
    "knowledge": "oblivious",
    "attack": "bim",
    "attack_version": 2,
    "attack_sha256": "0" * 64,
    "parameters": {"steps": 41, "reach": 2.5, "restarts": 1, "random_start": True},
    "objective": "targeted(target=1)",
    "guide": "bfloat16",
    "channels": {"T1": 1.0},
    "norm": "l2",
    "draws": 16,
    "threat": "transfer",
    "surrogate": "chest_vit",
    "surrogate_sha256": "e" * 64,
    "ladder": (0.001, 0.003),
    "budget": "mean_norm",
    "n_fit": 512,
    "train_sha256": "f" * 64,
    "seed": 1,
}


GOLDEN = "c07222b22e12e8ca"


@pytest.fixture(autouse=True)
def _few_images() -> Iterator[None]:
    """Stand in for the phantoms, which take seconds to draw."""
    with small_phantoms():
        yield


# --- case ----------------------------------------------------------------------------------------


def test_the_id_of_a_case_does_not_change() -> None:
    """A golden value: where it changes, every record there is becomes another case's."""
    assert Case.model_validate(FIELDS).id == GOLDEN


def test_every_field_changes_the_id() -> None:
    assert set(OTHER) == set(Case.model_fields) == set(FIELDS)
    ids = {Case.model_validate({**FIELDS, name: value}).id for name, value in OTHER.items()}
    assert len(ids | {Case.model_validate(FIELDS).id}) == len(OTHER) + 1


def test_the_order_of_a_dict_does_not_change_the_id() -> None:
    turned = {
        **dict(reversed(FIELDS.items())),
        "parameters": dict(reversed(FIELDS["parameters"].items())),
    }
    assert list(turned) != list(FIELDS)
    assert Case.model_validate(turned).id == Case.model_validate(FIELDS).id
    through = Case.model_validate_json(Case.model_validate(turned).model_dump_json())
    assert through.id == Case.model_validate(FIELDS).id


def test_a_case_has_no_unknown_field() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Case.model_validate({**FIELDS, "git_commit": "x"})


# --- attacks' cards ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.load("attacks"))
def test_a_card_says_what_its_function_takes(name: str) -> None:
    card = registry.load("attacks")[name]
    function = registry.function("attacks", card)
    assert function.__name__ == name
    signature = inspect.signature(function).parameters
    given = {key: p.default for key, p in signature.items() if key not in ("problem", "rng")}
    assert given == card.parameters
    assert {k: type(v) for k, v in given.items()} == {
        k: type(v) for k, v in card.parameters.items()
    }
    assert all(p.kind is p.KEYWORD_ONLY for k, p in signature.items() if k != "problem")
    assert registry.passes(card, card.parameters) >= 1
    assert card.source
    assert card.norms


def test_passes_follow_the_parameters() -> None:
    pgd = registry.load("attacks")["pgd"]
    assert registry.passes(pgd, {**pgd.parameters, "steps": 7, "restarts": 3}) == 21


# --- suites --------------------------------------------------------------------------------------


def suite_of(**fields: Any) -> Suite:  # noqa: ANN401 - fields of a grid
    grid = {"datasets": ["phantom_chest"], "attacks": ["fgsm"], "ladder": ["1/255"], "n": 4}
    values = {"name": "toy", "title": "Toy", "grids": [grid | fields]}
    return registry.validate(Suite, values, "test")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_shipped_suite_reads_and_names_known_things() -> None:
    assert {"quick", "medmnist"} <= set(suites())
    for name, suite in suites().items():
        assert suite.name == name
        for grid in suite.grids:
            check_ladder(tuple(map(number, grid.ladder)))
            assert set(grid.datasets) <= set(registry.load("datasets"))
    assert find_suite("quick").grids[0].ladder[0] == pytest.approx(0.5 / 255)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    text = 'title = "Mine"\n[[grids]]\ndatasets = ["phantom_chest"]\nattacks = ["fgsm"]\n'
    path = write(tmp_path / "mine.toml", text + 'ladder = ["1/255", 0.5]\n')
    suite = find_suite(str(path))
    assert suite.name == "mine"
    assert suite.grids[0].ladder == (1 / 255, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"title = ", "expected TOML in"),
        (b"\xff\xfe\x00\x01", "expected TOML in"),
        (b"title = 'x'", "grids"),
        (b"title = 'x'\ngrids = []", "grids"),
        (b"title = 'x'\n[[grids]]\nnonsense = 1", "grids.0"),
        (b"title='x'\n[[grids]]\ndatasets=['a']\nattacks=['b']\nladder=['x']", "expected .*'x'"),
        (b"title='x'\n[[grids]]\ndatasets=['a']\nattacks=['b']\nladder=[0.1]\nn=0", "grids.0.n"),
    ],
)
def test_a_suite_that_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        read_suite(path)
    assert "\n" not in str(caught.value)


def test_a_suite_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected a suite at .*nowhere\.toml"):
        find_suite(str(tmp_path / "nowhere.toml"))
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        find_suite("quik")


def test_narrowing_replaces_fields_of_every_grid() -> None:
    suite = find_suite("quick")
    found = override(suite, {"n": 3, "attacks": ["fgsm"]}, seed=9)
    assert found.seed == 9
    assert all((grid.n, grid.attacks) == (3, ("fgsm",)) for grid in found.grids)
    assert found.grids[0].datasets == suite.grids[0].datasets
    assert override(suite, {}, None) == suite


def test_narrowing_to_a_dataset_or_a_victim() -> None:
    suite = find_suite("quick")
    one = override(suite, {"datasets": ["phantom_fundus"]}, None)
    assert [grid.datasets for grid in one.grids] == [("phantom_fundus",)]
    assert one.name == "quick"
    own = override(suite, {"datasets": ["mine.npz"]}, None)
    assert (suite.save_images, one.save_images, own.save_images) == (True, True, False)
    assert own.name == "custom"  # its records do not mix with the suite's
    victim = override(suite, {"victims": ["chest_resnet"]}, None)
    assert [grid.datasets for grid in victim.grids] == [("phantom_chest",)]
    other = override(suite, {"victims": ["pneumonia_resnet"]}, None)
    assert [grid.datasets for grid in other.grids] == [("pneumoniamnist",)]
    timm = override(suite, {"victims": ["timm:resnet18(weights='w')"]}, None)
    assert timm.grids[0].datasets == suite.grids[0].datasets


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"victims": ["chest_resnt"]}, UnknownNameError, "did you mean 'chest_resnet'"),
        ({"norm": "l7"}, SpecError, "norm"),
        ({"ladder": ["abc"]}, SpecError, "literal|number"),
        ({"ladder": ["1/0"]}, SpecError, "expected a number"),
        ({"ladder": ["'a'"]}, SpecError, "expected a number"),
        ({"n": 0}, SpecError, "n"),
    ],
)
def test_narrowing_that_is_wrong(
    given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        override(find_suite("quick"), given, None)
    assert "\n" not in str(caught.value)


# --- plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        ((-0.1, 0.1), "expected eps >= 0, got -0.1"),
        ((0.0, 0.1), "expected a ladder of rising eps > 0, got 0, 0.1"),
        ((0.2, 0.1), "rising eps > 0, got 0.2, 0.1"),
        ((0.1, 0.1), "rising"),
        ((0.1, float("inf")), "expected"),
        ((float("nan"),), "expected"),
    ],
)
def test_ladders_that_are_wrong(ladder: tuple[float, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_ladder(ladder)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"attacks": ["pgdd"]}, UnknownNameError, "did you mean 'pgd'"),
        ({"attacks": ["pgd(stepz=3)"]}, SpecError, r"pgd: .* parameter \(steps, .*'stepz'"),
        ({"attacks": ["fgsm(steps=3)"]}, SpecError, r"\(loss\), got 'steps'"),
        ({"attacks": ["pgd(steps='a')"]}, SpecError, "expected steps to be of type int, got 'a'"),
        ({"attacks": ["pgd(steps=2.5)"]}, SpecError, "of type int, got 2.5"),
        ({"attacks": ["pgd(total_step=True)"]}, SpecError, "of type float, got True"),
        ({"attacks": ["pgd(random_start=1)"]}, SpecError, "of type bool, got 1"),
        ({"attacks": ["pgd("]}, SpecError, "balanced brackets"),
        ({"attacks": ["pgd(steps=open)"]}, SpecError, "literal"),
        ({"norm": "l1"}, SpecError, "fgsm: expected norm in linf, l2, got 'l1'"),
        ({"datasets": ["phantom_chst"]}, UnknownNameError, "did you mean 'phantom_chest'"),
        ({"victims": ["nobody"]}, UnknownNameError, "expected a known model, got 'nobody'"),
        ({"objective": "nonsense"}, SpecError, "expected an objective for single_label data"),
        ({"objective": "finding(index=0)"}, SpecError, "for single_label data"),
        ({"ladder": [-0.1]}, SpecError, "expected eps >= 0, got -0.1"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    fields: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        plan(suite_of(**fields))
    assert "\n" not in str(caught.value)


def test_a_whole_number_will_do_for_a_float() -> None:
    planned, _ = plan(suite_of(attacks=["pgd(total_step=3)"], victims=["chest_resnet"]))
    assert planned[0].case.parameters["total_step"] == 3


def test_defaults_are_written_out_and_versions_named() -> None:
    planned, broken = plan(suite_of(attacks=["pgd(steps=3)"], victims=["chest_resnet"]))
    assert not broken
    (one,) = planned
    assert one.case.parameters == {**registry.load("attacks")["pgd"].parameters, "steps": 3}
    assert one.case.attack_version == registry.load("attacks")["pgd"].version
    assert one.model.name == one.case.victim == "chest_resnet"
    json.dumps(one.case.model_dump(mode="json"))


def test_the_star_stands_for_every_shipped_victim_and_doubles_fall_together() -> None:
    planned, _ = plan(suite_of(attacks=["fgsm", "fgsm"], victims=["*", "chest_resnet"]))
    names = [one.case.victim for one in planned]
    assert len(set(names)) == len(names)
    shipped = [c for c in registry.load("models").values() if c.dataset == "phantom_chest"]
    assert set(names) == {card.name for card in shipped if not card.undefended}
    planned, _ = plan(suite_of(victims=["defended"]))
    retrained = {card.name for card in shipped if card.undefended}
    assert {one.case.victim for one in planned} == retrained | {"chest_resnet"}


def test_no_shipped_victim(tmp_path: Path) -> None:
    data = save_npz(tmp_path / "own.npz")
    with pytest.raises(SpecError, match="expected a victim for own, got none shipped: .*--victim"):
        plan(suite_of(datasets=[str(data)]))


def test_a_missing_file_costs_its_own_dataset_only(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone.npz")
    suite = suite_of(datasets=[missing, "phantom_chest"], victims=["chest_resnet"])
    planned, broken = plan(suite)
    assert [one.case.dataset for one in planned] == ["phantom_chest"]
    assert [one.label for one in broken] == [missing]
    assert isinstance(broken[0].error, DataError)


def test_a_timm_victim_that_does_not_fit_costs_its_own_cases_only(tmp_path: Path) -> None:
    three = save_timm(tmp_path / "w.safetensors", k=3)
    planned, broken = plan(suite_of(victims=[three, "chest_resnet"]))
    assert [one.case.victim for one in planned] == ["chest_resnet"]
    assert isinstance(broken[0].error, VictimError)
    assert "number of classes" in str(broken[0].error)


@pytest.mark.parametrize(("k", "side"), [(3, 64), (2, 32)])
def test_a_shipped_victim_that_does_not_fit_is_told_before_anything_runs(
    tmp_path: Path, k: int, side: int
) -> None:
    data = save_npz(tmp_path / "own.npz", k=k, side=side)
    planned, broken = plan(suite_of(datasets=[str(data)], victims=["chest_resnet"]))
    assert planned == []
    assert isinstance(broken[0].error, VictimError)
    assert "choose a victim trained on" in str(broken[0].error)


def test_a_validation_split_is_wanted_for_its_threshold_only(tmp_path: Path) -> None:
    data = save_npz(tmp_path / "own.npz", val_images=None, val_labels=None, val_patients=None)
    victim = save_timm(tmp_path / "w.safetensors")
    _, broken = plan(suite_of(datasets=[str(data)], victims=[victim]))
    assert "expected a validation split for the operating point" in str(broken[0].error)
    assert "--operating-point argmax" in str(broken[0].error)
    planned, broken = plan(
        suite_of(datasets=[str(data)], victims=[victim], operating_point="argmax")
    )
    assert len(planned) == 1
    assert not broken


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_id_follows_the_bytes_of_the_images(tmp_path: Path, split: str) -> None:
    victim = save_timm(tmp_path / "w.safetensors")
    path = save_npz(tmp_path / "own.npz")
    suite = suite_of(datasets=[str(path)], victims=[victim])
    before = plan(suite)[0][0].case
    with np.load(path) as file:
        changed = file[f"{split}_images"].copy()
    changed[0, 0, 0] ^= 1
    save_npz(path, **{f"{split}_images": changed})
    after = plan(suite)[0][0].case
    assert before.data_sha256 != after.data_sha256
    assert before.id != after.id
    save_npz(path)
    assert plan(suite)[0][0].case == before


def test_the_id_follows_the_bytes_of_the_weights(tmp_path: Path) -> None:
    suite = suite_of(victims=[save_timm(tmp_path / "w.safetensors")])
    before = plan(suite)[0][0].case
    save_timm(tmp_path / "w.safetensors", change=0.25)
    after = plan(suite)[0][0].case
    assert before.victim_sha256 != after.victim_sha256
    assert before.id != after.id


def test_an_estimate_is_positive_and_grows_with_the_work() -> None:
    planned, _ = plan(suite_of(attacks=["fgsm", "pgd(steps=5)", "pgd(steps=50)"], n=8))
    seconds = [one.seconds for one in planned if one.case.victim == "chest_resnet"]
    assert all(s is not None and s > 0 for s in seconds)
    assert seconds == sorted(s for s in seconds if s is not None)
    one = planned[0]
    assert one._replace(model=MODEL).estimate() is None  # a card without a timing
    slow = MODEL.model_copy(
        update={
            "measured": Measured(
                parameters=1, balanced_accuracy=1, accuracy=1, gradient_ms=1000, machine="m"
            )
        }
    )
    assert one._replace(model=slow).estimate() == 8  # images, one pass, one rung, a second each
