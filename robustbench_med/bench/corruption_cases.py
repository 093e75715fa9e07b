"""The cases of MedMNIST-C: one for each corruption that the table of a data set has."""

from __future__ import annotations

from robustbench_med.bench.attack_spec import ResolvedAttack
from robustbench_med.cards import DatasetCard
from robustbench_med.corruption_tables import (
    ATTACK,
    check_levels,
    corruption_tables,
    find_corruption,
    table_of,
)
from robustbench_med.errors import SpecError


def each_corruption(attacks: list[ResolvedAttack], card: DatasetCard) -> list[ResolvedAttack]:
    """Return the attacks with the table of the data, and one for each corruption of a table.

    Raises:
        SpecError: the data are not of MedMNIST and no table is stated, a severity is that of no
            level, or the images are not of 8 bits.
    """
    every: list[ResolvedAttack] = []
    for attack in attacks:
        every += _each(attack, card) if attack.card.name == ATTACK else [attack]
    return every


def _each(attack: ResolvedAttack, card: DatasetCard) -> list[ResolvedAttack]:
    check_levels(attack.ladder)
    if card.levels != 255:
        raise SpecError(
            f"{ATTACK}: expected images of 8 bits, which the corruptions are defined for, got "
            f"{card.levels + 1} stored values ({card.name})"
        )
    table, corruption = (str(attack.parameters[key]) for key in ("table", "corruption"))
    if table == "auto":
        known = ", ".join(sorted(corruption_tables()))
        table = table_of(card.name) or ""
        if not table:
            raise SpecError(
                f"{ATTACK}: expected a table for {card.name}, which is not of MedMNIST: write "
                f"{ATTACK}(table='...') with one of {known}"
            )
    if corruption != "all":
        names: tuple[str, ...] = (corruption,)
    elif table in corruption_tables():
        names = corruption_tables()[table].built
    else:
        names = ("",)
    for name in names:
        find_corruption(table, name)
    return [
        attack._replace(parameters={**attack.parameters, "table": table, "corruption": name})
        for name in names
    ]
