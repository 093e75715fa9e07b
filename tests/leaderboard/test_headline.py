"""The head of the page: its title, its sentence, and the summary of every model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import leaderboard
from leaderboard.card_sheets import paper, papers
from leaderboard.headline import headline_of, lone_result, radius_words, verdict
from leaderboard.wording import text
from robustbench_med import registry
from robustbench_med.bench.record import Stored

from .browser import Tags
from .planted import DATASETS, VICTIMS
from .planted_masks import CHEST, HEART, SEGMENTERS, make_masks
from .visible import visible_text

Maker = Callable[..., Stored]


def summary_lines(page: str) -> list[str]:
    """Return the rows of the summary of every model, as a reader sees them."""
    table = page.partition('<table class="glance">')[2].partition("</table>")[0]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in visible_text(table)]


def test_the_title_says_what_was_run(make_stored: Maker) -> None:
    one = leaderboard.make_boards([make_stored([6, 1])])
    assert (
        headline_of(one).title == "Robustness of ResNet-18 narrow on phantoms of chest radiograph"
    )
    more = [make_stored([6, 1], victim=victim) for victim in VICTIMS[:3]]
    more.append(make_stored([6, 1], dataset=DATASETS[0]))
    head = headline_of(leaderboard.make_boards(more))
    assert head.title.startswith("Robustness of 3 models on ")
    assert head.counts == "4 cases, 1 attack, 2 datasets"
    assert (head.models, head.cases, head.date) == (3, 4, "2026-01-15")
    assert headline_of([]).title == "No model was scored"


def test_the_sentence_is_made_of_the_rows(make_stored: Maker) -> None:
    # of 10 images 9 and 8 are right when clean, 6 and 2 at the middle radius
    records = [
        make_stored([0, 1, 2, 3, 6, 6, 6, 6, 6, 6]),
        make_stored([0, 0, 1, 1, 1, 1, 1, 1, 6, 6], victim=VICTIMS[1]),
    ]
    boards = leaderboard.make_boards(records)
    assert headline_of(boards).sentences == (
        "Classifiers are 80 to 90 % right when clean; 20 to 60 % right when an attacker who knows "
        "the model changes every value by up to 2 grey levels of 255.",
    )
    assert radius_words(boards[0]) == "ε = 2/255 (2 grey levels)"


def test_the_sentence_on_one_model_speaks_of_one(make_stored: Maker) -> None:
    boards = leaderboard.make_boards([make_stored([0, 6, 6, 6])])
    assert headline_of(boards).sentences[0].startswith("The classifier is 75 % right when clean")


def test_more_than_two_on_the_first_place_are_not_called_alike(make_stored: Maker) -> None:
    # the first beats the last, and nothing else is told apart
    records = [
        make_stored([6] * 20, victim=VICTIMS[0]),
        make_stored([1] * 4 + [6] * 16, victim=VICTIMS[1]),
        make_stored([1] * 8 + [6] * 12, victim=VICTIMS[2]),
    ]
    (board,) = leaderboard.make_boards(records)
    assert {row.ranks[board.headline] for row in board.rows} == {1}
    assert any(comparison.sign(board.headline) for comparison in board.rows[0].comparisons)
    assert verdict(board) == (
        "3 models share the first place: none is significantly more robust than all the others."
    )


def test_the_head_says_where_all_fail(make_stored: Maker, tmp_path: Path) -> None:
    records = [make_stored([1] * 40, victim=victim) for victim in VICTIMS[:2]]
    boards = leaderboard.make_boards(records)
    assert verdict(boards[0]).replace("\N{NO-BREAK SPACE}", " ") == (
        "No model withstands these attacks: even the best one is right on 0.0 % of the images."
    )
    (sentence,) = headline_of(boards).sentences
    assert sentence.endswith("No model withstands it.")
    page = leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
    assert any("No model withstands these attacks" in line for line in summary_lines(page))


def test_a_drawn_mask_is_told_by_the_dice_of_what_is_drawn(make_stored: Maker) -> None:
    """A reader sees how much of the attacker's mask is drawn, and not 1 minus its Dice."""
    target = [[0.0, 0.1, 0.8, 0.9]] * 6
    records = [
        make_masks(
            make_stored,
            [[0.9] * 4] * 6,
            victim=victim,
            dataset=CHEST,
            objective=HEART,
            target=target,
        )
        for victim in SEGMENTERS[:2]
    ]
    for count, words in (
        (1, "The model does not withstand these attacks: it"),
        (2, "No model withstands these attacks: even the best one"),
    ):
        (board,) = leaderboard.make_boards(records[:count])
        assert verdict(board) == f"{words} draws what the attacker wants with a Dice of 0.800."
    (sentence,) = headline_of([board]).sentences
    assert sentence.startswith("The models draw what the attacker wants with a Dice of 0.80 when")


