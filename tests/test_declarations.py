"""Cards that are read from source are those of the functions; a card explains its parameters."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from robustbench_med import registry
from robustbench_med.bench.attack_spec import resolve_attack
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import AttackCard, DefenseCard, PluginCard
from robustbench_med.declarations import attack, declaration_of, passes_of, read_cards
from robustbench_med.errors import SpecError, UnknownNameError

EVERY = [
    *(("attacks", card) for card in registry.shipped("attacks").values()),
    *(("defenses", card) for card in registry.shipped("defenses").values()),
]
NAMES = [card.name for _, card in EVERY]


@pytest.mark.parametrize(("kind", "card"), EVERY, ids=NAMES)
def test_source_and_function_give_one_card(kind: str, card: AttackCard | DefenseCard) -> None:
    function = registry.function(kind, card)  # type: ignore[arg-type]
    declaration = declaration_of(function)
    assert declaration is not None
    made = declaration.card(function)
    assert isinstance(made, PluginCard)
    assert made.function == f"{registry.package(kind)}.{card.function}"
    assert made.model_copy(update={"function": card.function}) == card


@pytest.mark.parametrize(("kind", "card"), EVERY, ids=NAMES)
def test_a_card_explains_every_parameter(kind: str, card: AttackCard | DefenseCard) -> None:
    assert set(card.meanings) == set(card.parameters)
    assert set(card.positive) <= set(card.parameters)
    for name, default in card.parameters.items():
        meaning = card.meanings[name]
        assert meaning.endswith("."), name
        if isinstance(default, int | float) and not isinstance(default, bool):
            signs = (">", "<", "..", " in [", " in (", "not 0", "1 or 2")
            assert any(sign in meaning for sign in signs), f"{name} states no range: {meaning}"
    assert card.summary.endswith(".")
    assert card.source


@pytest.mark.parametrize("name", registry.shipped("attacks"))
def test_the_cost_of_an_attack_is_a_number_of_passes(name: str) -> None:
    card: AttackCard = registry.find("attacks", name)
    assert set(card.effort) <= set(card.parameters)
    usual = registry.passes(card, card.parameters)
    assert usual >= 1
    more = {key: card.parameters[key] * 2 for key in card.effort}
    assert registry.passes(card, card.parameters | more) >= usual * (2 if more else 1)


def test_a_declared_parameter_is_checked_at_the_call() -> None:
    @attack(
        title="Toy",
        norms=("l2",),
        schedule="ascend",
        positive=("steps",),
        cost=lambda steps: steps,
    )
    def toy(problem: int, *, rng: int, steps: int = 3) -> int:
        """Return a number.

        Args:
            problem: none.
            rng: none.
            steps: how many,
                >= 1.
        """
        return problem + rng + steps

    assert toy(1, rng=1) == 5
    with pytest.raises(SpecError, match="expected steps > 0, got 0"):
        toy(1, rng=1, steps=0)
    declaration = declaration_of(toy)
    assert declaration is not None
    card = declaration.card(toy)
    assert isinstance(card, PluginCard)
    assert card.parameters == {"steps": 3}
    assert card.meanings == {"steps": "how many, >= 1."}
    assert passes_of(toy, {"steps": 7}) == 7
    assert list(inspect.signature(toy).parameters) == ["problem", "rng", "steps"]


def test_what_a_decorator_leaves_out_is_the_same_in_source_and_function(tmp_path: Path) -> None:
    text = (
        "from robustbench_med.declarations import attack, defense\n\n"
        "@attack(title='A', norms=('l2',), schedule='ascend', cost=lambda: 1)\n"
        "def a(problem, *, rng, size: int = 3): ...\n\n"
        "@defense(title='D', kind='detector')\n"
        "def d(victim, *, fitting, fpr: float = 1 / 20): ...\n"
    )
    (tmp_path / "own.py").write_text(text)
    names: dict[str, Any] = {"__name__": "own"}
    exec(text, names)  # noqa: S102 - the text above
    kinds: tuple[tuple[Literal["attack", "defense"], str], ...] = (
        ("attack", "a"),
        ("defense", "d"),
    )
    for kind, name in kinds:
        declaration = declaration_of(names[name])
        assert declaration is not None
        assert read_cards(kind, tmp_path) == {name: declaration.card(names[name])}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cw", "carlini_wagner"),
        ("cw_l2", "carlini_wagner"),
        ("i_fgsm", "bim"),
        ("I-FGSM", "bim"),
        ("autoattack", "ensemble"),
        ("aa", "ensemble"),
        ("sea", "segmentation_ensemble"),
        ("mim", "mi_fgsm"),
        ("sma", "asma"),
    ],
)
def test_the_names_of_the_field_are_understood(alias: str, name: str) -> None:
    assert registry.find("attacks", alias).name == name


def test_an_alias_is_nobodys_name_and_belongs_to_one() -> None:
    for kind in ("attacks", "defenses"):
        cards = registry.shipped(kind)
        aliases = [alias for card in cards.values() for alias in card.aliases]
        assert len(set(aliases)) == len(aliases)
        assert not set(aliases) & set(cards)
    with pytest.raises(UnknownNameError, match="got 'worst_case'"):
        registry.find("attacks", "worst_case")


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("pgd(eps=8/255, steps=10, step_size=2/255)", 2.5),
        ("pgd(eps=8/255, steps=10, alpha=2/255)", 2.5),
        ("bim(eps=0.1, steps=4, eps_step=0.05)", 2.0),
        ("pgd(eps=[0.1, 0.2], steps=8, rel_stepsize=0.25)", 2.0),
        ("mim(eps=0.1, alpha=0.01)", 1.0),
    ],
)
def test_a_step_may_be_given_as_papers_do(text: str, total: float) -> None:
    parameters = resolve_attack(text, Grid(datasets=["phantom_chest"], attacks=[text])).parameters
    assert parameters["total_step"] == total
    assert not {"step_size", "alpha", "eps_step", "rel_stepsize"} & set(parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pgd(eps=[0.1, 0.2], step_size=0.01)",
            "pgd: expected one radius in image",
        ),
        (
            "pgd(eps=0.1, step_size=0.01, total_step=2)",
            "got step_size and total_step",
        ),
        ("pgd(eps=0.1, alpha=-0.01)", "expected alpha > 0 and steps > 0, got -0.01, 40"),
        ("pgd(eps=0.1, alpha='a')", "expected alpha > 0 and steps > 0, got 'a', 40"),
        ("square(eps=0.1, step_size=0.01)", "square: expected a known parameter"),
    ],
)
def test_a_step_that_has_no_one_length_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_attack(text, Grid(datasets=["phantom_chest"], attacks=[text]))


def test_of_a_radius_in_other_units_a_step_has_no_absolute_length() -> None:
    text = "pgd(eps=0.1, step_size=0.01)"
    with pytest.raises(SpecError, match="expected one radius in image units"):
        resolve_attack(text, Grid(datasets=["phantom_chest"], attacks=[text], budget="mean_norm"))


def test_cards_are_read_without_torch() -> None:
    code = (
        "import sys; from robustbench_med import registry\n"
        "registry.load('attacks'), registry.load('defenses'), registry.load('models')\n"
        "assert 'torch' not in sys.modules and 'attacks' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
