"""The commands `list`, `show` and `doctor`, which print cards and check this machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_med import registry
from robustbench_med.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from rich.table import Table

    from robustbench_med.cards import Card, ModelCard, PluginCard

_KINDS = ("models", "datasets", "attacks", "defenses", "suites", "studies")
_REGISTERED = _KINDS[:4]  # the kinds that the registry knows
_LINES = ("notes", "results", "what moves the numbers", "published numbers", "studies")
_PACKAGES = ("torch", "timm", "numpy", "pandas", "scikit-learn", "statsmodels")
_PEERS = ("torchattacks", "adversarial-robustness-toolbox", "foolbox")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_command)
    app.command()(show)
    app.command()(doctor)


def list_command(
    kind: Annotated[
        str, typer.Argument(help="models, datasets, attacks, defenses, suites or studies.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """List models, datasets, attacks, defenses, suites or published studies."""
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from robustbench_med.cards import DatasetCard
    from robustbench_med.datasets.access import short_way

    if kind not in _KINDS:
        raise UnknownNameError("kind", kind, _KINDS)
    cards = _cards(kind)
    origins = {name: _origin(kind, name) for name in cards}
    if as_json:
        values = [
            {**card.model_dump(mode="json"), "from": origins[name], **_access(card)}
            for name, card in cards.items()
        ]
        print(json.dumps(values, indent=2))
        return
    foreign = len(set(origins.values())) > 1
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("title")
    table.add_column("what", overflow="fold")
    if kind == "datasets":
        table.add_column("to have it")
    if foreign:
        table.add_column("from")
    for name, card in cards.items():
        more = [short_way(card)] if isinstance(card, DatasetCard) else []
        more += [origins[name]] if foreign else []
        table.add_row(name, card.title, _facts(card), *more)
    Console().print(table if cards else f"There are no {kind}.", markup=False)


def show(
    name: Annotated[
        str,
        typer.Argument(help="A name that `list` prints, or the path of a trained model's card."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a card: of an attack also each parameter, of a study its claim, rows and sources."""
    import json

    from rich.console import Console

    from robustbench_med.cards import ModelCard, PluginCard
    from robustbench_med.cli.choices import STUDIES
    from robustbench_med.cli.study_facts import study_facts, suite_facts
    from robustbench_med.studies.study import Study

    kind, card = _card(name)
    rows = _parameters(card) if isinstance(card, PluginCard) else []
    origin = name if name.endswith(".json") else _origin(kind, card.name)
    values = {**card.model_dump(mode="json"), "from": origin, **_access(card)}
    if isinstance(card, PluginCard):
        values["aliases"] = list(card.aliases)
    if as_json:
        print(json.dumps({**values, "parameters": rows} if rows else values, indent=2))
        return
    console = Console()
    word = "study" if isinstance(card, Study) else kind.removesuffix("s")
    console.print(f"{word} {card.name}", style="bold", highlight=False)
    if isinstance(card, Study) or card.name == STUDIES:
        print(_indented(study_facts(card) if isinstance(card, Study) else suite_facts(card)))
        return
    if isinstance(card, ModelCard) and not name.endswith(".json"):
        values["weights"] = _weights_words(card)
    hidden = {"name", "positive", "parameters"} if isinstance(card, PluginCard) else {"name"}
    print(_indented({key: value for key, value in values.items() if key not in hidden}))
    if rows:
        console.print(_parameter_table(rows), highlight=False)