def test_a_goal_on_labels_is_told_by_the_images_it_is_missed_on(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(
        [make_stored([1] * 19 + [6], case={"objective": "targeted(target=1)"})]
    )
    assert verdict(board).replace("\N{NO-BREAK SPACE}", " ") == (
        "The model does not withstand these attacks: it keeps the attacker from the goal on 5.0 % "
        "of the attacked images."
    )
    (sentence,) = headline_of([board]).sentences
    assert sentence.startswith("The goal of the attack is not reached on 5 % of the attacked")


def test_the_only_model_of_a_board_has_its_sentence(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([make_stored([1, 6, 6, 6])])
    assert lone_result(board).replace("\N{NO-BREAK SPACE}", " ") == (
        "ResNet-18 narrow is right on 75.0 % of the images."
    )


def test_the_summary_names_every_model_with_the_numbers_of_its_rows(
    records: list[Stored], masks: list[Stored], tmp_path: Path
) -> None:
    for place, group in enumerate((records, masks)):
        page = leaderboard.publish(group, tmp_path / str(place), title="t")
        lines = summary_lines(page.read_text(encoding="utf-8"))
        for board in leaderboard.make_boards(group):
            kind, short = board.score.kind, board.score.short
            for row in board.rows:
                worst = text.measured(row.worst[board.headline].value, kind, short)
                numbers = f"{text.measured(row.clean.value, kind, short)} | {worst}"
                numbers = numbers.replace("\N{NO-BREAK SPACE}", " ")
                assert any(row.title in line and numbers in line for line in lines), row.title


def test_names_lead_to_cards_and_cards_to_papers(mask_suite: Path) -> None:
    page = mask_suite.read_text(encoding="utf-8")
    tags = Tags(page).tags
    idents = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    cards = {link[1:] for link in links if link.startswith("#card-")}
    assert {"card-model-resnet-narrow", "card-attack-pgd"} <= cards <= idents


def test_links_lead_to_papers_and_to_https_alone(make_stored: Maker, tmp_path: Path) -> None:
    stored = make_stored([6, 1])
    for source, url, linked in (
        ("Madry et al., ICLR 2018, section 2.1", "javascript:alert(1)", True),
        ("drawn by hand", "http://plain.org/", False),
    ):
        attack = stored.record.attack_card.model_copy(update={"source": source})
        data = stored.record.dataset_card.model_copy(update={"url": url})
        record = stored.record.model_copy(update={"attack_card": attack, "dataset_card": data})
        path = leaderboard.publish([stored._replace(record=record)], tmp_path, title="t")
        tags = Tags(path.read_text(encoding="utf-8")).tags
        links = [attributes["href"] for tag, attributes in tags if tag == "a"]
        outward = [link for link in links if not link.startswith("#")]
        assert outward == (["https://arxiv.org/abs/1706.06083"] if linked else [])


def test_a_board_of_one_model_has_a_bar_per_attack(make_stored: Maker, tmp_path: Path) -> None:
    strong, weak = [6, 1, 1, 1], [6, 6, 6, 1]
    records = [make_stored(strong), make_stored(weak, attack="fgsm")]
    page = leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
    table = page.partition('<table class="attacks">')[2].partition("</table>")[0]
    assert table.count('class="bar"') == 3  # two attacks and the worst case of both
    assert table.index("fgsm") < table.index("pgd")  # weak to strong
    two = [*records, make_stored(weak, victim=VICTIMS[1])]
    page = leaderboard.publish(two, tmp_path, title="t").read_text(encoding="utf-8")
    assert '<table class="attacks">' not in page


def test_every_card_with_a_paper_links_to_it() -> None:
    cards = [*registry.load("attacks").values(), *registry.load("defenses").values()]
    dated = [card.source for card in cards if any(c.isdigit() for c in card.source)]
    assert [source for source in dated if not paper(source)] == []


def test_papers_are_https_and_without_doubles() -> None:
    assert all(text.https(address) for address in papers().values())
    assert len(set(papers().values())) == len(papers())


def test_a_modality_that_nobody_stated_is_not_in_the_title(make_stored: Maker) -> None:
    stored = make_stored([6, 1])
    card = stored.record.dataset_card.model_copy(
        update={"modality": "not stated", "title": "Mine", "synthetic": False}
    )
    record = stored.record.model_copy(update={"dataset_card": card})
    boards = leaderboard.make_boards([stored._replace(record=record)])
    assert headline_of(boards).title.endswith(" on Mine")
