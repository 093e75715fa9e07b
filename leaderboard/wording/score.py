"""Score: what a board counts of each image, what that is called, and how it is written.

The one place that knows accuracy from Dice: everything else asks the board for its score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustbench_med.cards import DatasetCard
from robustbench_med.worst_case import (
    ACCURACY,
    DICE,
    GOAL_NOT_REACHED,
    TARGET_NOT_DRAWN,
    ImageScore,
    image_score,
    parse_objective,
)

from .threat_model import class_words, with_article


@dataclass(frozen=True)
class Score:
    """What is counted of each image: 1 is best, 0 worst.

    Attributes:
        image: how it is read off a samples table.
        name: what a sentence calls it.
        key: with what it means, above a table.
        short: beside a number.
        worst, clean: headings of columns; `clean` is empty where the clean score is 1 by
            construction and so no finding: it is shown nowhere.
        axis: label of the axis of curves.
        kind: how a value is written, see text.number.
        counted, least: what a number is and what the worst case is, in the words at the top.
        sound, right: images an attack can break: those a victim ..., those ... when clean.
    """

    image: ImageScore
    name: str
    key: str
    short: str
    worst: str
    clean: str
    axis: str
    kind: str
    counted: str
    least: str
    sound: str
    right: str

    @property
    def metric(self) -> str:
        """What the CSV calls it."""
        return self.image.metric

    @property
    def attacked(self) -> bool:
        """Whether only images attacked count."""
        return self.image.attacked


def score_of(card: DatasetCard, objective: str) -> Score:
    """Return the score of boards of a dataset and an objective."""
    if card.task != "segmentation":
        return _ACCURACY if objective == "untargeted" else _UNMOVED
    goal = parse_objective(objective)
    if goal.name == "targeted":
        return _UNDRAWN
    if goal.name == "region" and goal.parameters.get("name") in card.parts:
        return _region(card, str(goal.parameters["name"]), objective)
    return _DICE


def _region(card: DatasetCard, name: str, objective: str) -> Score:
    title = f"Dice of {with_article(class_words(name))}"
    return replace(
        _DICE,
        image=image_score(card, objective),
        name=title,
        key=f"{title}, from 0 to 1, mean over images",
        short=title,
        axis=f"worst-case {title}",
        sound=f"draws with a {title} of at least 0.5",
        right=f"with a {title} of at least 0.5",
    )


_ACCURACY = Score(
    image=ACCURACY,
    name="accuracy",
    key="accuracy in %",
    short="%",
    worst="worst case",
    clean="clean",
    axis="worst-case accuracy, %",
    kind="percent",
    counted="the share of images a model still classifies correctly",
    least="only if it is right when clean and no attack on its board broke it",
    sound="reads right",
    right="right",
)
NOTHING = _ACCURACY  # of a page without boards
# any other objective on labels: of the images attacked, those on which the goal is not reached;
# only images on which it is not reached when clean are attacked
_UNMOVED = replace(
    _ACCURACY,
    image=GOAL_NOT_REACHED,
    name="share of goals not reached",
    key="goal not reached, % of the images attacked",
    clean="",
    axis="worst case: goal not reached, %",
    counted="the share of the images attacked on which the attacker does not reach the goal",
    least="only if no attack on its board reached the goal on it",
    sound="does not answer as the attacker wants when clean",
    right="not answered as the attacker wants",
)
_DICE = Score(
    image=DICE,
    name="Dice",
    key="Dice from 0 to 1, mean over regions and images",
    short="Dice",
    worst="worst-case Dice",
    clean="clean Dice",
    axis="worst-case Dice",
    kind="unit",
    counted="the mean Dice of what a segmenter still draws",
    least="with its lowest Dice, clean or under any attack on its board",
    sound="draws with a Dice of at least 0.5",
    right="with a Dice of at least 0.5",
)
_UNDRAWN = replace(
    _DICE,
    image=TARGET_NOT_DRAWN,
    name="1 − target Dice",
    key="1 − target Dice: how little is drawn of what the attacker wants, from 0 (all of it) to 1 "
    "(nothing), mean over the images attacked",
    short="1 − target Dice",
    worst="worst case of 1 − target Dice",
    clean="clean",
    axis="worst case of 1 − target Dice",
    counted="how little a segmenter draws of what the attacker wants (1 − target Dice)",
    least="with the most that any attack on its board had it draw of the target",
    sound="does not draw as the attacker wants by itself",
    right="not drawn as the attacker wants",
)