def doctor() -> None:
    """Print versions, the device and the folders, and whether the folders can be written."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from robustbench_med.bench.store import check_writable
    from robustbench_med.cli.choices import LOCAL
    from robustbench_med.datasets.cache import cache_dir
    from robustbench_med.datasets.load import FOLDER
    from robustbench_med.errors import ResultsError
    from robustbench_med.version import __version__

    rows = [("robustbench_med", __version__), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in (*_PACKAGES, *_PEERS)]
    rows += _devices()
    rows.append(("data folder", os.environ.get(FOLDER, f"not set ({FOLDER})")))
    broken = False
    for name, folder in (("cache folder", cache_dir()), ("results folder", LOCAL.resolve())):
        try:
            check_writable(folder)
            rows.append((name, f"{folder} (writable)"))
        except ResultsError as error:
            broken = True
            rows.append((name, str(error)))
    table = Table(box=None, show_header=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
    raise typer.Exit(1 if broken else 0)


def _devices() -> list[tuple[str, str]]:
    import torch

    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    return [
        ("device", ", ".join(names) or "cpu"),
        ("threads", str(torch.get_num_threads())),
        ("cores", str(os.cpu_count())),
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" + (" (extra peers)" if name in _PEERS else "")


def _cards(kind: str) -> dict[str, Card]:
    if kind == "suites":
        from robustbench_med.bench.suite import suites
        from robustbench_med.studies.study import find_studies, suite_of

        studies_suite = suite_of(find_studies())
        return dict(sorted({**suites(), studies_suite.name: studies_suite}.items()))
    if kind == "studies":
        from robustbench_med.studies.study import studies

        return dict(studies())
    cards: dict[str, Card] = dict(registry.load(kind))  # type: ignore[call-overload]
    return cards


def _card(name: str) -> tuple[str, Card]:
    """Return the kind and the card of a name; `torchattacks:PGD` is a peer package's attack.

    Raises:
        UnknownNameError: no card has that name.
        SpecError: a plug-in of that name cannot be loaded.
    """
    if registry.is_peer(name):
        return "attacks", registry.find("attacks", name)
    if name.endswith(".json"):
        from robustbench_med.models.card_file import read_card

        return "models", read_card(name)[0]
    if ":" in name:
        return _own_card(name)
    known: list[str] = []
    for kind in _REGISTERED:
        names = registry.names(kind)  # type: ignore[arg-type]
        known += names
        with contextlib.suppress(UnknownNameError):
            return kind, registry.find(kind, name)  # type: ignore[arg-type]
    for kind in ("suites", "studies"):
        cards = _cards(kind)
        known += cards
        if name in cards:
            return kind, cards[name]
    raise UnknownNameError("name", name, known)


def _access(card: Card) -> dict[str, str]:
    """Return how a stranger gets the images of a dataset, and on what terms; of others nothing."""
    from robustbench_med.cards import DatasetCard

    if not isinstance(card, DatasetCard) or card.name not in registry.shipped("datasets"):
        return {}
    from robustbench_med.bench.suite import suites
    from robustbench_med.datasets.access import facts
    from robustbench_med.studies.study import find_studies, suite_of

    every = {**suites(), "studies": suite_of(find_studies())}
    using = [n for n, suite in every.items() if any(card.name in g.datasets for g in suite.grids)]
    return facts(card, using)


def _own_card(name: str) -> tuple[str, Card]:
    """Return the kind and the card of a function in a file of the user's own.

    Raises:
        SpecError: the file cannot be executed, or the function is neither attack nor defense.
    """
    try:
        return "attacks", registry.find("attacks", name)
    except SpecError as no_attack:
        try:
            return "defenses", registry.find("defenses", name)
        except SpecError:
            raise no_attack from None


def _origin(kind: str, name: str) -> str:
    """Return the package and version that a name comes from."""
    if kind not in _REGISTERED:
        return registry.ours()
    return registry.origin(kind, name)  # type: ignore[arg-type]


def _parameters(card: PluginCard) -> list[dict[str, Any]]:
    """Return name, type, default and meaning of each parameter."""
    return [
        {
            "name": name,
            "type": type(default).__name__,
            "default": default,
            "meaning": card.meanings.get(name, ""),
        }
        for name, default in card.parameters.items()
    ]


def _parameter_table(rows: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("parameter", "type", "default"):
        table.add_column(column, no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for row in rows:
        default = f"{row['default']:.4g}" if row["type"] == "float" else str(row["default"])
        table.add_row(row["name"], row["type"], escape(default), escape(row["meaning"]))
    return table


def _facts(card: Card) -> str:
    from robustbench_med.cards import AttackCard, DatasetCard, ModelCard

    if isinstance(card, ModelCard):
        if card.trained_here:
            return f"on {card.dataset}, trained here when needed"
        score = ", {} {:.3f}".format(*card.measured.headline) if card.measured else ""
        return f"on {card.dataset}{score}"
    if isinstance(card, DatasetCard):
        size = f"{card.size_words}x{card.channels}"
        kind = "synthetic phantom, " if card.synthetic else ""
        return f"{kind}{card.modality}, {size}, K={len(card.classes)}, {card.task}"
    if isinstance(card, AttackCard):
        inside = ", ".join(f"{key}={value}" for key, value in card.parameters.items())
        return f"{card.summary} {', '.join(card.norms)}; {card.threat}; ({inside})"
    return card.summary


def _weights_words(card: ModelCard) -> str:
    """Return the file of a victim's weights, or how it gets weights if none are shipped."""
    if not card.trained_here:
        return card.weights
    from robustbench_med.models.trained_here import home_of, is_trained

    if is_trained(card):
        return f"not shipped; trained here, in {home_of(card)}"
    return (
        "not shipped: trained here when a study needs it, or by "
        f"`python -m robustbench_med train {card.name} --data FOLDER`"
    )


def _indented(value: object, depth: int = 1) -> str:
    """Return nested dicts and lists as indented lines."""
    pad = "  " * depth
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            if inner in (None, "", [], {}):
                continue
            nested = isinstance(inner, dict) or (
                isinstance(inner, list) and isinstance(inner[0], dict)
            )
            text = "\n" + _indented(inner, depth + 1) if nested else " " + _indented(inner, 0)
            if key in _LINES:  # a sentence per line
                text = "".join(f"\n{pad}  - {line}" for line in inner)
            lines.append(f"{pad}{key}:{text}")
        return "\n".join(lines)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(_indented(inner, depth) for inner in value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value}"
