"""The page of studies: answers, numbers, quirks and sources; what is missing says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from leaderboard import write_study_page
from leaderboard.study_answers import QUESTIONS, Answer, answer
from robustbench_med.stats import Estimate
from robustbench_med.studies.readings import Change
from robustbench_med.studies.study import Question, Study
from robustbench_med.studies.verdict import Verdict

from .browser import Tags, needs_chromium, opened, violations
from .planted_studies import evidence, law, plant, planted_study, row
from .visible import visible_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FALLS = {"before": "clean", "after": "under"}
NAMES = ("Published", "As published, here", "Corrected")


def page_lines(studies: list[Study], results: Path) -> list[str]:
    page = write_study_page([evidence(study, results) for study in studies], results)
    return visible_text(page.read_text(encoding="utf-8"))


def cells(lines: list[str], start: str) -> list[str]:
    """Return the cells of the first table row that begins with a text."""
    line = next(line for line in lines if line.startswith(start) and " | " in line)
    return [cell.strip() for cell in line.split("|")]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return a study that breaks by 90 to 20 %, with a quirk that costs 30 % of it."""
    quirks = [
        {"id": "few", "what": "Few images.", "moves": "a", "without": {"n": 50}},
        {"id": "all", "what": "All images.", "moves": "a"},
    ]
    made = planted_study(
        row("a", "breaks", **FALLS), row("b", "breaks", after="lost"), quirks=quirks
    )
    plant(made, tmp_path, "a", 0.9, 0.2)
    plant(made, tmp_path, "b", 0.9, 0.9, outside=0.125)
    plant(made, tmp_path, "a.few", 0.9, 0.5)
    return made


@pytest.mark.parametrize(
    ("question", "reading", "claim", "scores", "word"),
    [
        ("breaks", "accuracy", "falls", (0.9, 0.2), "Yes"),
        ("breaks", "accuracy", "falls", (0.9, 0.9), "No"),
        ("breaks", "accuracy", "unchanged", (0.9, 0.9), "No"),
        ("breaks", "accuracy", "unchanged", (0.9, 0.2), "Yes"),
        # a score that counts the attacker's successes rises where a model breaks
        ("breaks", "fooling_of_truth", "rises", (0.9, 0.2), "Yes"),
        ("transfers", "fooling_of_truth", "rises", (0.9, 0.9), "No"),
        ("transfers", "accuracy", "falls", (0.9, 0.6), "Yes"),
        ("defended", "accuracy", "unchanged", (0.9, 0.9), "Yes"),
        ("defended", "accuracy", "falls", (0.9, 0.2), "No"),
        ("defended", "fooling_of_truth", "rises", (0.9, 0.2), "No"),
        ("control", "accuracy", "unchanged", (0.9, 0.9), "Yes"),
        ("control", "accuracy", "unchanged", (0.9, 0.2), "No"),
    ],
)
def test_a_question_is_answered_from_the_change_of_its_row(
    tmp_path: Path,
    question: Question,
    reading: str,
    claim: str,
    scores: tuple[float, float],
    word: str,
) -> None:
    made = planted_study(row("a", question, reading, claim=claim))
    plant(made, tmp_path, "a", *scores)
    found = answer(evidence(made, tmp_path), question)
    assert found.word == word
    assert found.verdict == evidence(made, tmp_path).rows[0].verdict
    silent = Answer(missing="the study does not ask this")
    for other in QUESTIONS:
        assert other == question or answer(evidence(made, tmp_path), other) == silent


@pytest.mark.parametrize(
    ("first", "after", "word"),
    [
        ("breaks", (0.2, 0.8), "Yes"),  # more is right with the defense than without it
        ("breaks", (0.2, 0.2), "No"),
        ("breaks", (0.8, 0.2), "No"),
        ("defended", (0.8, 0.8), "Yes"),  # who knows the defense gets no further
        ("defended", (0.8, 0.2), "No"),
    ],
)
def test_a_defense_holds_against_what_it_is_compared_with(
    tmp_path: Path, first: str, after: tuple[float, float], word: str
) -> None:
    made = planted_study(
        row("a", first, primary=False),
        row("b", "defended", primary=False),
        law("gain", "defended", ["a", "b"], claim="rises"),
    )
    for name, value in zip("ab", after, strict=True):
        plant(made, tmp_path, name, 0.9, value)
    found = answer(evidence(made, tmp_path), "defended")
    assert found.word == word
    assert found.numbers == "{:.0f} % → {:.0f} %".format(*(100 * value for value in after))


