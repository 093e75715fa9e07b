"""Score: the value that a board counts for each image, with its names and its format.

Only this module distinguishes accuracy from Dice; all other code uses the score of the board.
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
    """The value that is counted for each image; 1 is best, 0 is worst.

    Attributes:
        image: the function that reads the value from a samples table.
        name: the name in a sentence.
        key: the name with its meaning, above a table.
        short: the name beside a number.
        worst, clean: headings of columns; `clean` is empty if the clean score is 1 by construction
            and therefore not shown.
        axis: label of the axis of curves.
        kind: the format of a value, see text.number.
        counted, least: the texts at the top of the page on a value and on the worst case.
        sound, right: texts on the images that can be attacked: "the images that a victim ...",
            "the images ... when clean".
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
        """The name in the CSV."""
        return self.image.metric

    @property
    def attacked(self) -> bool:
        """Whether only attacked images count."""
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
    least="only if it is right when clean and no attack on its board succeeded on it",
    sound="reads right",
    right="right",
)
NOTHING = _ACCURACY  # the score of a page without boards
# any other objective on labels: the share of attacked images on which the goal is not reached; an
# image is attacked only if the clean image does not reach the goal
_UNMOVED = replace(
    _ACCURACY,
    image=GOAL_NOT_REACHED,
    name="share of goals not reached",
    key="goal not reached, % of the attacked images",
    clean="",
    axis="worst case: goal not reached, %",
    counted="the share of attacked images on which the attacker does not reach the goal",
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
    "(nothing), mean over the attacked images",
    short="1 − target Dice",
    worst="worst case of 1 − target Dice",
    clean="clean",
    axis="worst case of 1 − target Dice",
    counted="how little a segmenter draws of what the attacker wants (1 − target Dice)",
    least="with its highest target Dice under any attack on its board",
    sound="does not draw as the attacker wants by itself",
    right="not drawn as the attacker wants",
)
