"""The registry: find cards by name, and functions by card, which are imported when first used.

Names come from three sources: this package, the entry points of other packages in the groups
`robustbench_med.attacks`, `.defenses`, `.datasets` and `.models`, and `register`, for this process.
An entry point has the name of the attack, defense, dataset or model that it provides. It is
imported when its name or the list of all cards is requested; if the import fails, one line is
logged.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import tomllib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, overload

from pydantic import BaseModel, ValidationError

from robustbench_med import user_code
from robustbench_med.augmentation import attack_of, is_augmentation
from robustbench_med.cards import AttackCard, Card, DatasetCard, DefenseCard, ModelCard, Schedule
from robustbench_med.dataset_cards import load_cards
from robustbench_med.declarations import declaration_of, own_card, passes_of, read_cards
from robustbench_med.errors import SpecError, UnknownNameError

Kind = Literal["attacks", "defenses", "datasets", "models"]
CORE = Path(__file__).parent
C = TypeVar("C", bound=BaseModel)
_NEAR = 0.7  # share of equal letters of a key that is perhaps another one, mistyped
_CARDS: dict[Kind, type[Card]] = {
    "attacks": AttackCard,
    "defenses": DefenseCard,
    "datasets": DatasetCard,
    "models": ModelCard,
}
# endings of files that are models by themselves
_FILES = (".json", ".py", ".onnx", ".ts", ".torchscript", ".pt", ".pt2")
_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A registered name.

    Attributes:
        card: the card.
        item: the function of an attack, defense or model, or a `Dataset`; None if there is only a
            card.
        origin: the package and version that provide it.
    """

    card: Any
    item: Any
    origin: str


_registered: dict[Kind, dict[str, Entry]] = {kind: {} for kind in _CARDS}


# --- find names and cards ------------------------------------------------------------------------


@overload
def load(kind: Literal["attacks"]) -> dict[str, AttackCard]: ...
@overload
def load(kind: Literal["defenses"]) -> dict[str, DefenseCard]: ...
@overload
def load(kind: Literal["datasets"]) -> dict[str, DatasetCard]: ...
@overload
def load(kind: Literal["models"]) -> dict[str, ModelCard]: ...
def load(kind: Kind) -> Any:
    """Return every card of `kind` by name, without those of plug-ins that cannot be loaded."""
    cards = dict(shipped(kind))
    for name in _entry_points(kind):
        plugin = _plugin(kind, name)
        if isinstance(plugin, Entry):
            cards[name] = plugin.card
    return cards | {name: entry.card for name, entry in _registered[kind].items()}


@cache
def shipped(kind: Kind) -> dict[str, Any]:
    """Return the cards that this package ships; plug-ins change none of them and add none."""
    if kind == "models":
        texts = [
            path.read_text(encoding="utf-8")
            for path in sorted((CORE / "models" / "zoo").glob("*.json"))
        ]
        zoo = {card.name: card for card in map(ModelCard.model_validate_json, texts)}
        return zoo | read_recipes(CORE / "models" / "recipes.toml")
    if kind == "datasets":
        return load_cards()
    home = Path(str(importlib.util.find_spec(package(kind)).origin)).parent  # type: ignore[union-attr]
    cards = read_cards("attack" if kind == "attacks" else "defense", home)
    return dict(sorted(cards.items(), key=lambda item: (*_group(item[1]), item[0])))


