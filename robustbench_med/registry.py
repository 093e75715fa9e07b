"""The registry: names to cards, and cards to functions imported when first used."""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, overload

from pydantic import BaseModel, ValidationError

from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, ModelCard
from robustbench_med.datasets.cards import load_cards
from robustbench_med.errors import SpecError, UnknownNameError

Kind = Literal["attacks", "defenses", "datasets", "models"]
CORE = Path(__file__).parent
C = TypeVar("C", bound=BaseModel)


@cache
def package(folder: str) -> str:
    """Return the import name of a folder: beside the core in a checkout, inside it in a wheel."""
    inside = f"{__package__}.{folder}"
    if importlib.util.find_spec(inside):
        return inside
    spec = importlib.util.find_spec(folder)
    if spec and spec.origin and Path(spec.origin).parent == CORE.parent / folder:
        return folder
    raise ImportError(
        f"robustbench_med is damaged: its folder {folder!r} is neither in it nor beside it"
    )


@overload
def load(kind: Literal["attacks"]) -> dict[str, AttackCard]: ...
@overload
def load(kind: Literal["defenses"]) -> dict[str, DefenseCard]: ...
@overload
def load(kind: Literal["datasets"]) -> dict[str, DatasetCard]: ...
@overload
def load(kind: Literal["models"]) -> dict[str, ModelCard]: ...
def load(kind: Kind) -> Any:
    """Return every card of `kind` by name."""
    return _load(kind)


@cache
def _load(kind: Kind) -> dict[str, Any]:
    if kind == "models":
        texts = [
            path.read_text(encoding="utf-8")
            for path in sorted((CORE / "models" / "zoo").glob("*.json"))
        ]
        return {card.name: card for card in map(ModelCard.model_validate_json, texts)}
    if kind == "datasets":
        return load_cards()
    home = Path(str(importlib.util.find_spec(package(kind)).origin)).parent  # type: ignore[union-attr]
    return _tables(home / "cards.toml", AttackCard if kind == "attacks" else DefenseCard)


def _tables(path: Path, model: type[C]) -> dict[str, C]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: model.model_validate({"name": name, **table}) for name, table in tables.items()}


def find(kind: Kind, name: str) -> Any:  # noqa: ANN401 - the overloads of load say which card
    """Return the card `name`; `package:Attack` is a peer's attack, its card made now.

    Raises:
        UnknownNameError: no such name; the message lists the known and the nearest.
        NotInstalledError: a peer's attack, and the peer is not installed.
    """
    cards = _load(kind)
    if kind == "attacks" and ":" in name:
        return _peers().card(name)
    if name not in cards:
        raise UnknownNameError(kind.removesuffix("s"), name, cards)
    return cards[name]


def is_own(victim: str) -> bool:
    """Return whether a victim is the spec of a model of one's own, and no card's name.

    >>> is_own("timm:resnet18(pretrained=True)"), is_own("segnet(weights='w')"), is_own("lungs_fcn")
    (True, True, False)
    """
    return ":" in victim or "(" in victim or victim.endswith(".py")


def _peers() -> ModuleType:
    return importlib.import_module(f"{package('attacks')}.peers")


def module(folder: str) -> ModuleType:
    """Return the package of a top-level folder, imported now."""
    return importlib.import_module(package(folder))


def function(
    kind: Literal["attacks", "defenses"], card: AttackCard | DefenseCard
) -> Callable[..., Any]:
    """Return the function behind a card, importing its module now."""
    module, name = card.function.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"{package(kind)}.{module}"), name)
    # one function drives every peer's attack: it has to be told which
    return partial(found, card.name) if kind == "attacks" and ":" in card.name else found


def validate(model: type[C], values: dict[str, Any], where: str) -> C:
    """Return `model` made of `values`, or raise SpecError with one line on what is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        *_, name = place = [str(one) for one in first["loc"]] or ["it"]
        if first["type"] == "missing":
            raise SpecError(f"{where}: expected {'.'.join(place)}, got none") from None
        if first["type"] == "extra_forbidden":
            raise SpecError(f"{where}: expected no {name!r}: there is no such setting") from None
        raise SpecError(
            f"{where}: {'.'.join(place)}: {first['msg']}, got {first['input']!r}"
        ) from None
