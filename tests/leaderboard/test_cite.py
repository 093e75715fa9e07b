"""BibTeX: special characters, and who wrote what our cards cite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import leaderboard
from leaderboard.cite import bibtex
from robustbench_med import registry
from robustbench_med.bench.record import Stored

Maker = Callable[..., Stored]


def cited(make: Maker, name: str, source: str, title: str = "T") -> str:
    """Return the entry of an attack."""
    stored = make([6])
    changes = {"name": name, "title": title, "source": source}
    card = stored.record.attack_card.model_copy(update=changes)
    record = stored.record.model_copy(update={"attack_card": card})
    text = bibtex(leaderboard.make_boards([stored._replace(record=record)]), versions=["0.1.0"])
    return text.partition(f"@misc{{{name},")[2]


def test_every_special_character_of_tex_is_escaped(make_stored: Maker) -> None:
    entry = cited(make_stored, "a", "De~Neve et al., S^P 2020", title=r"~^_\{}&%$#")
    assert r"title = {\textasciitilde{}\textasciicircum{}\_\textbackslash{}\{\}\&\%\$\#}" in entry
    assert r"howpublished = {De\textasciitilde{}Neve et al., S\textasciicircum{}P 2020}" in entry


def test_a_surname_of_two_words_stays_one(make_stored: Maker) -> None:
    entry = cited(make_stored, "asma", "Ozbulak, Van Messem, De Neve, MICCAI 2019")
    assert "author = {Ozbulak and {Van Messem} and {De Neve}}" in entry


@pytest.mark.parametrize(
    ("name", "authors"),
    [
        ("total_variation", "Rudin and Osher and Fatemi"),
        ("universal_at", "Hirano and Minagi and Takemoto"),
    ],
)
def test_the_authors_of_a_defense_are_all_there(
    make_stored: Maker, name: str, authors: str
) -> None:
    source = registry.find("defenses", name).source
    assert f"author = {{{authors}}}" in cited(make_stored, name, source)


def test_one_paper_has_one_list_of_authors() -> None:
    cards = [*registry.load("attacks").values(), *registry.load("defenses").values()]
    universal = [card.source for card in cards if "Hirano" in card.source]
    assert len(universal) == 2
    assert all("Hirano, Minagi, Takemoto, BMC Medical Imaging" in source for source in universal)