def read_recipes(path: Path) -> dict[str, ModelCard]:
    """Return the cards of victims whose weights are not shipped, by name.

    Args:
        path: a TOML file with one table per victim.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: validate(ModelCard, {**table, "name": name}, f"{path.name}, {name}")
        for name, table in tables.items()
    }


def _group(card: AttackCard | DefenseCard) -> tuple[int, int]:
    """Return the sort key that groups cards by kind, or by threat and schedule."""
    if isinstance(card, DefenseCard):
        return ("transform", "smoothing", "detector", "training").index(card.kind), 0
    threat = ("white_box", "query", "label", "control", "shift").index(card.threat)
    return threat, get_args(Schedule).index(card.schedule)


def names(kind: Kind) -> list[str]:
    """Return all names of `kind`; nothing is imported."""
    return list(dict.fromkeys([*shipped(kind), *_entry_points(kind), *_registered[kind]]))


def find(kind: Kind, name: str) -> Any:  # noqa: ANN401 - the overloads of load say which card
    """Return the card with a name or an alias: `cw` is an alias of `carlini_wagner`.

    `package:Attack` is an attack of a peer package, whose card is created now. `FILE.py:FUNCTION`
    is a function of the user's own; this executes the file.

    Raises:
        UnknownNameError: there is no such name; the message lists the known and the nearest names.
        SpecError: a plug-in cannot be loaded.
        NotInstalledError: the attack belongs to a peer package that is not installed.
    """
    if kind == "attacks" and is_peer(name):
        return _peers().card(name)
    entry = entry_of(kind, name)
    if entry is not None:
        return entry.card
    cards = shipped(kind)
    if name in cards:
        return cards[name]
    alias = name.lower().replace("-", "_")
    meant = [card for card in cards.values() if alias in getattr(card, "aliases", ())]
    if not meant:
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    return meant[0]


def entry_of(kind: Kind, name: str) -> Entry | None:
    """Return the entry that `register` or a plug-in provides for `name`; None if neither does.

    Raises:
        SpecError: the plug-in or the file cannot be loaded.
    """
    if name in _registered[kind]:
        return _registered[kind][name]
    if kind in ("attacks", "defenses") and user_code.split(name) is not None:
        return _of_file("attack" if kind == "attacks" else "defense", name)
    if name in shipped(kind) or name not in _entry_points(kind):
        return None
    plugin = _plugin(kind, name)
    if isinstance(plugin, str):
        raise SpecError(plugin)
    return plugin


def _of_file(kind: Literal["attack", "defense"], name: str) -> Entry:
    """Return the entry of a function in a file of the user's own.

    Raises:
        SpecError: the file cannot be executed, or its function has the wrong form.
    """
    function, sha256 = user_code.load(name)
    if kind == "attack" and is_augmentation(function):
        function = attack_of(function, name.rpartition(":")[2])
    try:
        card = own_card(kind, function)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    card = card.model_copy(update={"name": name, "function": name, "sha256": sha256})
    return Entry(card, function, f"{name.rpartition(':')[0]}, your own file")


def origin(kind: Kind, name: str) -> str:
    """Return the package and version that a name comes from."""
    entry = entry_of(kind, name)
    return ours() if entry is None else entry.origin


@cache
def ours() -> str:
    """Return the name and version of this package, in the form of `origin`."""
    return f"robustbench_med {metadata.version('robustbench-med')}"


# --- add names -----------------------------------------------------------------------------------


class Registration:
    """A name that was added to the registry, until `remove` or the end of a `with` block."""

    def __init__(self, kind: Kind, entry: Entry) -> None:
        self.card = entry.card
        self._kind = kind
        self._before = _registered[kind].get(entry.card.name)
        _registered[kind][entry.card.name] = entry

    def remove(self) -> None:
        """Remove the name; an entry that it replaced is restored."""
        _registered[self._kind].pop(self.card.name, None)
        if self._before is not None:
            _registered[self._kind][self.card.name] = self._before

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def register(kind: Kind, item: object, *, replace: bool = False) -> Registration:
    """Add an attack, defense, dataset or model to the registry of this process.

    A plain call adds it permanently; `with registry.register(...):` adds it for the block.

    Args:
        kind: "attacks", "defenses", "datasets" or "models".
        item: for an attack, a defense or a model a function declared with `@attack(...)`,
            `@defense(...)` or `@model(...)`; for a dataset a `Dataset`. A card alone describes a
            dataset's file or a model of the zoo.
        replace: whether it may replace a shipped or registered item of the same name.

    Raises:
        SpecError: the item is none of these, or its name is taken.
    """
    entry = _described(kind, item, "registered in this process")
    name = entry.card.name
    if not replace and name in names(kind):
        raise SpecError(
            f"expected a new name of {_article(kind)}, got {name!r}: {_owner(kind, name)} has it"
        )
    return Registration(kind, entry)


def registered() -> dict[Kind, dict[str, Entry]]:
    """Return the entries that were registered in this process, to pass them to another one."""
    return {kind: dict(entries) for kind, entries in _registered.items()}


def adopt(entries: Mapping[Kind, Mapping[str, Entry]]) -> None:
    """Replace the registered entries by those of another process."""
    for kind in _registered:
        _registered[kind] = dict(entries.get(kind, {}))


def refresh() -> None:
    """Look for plug-ins again, after a package was installed while this process runs."""
    _entry_points.cache_clear()
    _plugin.cache_clear()


def _described(kind: Kind, item: Any, origin: str) -> Entry:  # noqa: ANN401 - anybody's object
    """Return the entry of an item.

    Raises:
        SpecError: the item is not of this kind.
    """
    declaration = declaration_of(item)
    if declaration is not None and declaration.kind == kind.removesuffix("s"):
        return Entry(declaration.card(item), item, origin)
    if isinstance(item, _CARDS[kind]) and kind in ("datasets", "models"):
        return Entry(item, None, origin)
    if kind == "datasets":
        # a Dataset; its module imports this one
        card = getattr(item, "card", None)
        if isinstance(card, DatasetCard) and callable(getattr(item, "read", None)):
            return Entry(card, item, origin)
        raise SpecError(f"expected a Dataset or a DatasetCard, got {type(item).__name__}")
    decorator = kind.removesuffix("s")
    got = getattr(item, "__name__", type(item).__name__)
    raise SpecError(f"expected a function declared with @{decorator}(...), got {got}")


@cache
def _entry_points(kind: Kind) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of other packages by name, without those whose name is taken."""
    accepted: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=f"robustbench_med.{kind}"):
        name = point.name
        if name in shipped(kind) or name in accepted:
            owner = "robustbench_med" if name in shipped(kind) else _package(accepted[name])
            _log.warning(
                "%s: expected a new name of %s, got %r: %s has it",
                _package(point),
                _article(kind),
                name,
                owner,
            )
            continue
        accepted[name] = point
    return accepted