def test_controls_are_answered_by_all_of_them(tmp_path: Path) -> None:
    rows = [row(ident, "control", claim="unchanged") for ident in "abc"]
    made = planted_study(*rows)
    assert answer(evidence(made, tmp_path), "control").missing == "not measured yet"
    for ident, after in zip("abc", (0.9, 0.9, 0.5), strict=True):
        plant(made, tmp_path, ident, 0.9, after)
    found = answer(evidence(made, tmp_path), "control")
    assert found == Answer("No", "", Verdict.NOT_REPRODUCED, "2 of 3 unchanged")


def test_the_overview_has_a_cell_a_question_and_a_reason_for_each_dash(
    study: Study, tmp_path: Path
) -> None:
    lines = page_lines([study], tmp_path)
    line = cells(lines, "Title of toy")
    assert line == [
        "Title of toy",
        "Yes reproduced in size",
        "Published: 95 % → 10 % As published, here: 90 % → 20 % Corrected: –no corrected run "
        "answers this",
        "2.55 grey levels, SSIM .98",
        "–the study does not ask this",
        "–the study does not ask this",
        "–the study does not ask this",
        "not reproduced 1 of 2 results",
        "cannot be judged",
    ]


def test_a_row_has_its_three_scores_with_intervals_and_verdicts(
    study: Study, tmp_path: Path
) -> None:
    lines = page_lines([study], tmp_path)
    first = cells(lines, "Label of a")
    assert first[0].startswith("Label of a accuracy changed by 2.55 grey levels, SSIM .98")
    assert first[1:3] == ["Published read in the source", "95 % → 10 %"]
    here = [cells(lines[i:], "As published, here") for i in _starts(lines, "Label of a")][0]
    assert re.fullmatch(r"90 % \[8\d to 9\d\] → 20 % \[1\d to 2\d\]", here[1])
    assert here[3] == "reproduced in size"
    # the number of the other row could not be read, and its score does not change
    second = cells(lines, "Label of b")
    assert second[0].endswith("SSIM .98; 12.5 % of the values leave the valid range")
    assert first[0].endswith("SSIM .98")
    assert second[2] == "could not be verified"
    here = [cells(lines[i:], "As published, here") for i in _starts(lines, "Label of b")][0]
    assert here[3] == "not reproduced"


def _starts(lines: list[str], text: str) -> list[int]:
    return [i for i, line in enumerate(lines) if line.startswith(text) and " | " in line]


def test_a_number_before_the_attack_that_nobody_gives_is_left_out(tmp_path: Path) -> None:
    made = planted_study(row("a", "breaks", after="under"))
    plant(made, tmp_path, "a", 0.9, 0.2)
    assert cells(page_lines([made], tmp_path), "Label of a")[2] == "10 % under attack"


def test_a_study_of_transfer_alone_says_by_how_much_too(tmp_path: Path) -> None:
    made = planted_study(row("c", "control", claim="unchanged"), row("a", "transfers"))
    for name, after in (("c", 0.9), ("a", 0.4)):
        plant(made, tmp_path, name, 0.9, after)
    line = cells(page_lines([made], tmp_path), "Title of toy")
    assert line[1] == "–the study does not ask this"
    assert "As published, here: 90 % → 40 %" in line[2]
    assert line[3] == "2.55 grey levels, SSIM .98"


def test_a_quirk_says_what_it_does_to_its_number(study: Study, tmp_path: Path) -> None:
    lines = page_lines([study], tmp_path)
    few, everything = cells(lines, "Few images."), cells(lines, "All images.")
    assert few[1] == everything[1] == "Label of a"
    assert few[2].startswith("20 % [")
    assert few[3].startswith("50 % [")
    assert everything[2] == few[2]
    assert everything[3] == "it cannot be removed alone"
    other = planted_study(row("a", "breaks"), quirks=[q.model_dump() for q in study.quirks])
    plant(other, tmp_path / "new", "a", 0.9, 0.2)
    assert cells(page_lines([other], tmp_path / "new"), "Few images.")[3] == "not measured yet"


def test_every_published_number_names_its_source_and_how_sure_it_is(
    study: Study, tmp_path: Path
) -> None:
    lines = page_lines([study], tmp_path)
    assert cells(lines, "accuracy under attack") == [
        "accuracy under attack",
        "10 %",
        "read in the source",
        "table 1",
        "95.0 and 10.0",
    ]
    lost = cells(lines, "accuracy of another task")
    assert lost[1:4] == ["–unknown", "could not be verified", "a figure"]


