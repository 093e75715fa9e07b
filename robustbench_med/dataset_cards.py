"""Read the cards of all datasets; a table of cards.toml with `sizes` becomes one card per size."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustbench_med.cards import DatasetCard

CARDS = Path(__file__).parent / "datasets" / "cards.toml"
# MedMNIST+ 3.0.2, medmnist/info.py: the address of every file of every size.
MEDMNIST = "https://zenodo.org/records/10519652/files/{file}?download=1"
PLAIN = 28  # the size whose file name has no suffix


def load_cards(path: Path = CARDS) -> dict[str, DatasetCard]:
    """Return every dataset's card by name.

    Args:
        path: a TOML file with one table per dataset.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    cards = (
        DatasetCard.model_validate(card)
        for name, table in tables.items()
        for card in _expand(name, table)
    )
    return {card.name: card for card in cards}


def _expand(name: str, table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cards of a table; each entry of `sizes` adds its fields to the common ones."""
    shared = {key: value for key, value in table.items() if key != "sizes"}
    if "sizes" not in table:
        yield {"name": name, **shared}
    for side, entry in table.get("sizes", {}).items():
        full = name if int(side) == PLAIN else f"{name}_{side}"
        file = f"{full}.npz"
        yield {
            **shared,
            **entry,
            "name": full,
            "title": f"{shared['title']} {side}x{side}",
            "size": (int(side), int(side)),
            "file": file,
            "url": MEDMNIST.format(file=file),
            "notes": [*shared.get("notes", []), *entry.get("notes", [])],
        }