@cache
def _plugin(kind: Kind, name: str) -> Entry | str:
    """Import an entry point and return its entry; if this fails, return a line with the reason."""
    point = _entry_points(kind)[name]
    where = f"{_package(point)}: {kind.removesuffix('s')} {name!r} cannot be loaded"
    try:
        entry = _described(kind, point.load(), _package(point))
    except SpecError as error:
        line = f"{where}: {error}"
    except (Exception, SystemExit) as error:  # another package's import may raise anything
        line = f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"
    else:
        if entry.card.name == name:
            return entry
        line = f"{where}: expected the entry point to be called {entry.card.name!r}"
    _log.warning("%s", line)
    return line


def _package(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _owner(kind: Kind, name: str) -> str:
    if name in _registered[kind]:
        return "this process"
    return "robustbench_med" if name in shipped(kind) else _package(_entry_points(kind)[name])


def _article(kind: Kind) -> str:
    return {"attacks": "an attack", "defenses": "a defense"}.get(
        kind, f"a {kind.removesuffix('s')}"
    )


# --- find functions ------------------------------------------------------------------------------


@cache
def package(folder: str) -> str:
    """Return the import name of a folder, which is beside the core, or inside it in a wheel."""
    inside = f"{__package__}.{folder}"
    if importlib.util.find_spec(inside):
        return inside
    spec = importlib.util.find_spec(folder)
    if spec and spec.origin and Path(spec.origin).parent == CORE.parent / folder:
        return folder
    raise ImportError(
        f"robustbench_med is damaged: its folder {folder!r} is neither in it nor beside it"
    )


def module(folder: str) -> ModuleType:
    """Return the package of a top-level folder, imported now."""
    return importlib.import_module(package(folder))


def function(
    kind: Literal["attacks", "defenses"], card: AttackCard | DefenseCard
) -> Callable[..., Any]:
    """Return the function behind a card, importing its module now."""
    if kind == "attacks" and is_peer(card.name):
        # one function calls the attacks of all peer packages, so it needs the name
        return partial(_peers().attack, card.name)
    entry = entry_of(kind, card.name)
    if entry is not None:
        if entry.card.sha256 != card.sha256:
            raise SpecError(f"{card.name}: expected the code the plan saw, got other: run again")
        added: Callable[..., Any] = entry.item
        return added
    module, name = card.function.split(":")
    code = importlib.import_module(f"{package(kind)}.{module}")
    shipped_one: Callable[..., Any] = getattr(code, name)
    return shipped_one


def passes(card: AttackCard, parameters: dict[str, Any]) -> float:
    """Return the largest number of forward + backward passes per image at one radius.

    >>> passes(find("attacks", "pgd"), {"steps": 40, "restarts": 2})
    80.0
    """
    if is_peer(card.name):
        return float(_peers().passes(card.name, parameters))
    return passes_of(function("attacks", card), parameters)


def is_peer(name: str) -> bool:
    """Return whether a name is an attack of a peer package.

    >>> is_peer("torchattacks:PGD"), is_peer("mine.py:brighten"), is_peer("pgd")
    (True, False, False)
    """
    return ":" in name and user_code.split(name) is None


def is_own(victim: str) -> bool:
    """Return whether a victim is the spec or the path of a user's own model, and no name of a card.

    >>> is_own("timm:resnet18(pretrained=True)"), is_own("segnet(weights='w')"), is_own("lungs_fcn")
    (True, True, False)
    """
    return ":" in victim or "(" in victim or victim.lower().endswith(_FILES)


def _peers() -> ModuleType:
    return importlib.import_module(f"{package('attacks')}.peers")


def validate(model: type[C], values: dict[str, Any], where: str) -> C:
    """Return `model` made of `values`, or raise SpecError with one line on the first mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        *_, name = location = [str(part) for part in first["loc"]] or ["it"]
        others = [
            str(other["loc"][-1])
            for other in error.errors()
            if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]
        ]
        if first["type"] == "missing":
            near = difflib.get_close_matches(name, others, n=1, cutoff=_NEAR)
            got = f"{near[0]!r}: did you mean {name!r}?" if near else "none"
            raise SpecError(f"{where}: expected {'.'.join(location)}, got {got}") from None
        if first["type"] == "extra_forbidden":
            known = list(model.model_fields) if len(location) == 1 else []
            near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
            way = f"did you mean {near[0]!r}?" if near else "there is no such setting"
            raise SpecError(f"{where}: expected no {name!r}: {way}") from None
        raise SpecError(
            f"{where}: {'.'.join(location)}: {first['msg']}, got {first['input']!r}"
        ) from None