def test_an_outcome_of_other_weights_is_named_and_not_shown(tmp_path: Path) -> None:
    made = planted_study(row("a", "breaks", **FALLS), row("b", "breaks"))
    plant(made, tmp_path, "a", 0.9, 0.2, weights=("0" * 64, "0" * 64))
    plant(made, tmp_path, "b", 0.9, 0.9)
    lines = page_lines([made], tmp_path)
    here = cells(lines[_starts(lines, "Label of a")[0] :], "As published, here")
    assert here[1] == "cannot be used made with other weights: run the study again"
    assert cells(lines, "Title of toy")[1] == "–made with other weights: run the study again"
    assert not any("90 % → 20 %" in line for line in lines)


def test_a_study_that_has_not_run_is_listed_with_its_command(study: Study, tmp_path: Path) -> None:
    waiting = planted_study(row("a", "breaks"), name="later")
    lines = page_lines([study, waiting], tmp_path)
    command = "python -m robustbench_med run studies --study later --data FOLDER"
    assert cells(lines, "Title of later") == ["Title of later", f"not run yet: {command}"]
    assert f"Not run yet. This runs it: {command}" in lines
    assert "1 of 2 studies" in lines
    # one that failed has run, and says why
    plant(waiting, tmp_path, "a", 0.9, 0.2, weights=("0" * 64, "0" * 64))
    assert not any("not run yet" in line for line in page_lines([study, waiting], tmp_path))


