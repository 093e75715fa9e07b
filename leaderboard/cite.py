"""Write BibTeX entries for the bench and for the source of each attack and defense.

A card states its source as a short reference ("Madry et al., ICLR 2018, section 2.1"), which lacks
the title of the paper. No missing field is made up: the entry has the title of the attack, and the
whole reference in `howpublished`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from robustbench_med.cards import Card

from .boards.board import Board
from .wording.text import plain

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


def bibtex(boards: list[Board], *, versions: Iterable[str]) -> str:
    """Return an entry for the bench and one for each attack and defense with a source.

    Args:
        boards: the boards; their records hold the cards.
        versions: the versions of the bench that made the records.
    """
    cards: dict[str, Card] = {}
    for board in boards:
        for row in board.rows:
            for run in row.runs.values():
                for card in (run.record.attack_card, run.record.defense_card):
                    if card is not None and re.search(r"\b(19|20)\d\d\b", card.source):
                        cards.setdefault(card.name, card)
    bench = {
        "title": "robustbench_med: a robustness bench for medical image models",
        "author": "{The robustbench_med developers}",
        "note": f"version {_text(', '.join(versions))}" if versions else "",
    }
    entries = [_entry("software", "robustbench_med", bench)]
    entries += [_source(cards[name]) for name in sorted(cards)]
    return "\n\n".join(entries)


def _source(card: Card) -> str:
    year = re.search(r"\b(19|20)\d\d\b", card.source)
    fields = {
        "title": _text(card.title),
        "author": _authors(card.source),
        "year": year[0] if year else "",
        "howpublished": _text(card.source),
    }
    return _entry("misc", card.name, fields)


def _authors(source: str) -> str:
    """Return the names before the venue in BibTeX's form; empty if the source has other text there.

    >>> _authors("Croce, Hein, ICML 2020, section 3"), _authors("Madry et al., ICLR 2018")
    ('Croce and Hein', 'Madry and others')
    >>> _authors("Ozbulak, Van Messem, MICCAI 2019")
    'Ozbulak and {Van Messem}'
    >>> _authors("after AutoAttack: Croce, ECCV 2020")
    ''
    """
    head = source.split(";")[0].replace(" & ", ", ")
    items = [part.strip() for part in head.split(",")]
    venue = next((i for i, part in enumerate(items) if re.search(r"\d", part)), 0)
    names = items[:venue]
    if names and re.search(r"[A-Z]{2}|Journal|Imaging|Recognition", names[-1]):
        names.pop()  # the year comes after the venue
    if not names or not all(re.fullmatch(r"[A-Z][\w' -]*( et al\.)?", name) for name in names):
        return ""
    surnames = [name.removesuffix(" et al.") for name in names]
    # braces keep a surname of two words together
    surnames = [f"{{{_text(name)}}}" if " " in name else _text(name) for name in surnames]
    return " and ".join([*surnames, *(["others"] if names[-1].endswith(" et al.") else [])])


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{re.sub(r'[^A-Za-z0-9_:-]', '_', key)},", *lines, "}"])


def _text(words: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in plain(words))
