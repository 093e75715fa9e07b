"""Own sizes: what cannot be run on images that keep their own sizes is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_med.bench.attack_spec import ResolvedAttack
from robustbench_med.bench.defense_spec import ResolvedDefense
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import SEVERITY, DatasetCard
from robustbench_med.errors import SpecError


def of_own_sizes(attacks: Sequence[ResolvedAttack], grid: Grid) -> list[ResolvedAttack]:
    """Return the attacks of a suite without those that make one perturbation for all images.

    Those that the user named stay, and are refused by `check_own_sizes`.
    """
    alone = [attack for attack in attacks if attack.card.schedule != "universal"]
    return list(attacks) if grid.stated or not alone else alone


def check_own_sizes(
    card: DatasetCard,
    grid: Grid,
    attacks: Sequence[ResolvedAttack],
    defenses: Sequence[ResolvedDefense],
) -> None:
    """Raise SpecError if a grid needs images of one size, and those of the data keep their own."""
    if not card.sizes_differ:
        return
    needing = [
        f"{attack.card.name} makes one perturbation for all images"
        for attack in attacks
        if attack.card.schedule == "universal"
    ]
    needing += [f"{d.text} is fitted on images of one size" for d in defenses if d.fitted]
    if grid.surrogates or any(defense.knowledge != "adaptive" for defense in defenses):
        needing.append("images that are crafted on another model are kept in one size")
    if grid.objective.startswith("targeted") and card.task == "segmentation":
        needing.append("a target is drawn in masks of one size")
    if grid.norm == SEVERITY and card.task == "segmentation":
        needing.append("masks that move along with the anatomy are kept in one size")
    if needing:
        raise SpecError(
            f"{card.name}: expected images of one size, got images that keep their own: "
            f'{needing[0]}; state size = [h, w] in place of size = "native" in the card file'
        )