def test_texts_are_escaped(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>&"
    facts: Any = {"where": bad, "kind": "table", "certainty": "read", "quote": bad}
    made = planted_study(
        row("a", "breaks", label=bad, score=bad, after="r"),
        title=bad,
        summary=bad,
        source=bad,
        protocol=bad,
        substitute=bad,
        conclusion=bad,
        quirks=[{"id": "q", "what": bad, "moves": "a"}],
        references=[{"id": "r", "of": bad, "value": 0.1, **facts}],
    )
    plant(made, tmp_path, "a", 0.9, 0.2)
    page = write_study_page([evidence(made, tmp_path)], tmp_path).read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&amp;") >= 11
    assert "img" not in {tag for tag, _ in Tags(page).tags}


def test_the_page_needs_nothing_but_itself_and_its_links_lead_somewhere(
    study: Study, tmp_path: Path
) -> None:
    (tmp_path / "leaderboard.html").write_text("")
    page = write_study_page([evidence(study, tmp_path)], tmp_path)
    html = page.read_text(encoding="utf-8")
    tags = Tags(html).tags
    idents = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(idents) == len(set(idents))
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert "leaderboard.html" in links
    assert {link[1:] for link in links if link.startswith("#")} <= set(idents)
    assert "http" not in html.replace("http-equiv", "")
    assert not any("style" in attributes for _, attributes in tags)  # the policy forbids them
    assert "clinical" in html


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_on_a_desk_and_on_a_phone(
    chromium: Browser, study: Study, tmp_path: Path, width: int, scheme: str
) -> None:
    waiting = planted_study(row("a", "breaks"), name="later")
    page = write_study_page([evidence(each, tmp_path) for each in (study, waiting)], tmp_path)
    view = {"width": width, "height": 844}
    with opened(chromium, page, viewport=view, color_scheme=scheme) as open_page:
        button = open_page.locator("#toy .unfold")
        assert button.is_visible() == (width < 640)
        assert open_page.locator("#toy .results").is_visible() == (width > 640)
        if width < 640:  # closed until it is asked for; a link to the study opens it
            open_page.locator(".overview a").first.click()
            open_page.locator("#toy .unfold", has_text="Hide the results").wait_for()
        for details in open_page.locator("details.fold").all():
            details.evaluate("element => { element.open = true; }")
        assert violations(open_page) == []
        assert open_page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        # nothing of the overview or of the results lies beyond the edge, to be scrolled to
        for query in (".overview td", ".overview strong", ".results .score", ".results .chip"):
            right = open_page.evaluate(
                "q => Math.max(...[...document.querySelectorAll(q)].map(e => "
                "e.getBoundingClientRect().right))",
                query,
            )
            assert 0 < right <= width, query
        marks = open_page.locator(".results .plot").count()
        assert marks == 3  # two measured rows, and one published number


def test_a_corrected_run_that_says_otherwise_is_named(tmp_path: Path) -> None:
    made = planted_study(row("a", "transfers", "fooling_of_truth", claim="rises"))
    plant(made, tmp_path, "a", 0.9, 0.9)
    found = evidence(made, tmp_path)
    falls = Change(
        Estimate(value=0.9, low=0.8, high=0.95),
        Estimate(value=0.3, low=0.2, high=0.4),
        Estimate(value=-0.6, low=-0.7, high=-0.5),
    )
    # of images still right, so it falls where the published count of successes rises
    verdict = Verdict.IN_DIRECTION
    corrected = found.rows[0]._replace(corrected=falls, corrected_verdict=verdict, flagged=True)
    both = found._replace(rows=(corrected,))
    assert answer(both, "transfers") == Answer("No", "Yes", Verdict.NOT_REPRODUCED, "10 % → 10 %")
    alone = found._replace(rows=(corrected._replace(here=None, outcome=None),))
    assert answer(alone, "transfers") == Answer("", "Yes", verdict, "90 % → 30 %")
    lines = visible_text(write_study_page([both], tmp_path).read_text(encoding="utf-8"))
    assert cells(lines, "Title of toy")[4] == "No corrected: Yes 10 % → 10 % not reproduced"
    line = cells(lines, "Corrected")
    assert line[1] == "90 % [80 to 95] → 30 % [20 to 40] a check of these runs raised a flag"
    assert line[3] == "reproduced in direction"


@pytest.mark.parametrize(
    ("low", "high", "verdict", "word"),
    [
        (-0.05, -0.01, Verdict.IN_DIRECTION, "Yes"),
        (-0.6, -0.4, Verdict.NOT_REPRODUCED, "No"),
        (-0.2, 0.05, Verdict.NOT_REPRODUCED, "Unclear"),
        (-0.4, 0.4, Verdict.CANNOT_BE_JUDGED, "Unclear"),
    ],
)
def test_a_detector_is_judged_by_what_it_is_claimed_to_keep(
    tmp_path: Path, low: float, high: float, verdict: Verdict, word: str
) -> None:
    """Its area under the curve rises, while as many images stay right or rejected."""
    wanted: dict[str, Any] = {"dataset": "phantom_chest", "victim": "chest_resnet"}
    wanted |= {"defense": "confidence", "attacks": ["pgd"], "eps": "2/255", "claim": "unchanged"}
    made = planted_study(
        row("a", "defended", "detection_auc", claim="rises", score="AUC", corrected=wanted)
    )
    middle = (low + high) / 2
    change = Change(
        Estimate(value=0.9, low=0.8, high=0.95),
        Estimate(value=0.9 + middle, low=0.1, high=0.9),
        Estimate(value=middle, low=low, high=high),
    )
    found = evidence(made, tmp_path)
    corrected = found.rows[0]._replace(corrected=change, corrected_verdict=verdict)
    both = found._replace(rows=(corrected,))
    assert answer(both, "defended").corrected == word
    lines = visible_text(write_study_page([both], tmp_path).read_text(encoding="utf-8"))
    note = "Corrected images right or rejected; PGD at 2/255 in L∞; the attacker knows the defense"
    assert cells(lines, "Corrected")[0] == note


@pytest.mark.parametrize(
    ("dataset", "reading", "fields", "words"),
    [
        ("phantom_chest", "accuracy", {}, ""),
        ("phantom_chest", "auc", {}, "images still right; "),
        (
            "phantom_chest",
            "accuracy",
            {"objective": "targeted(target=1)"},
            "images on which the goal is not reached; ",
        ),
        ("phantom_chest_organs", "dice", {}, ""),
        ("phantom_chest_organs", "iou", {}, "mean Dice; "),
        ("phantom_chest_organs", "dice", {"objective": "region(name='heart')"}, "Dice of heart; "),
        (
            "phantom_chest_organs",
            "iou",
            {"objective": "targeted(mask='heart', label=3)"},
            "1 - Dice with the wanted masks; ",
        ),
    ],
)
def test_a_corrected_score_of_another_kind_says_what_it_counts(
    tmp_path: Path, dataset: str, reading: str, fields: dict[str, str], words: str
) -> None:
    wanted = {"dataset": dataset, "victim": "v", "attacks": ["pgd"], "eps": "2/255", **fields}
    made = planted_study(row("a", "breaks", reading, corrected=wanted))
    lines = page_lines([made], tmp_path)
    assert cells(lines, "Corrected")[0] == f"Corrected {words}PGD at 2/255 in L∞"


def test_a_law_takes_its_visible_size_from_the_images_it_ends_with(tmp_path: Path) -> None:
    made = planted_study(
        row("a", "breaks", primary=False),
        row("b", "breaks", primary=False),
        law("law", "breaks", ["a", "b"]),
    )
    plant(made, tmp_path, "a", 0.9, 0.8)
    plant(made, tmp_path, "b", 0.9, 0.2, linf=(0.02,) * 100, ssim=(float("nan"),) * 100)
    line = cells(page_lines([made], tmp_path), "Title of toy")
    assert line[1:4] == [
        "Yes reproduced in direction",
        "Published: –no number known As published, here: 80 % → 20 % Corrected: –no corrected run "
        "answers this",
        "5.1 grey levels",
    ]
