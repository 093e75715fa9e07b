"""Victims whose weights are not shipped: trained here by their recipe, kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from robustbench_med import registry
from robustbench_med.cards import ModelCard
from robustbench_med.errors import VictimError
from robustbench_med.paths import cache_root

DESCRIBED = {"title", "summary", "source", "notes"}  # fields that no weight depends on
MEASURED = {"weights", "sha256", "weights_type", "measured", "returns", "output"}


def home_of(card: ModelCard) -> Path:
    """Return the folder of the weights of an unshipped victim.

    Its name holds a hash of the recipe, of the victim that it starts from and of the contents of
    its data that the card knows, so that a changed recipe finds no old weights.
    """
    texts = [card.model_dump_json(exclude=DESCRIBED | MEASURED)]
    recipe = card.recipe
    if recipe is not None and recipe.start:
        start: ModelCard = registry.find("models", recipe.start)
        texts.append(home_of(start).name if start.trained_here else start.sha256)
    texts += registry.find("datasets", card.dataset).sha256
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    return cache_root() / "victims" / f"{card.name}-{key}"


def is_trained(card: ModelCard) -> bool:
    """Return whether the weights of an unshipped victim lie in the cache folder."""
    return (home_of(card) / f"{card.name}.json").is_file()


def trained_card(card: ModelCard) -> ModelCard:
    """Return the card of an unshipped victim with its weights file, checksum and scores.

    Raises:
        VictimError: it has not been trained on this machine, or its stored card is damaged.
    """
    path = home_of(card) / f"{card.name}.json"
    way = f"`python -m robustbench_med train {card.name} --data FOLDER`"
    try:
        stored = ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VictimError(
            f"{card.name}: expected weights trained on this machine, because none are shipped, "
            f"got none: {way} trains it"
        ) from None
    except (OSError, ValidationError, UnicodeDecodeError):
        raise VictimError(f"{path}: expected the card of trained weights: {way} again") from None
    fields = {name: getattr(stored, name) for name in MEASURED}
    return card.model_copy(update=fields)
