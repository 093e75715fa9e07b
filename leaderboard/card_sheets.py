"""Card sheets: what the page shows about each model, attack, defense and dataset."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from robustbench_med.cards import AttackCard, Card, DatasetCard, DefenseCard, ModelCard

from .boards.board import Board
from .wording.metrics import shape_words
from .wording.text import NORMS, https, number, plain
from .wording.threat_model import range_words

_PAPERS = Path(__file__).with_name("papers.toml")
KINDS = {
    "model": "Models",
    "attack": "Attacks",
    "shift": "Acquisition shifts",
    "defense": "Defenses",
    "dataset": "Datasets",
}


class Sheet(NamedTuple):
    """The card of one registry entry as a page shows it.

    Attributes:
        ident: anchor on the page.
        title, name: its title in tables, and its registry name or spec.
        summary: one sentence; empty if the card has none.
        lines: (heading, text) pairs.
        source: its origin in words.
        address: https address of the paper or of the data; empty if none is known.
    """

    ident: str
    title: str
    name: str
    summary: str
    lines: tuple[tuple[str, str], ...]
    source: str
    address: str


def sheets(boards: Sequence[Board]) -> dict[str, list[Sheet]]:
    """Return the sheets of a page by kind (a key of KINDS), sorted by name, each name once."""
    kinds: dict[str, dict[str, Sheet]] = {kind: {} for kind in KINDS}
    for board in boards:
        dataset = board.dataset
        kinds["dataset"].setdefault(dataset.name, _sheet("dataset", dataset, _data_lines(dataset)))
        for row in board.rows:
            name = row.key.victim
            kinds["model"].setdefault(
                name, _sheet("model", row.model, _model_lines(row.model), name=name)
            )
            for run in row.runs.values():
                attack, defense = run.record.attack_card, run.record.defense_card
                kinds["shift" if attack.threat == "shift" else "attack"].setdefault(
                    attack.name, _sheet("attack", attack, _attack_lines(attack))
                )
                if defense is not None:
                    kinds["defense"].setdefault(
                        defense.name, _sheet("defense", defense, _defense_lines(defense))
                    )
    return {kind: [by_name[name] for name in sorted(by_name)] for kind, by_name in kinds.items()}


def anchor(kind: str, name: str) -> str:
    """Return the anchor of a card on the page.

    >>> anchor("model", "chest_vit")
    'card-model-chest-vit'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"card-{kind}-{slug or 'unnamed'}"


@cache
def papers() -> dict[str, str]:
    """Return the address of each paper by its reference, the longest reference first."""
    table = tomllib.loads(_PAPERS.read_text(encoding="utf-8"))
    return dict(sorted(table.items(), key=lambda item: -len(item[0])))


def paper(source: str) -> str:
    """Return the address of the first paper that a source names; empty if none is known.

    >>> paper("control; Madry et al., ICLR 2018, section 2.1"), paper("drawn here")
    ('https://arxiv.org/abs/1706.06083', '')
    """
    positions = {reference: source.find(reference) for reference in papers()}
    known = [reference for reference, position in positions.items() if position >= 0]
    return papers()[min(known, key=lambda reference: positions[reference])] if known else ""


def _sheet(kind: str, card: Card, lines: Iterable[tuple[str, str]], *, name: str = "") -> Sheet:
    name = name or card.name
    return Sheet(
        ident=anchor(kind, name),
        title=plain(card.title),
        name=plain(name),
        summary=plain(card.summary),
        lines=tuple((heading, words) for heading, words in lines if words),
        source=plain(card.source),
        address=https(getattr(card, "url", "")) or paper(card.source),
    )


def _model_lines(card: ModelCard) -> Iterator[tuple[str, str]]:
    yield "Architecture", plain(f"{card.family}, {card.builder}")
    yield "Before the network", plain(card.preprocess)
    yield "Trained on", plain(card.dataset)
    if card.recipe is not None:
        recipe = card.recipe
        with_defense = f", with the defense {recipe.defense}" if recipe.defense else ""
        yield "Training", plain(f"{recipe.epochs} epochs, seed {recipe.seed}{with_defense}")
    if card.measured is not None:
        name, value = card.measured.headline
        score = number(value, "unit") if name == "Dice" else f"{number(value)} %"
        yield "Parameters", f"{card.measured.parameters:,}"
        yield "Clean test score", f"{name} {score}"
    yield "Without the defense", plain(card.undefended)
    yield "Notes", plain("; ".join(card.notes))


def _attack_lines(card: AttackCard) -> Iterator[tuple[str, str]]:
    needs = {
        "white_box": "the model and its gradients",
        "query": "the model's answers only",
        "label": "what the model decides, without a score",
        "control": "nothing: it is a control",
        "shift": "nothing: it is what a scanner, an operator or an archive does",
    }
    yield "Needs", needs[card.threat]
    yield (
        "Measured in" if card.threat == "shift" else "Norms",
        ", ".join(NORMS[norm] for norm in card.norms),
    )
    yield "Parameters", _parameters(card.parameters)


def _defense_lines(card: DefenseCard) -> Iterator[tuple[str, str]]:
    kinds = {
        "training": "retrains the model",
        "transform": "changes the image before the model sees it",
        "detector": "rejects suspicious images",
        "smoothing": "averages the model's answers under noise",
    }
    yield "What it does", kinds[card.kind]
    yield "Parameters", _parameters(card.parameters)


def _data_lines(card: DatasetCard) -> Iterator[tuple[str, str]]:
    yield "Modality", f"{plain(card.modality)}, {shape_words(card)}"
    yield "Range", range_words(card)
    yield "Licence", plain(card.licence)
    yield "Notes", plain("; ".join(card.notes))


def _parameters(parameters: dict[str, object]) -> str:
    return plain(", ".join(f"{key} = {value}" for key, value in parameters.items()))
