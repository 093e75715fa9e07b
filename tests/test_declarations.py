"""Cards that are read from source are those of the functions; a card explains its parameters."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from robustbench_med import registry
from robustbench_med.cards import AttackCard, DefenseCard, PluginCard
from robustbench_med.declarations import attack, declaration_of, passes_of
from robustbench_med.errors import SpecError

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


def test_cards_are_read_without_torch() -> None:
    code = (
        "import sys; from robustbench_med import registry\n"
        "registry.load('attacks'), registry.load('defenses'), registry.load('models')\n"
        "assert 'torch' not in sys.modules and 'attacks' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
