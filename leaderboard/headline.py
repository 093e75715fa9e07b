"""Headline: the title of a page, its sentences with numbers, and a verdict for each board. Pure.

Every number comes from the rows of the boards, so that it agrees with the tables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from robustbench_med.cards import DatasetCard

from .boards.board import Board, Row
from .boards.defenses import defense_effects, defense_names
from .wording import text
from .wording.score import Score
from .wording.threat_model import native_radius

_KINDS_NAMED = 4  # most kinds of image that a title names; more are counted
# if the best worst case of a board is at most this, no model is said to withstand its attacks
_PERCENT_LOST, _DICE_LOST, _TARGET_DRAWN = 0.05, 0.5, 0.25
_ATTACKERS = {
    "white_box": "an attacker who knows the model",
    "universal": "one perturbation for all images",
    "transfer": "an attacker who owns a similar model",
    "no_box": "an attacker who owns a model trained on other data",
    "query": "an attacker who sees only its answers",
    "label": "an attacker who sees only what it decides",
    "control": "noise without any aim",
    "shift": "an ordinary scanner, operator or archive",
}


class Headline(NamedTuple):
    """The texts above the first table of a page.

    Attributes:
        title: "Robustness of 8 models on phantoms of chest X-ray and fundus".
        counts: "63 cases, 8 attacks, 8 datasets".
        sentences: how well the models do, in numbers.
        models, cases: number of models and cases.
        date: day of the newest record, YYYY-MM-DD; empty if there is none.
    """

    title: str
    counts: str
    sentences: tuple[str, ...]
    models: int
    cases: int
    date: str


def headline_of(boards: Sequence[Board]) -> Headline:
    """Return the headline of a page of `boards`."""
    rows = [row for board in boards for row in board.rows]
    records = [run.record for row in rows for run in row.runs.values()]
    datasets = {board.dataset.name: board.dataset for board in boards}
    models = {row.key.victim: row for row in rows}
    attacks = {r.case.attack for r in records if r.case.threat not in ("control", "shift")}
    shifts = {r.case.attack for r in records if r.case.threat == "shift"}
    counts = {
        "case": len({record.case_id for record in records}),
        **({"attack": len(attacks)} if attacks or not shifts else {}),
        **({"shift": len(shifts)} if shifts else {}),
        "dataset": len(datasets),
    }
    return Headline(
        title=_title(models, _defense_count(boards), list(datasets.values())),
        counts=", ".join(counted(n, word) for word, n in counts.items()),
        sentences=tuple(_sentences(boards)),
        models=len(models),
        cases=counts["case"],
        date=text.plain(max((record.provenance.started for record in records), default="")[:10]),
    )


def counted(n: int, word: str) -> str:
    """Return a number with its noun: "1 case", "2 cases"."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _defense_count(boards: Iterable[Board]) -> int:
    return len(
        {
            name
            for board in boards
            for row, price in defense_effects(board).items()
            for name in defense_names(row, price.against)
        }
    )


def _title(models: dict[str, Row], defenses: int, datasets: list[DatasetCard]) -> str:
    if not models:
        return "No model was scored"
    first = next(iter(models.values()))
    who = text.plain(first.model.title) if len(models) == 1 else counted(len(models), "model")
    shields = f", with and without {counted(defenses, 'defense')}," if defenses else ""
    return f"Robustness of {who}{shields} on {_image_words(datasets)}"


def _image_words(datasets: list[DatasetCard]) -> str:
    """Return the kinds of image in words: "phantoms of chest X-ray and fundus"."""
    kinds = list(dict.fromkeys(_kind(card) for card in sorted(datasets, key=_real_first)))
    if len(kinds) > _KINDS_NAMED:
        more = len(kinds) - _KINDS_NAMED + 1
        kinds = [*kinds[: _KINDS_NAMED - 1], f"{more} more kinds of image"]
    listed = joined(kinds)
    return f"phantoms of {listed}" if all(card.synthetic for card in datasets) else listed


def _real_first(card: DatasetCard) -> bool:
    return card.synthetic


def _kind(card: DatasetCard) -> str:
    """Return a dataset's modality without its details: "brain MRI" of "brain MRI, crop".

    Where nobody stated it, its title stands for it.
    """
    modality = text.plain(card.modality)
    if modality in ("not stated", "unknown"):
        return text.plain(card.title)
    head, _, tail = modality.partition(", ")
    return (modality if " and " in tail else head) or text.plain(card.title)


def joined(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _sentences(boards: Sequence[Board]) -> list[str]:
    """Return a sentence for each kind of score, about the boards of the most usual setting."""
    attacked = [board for board in boards if not board.control]
    by_score: dict[str, list[Board]] = {}
    for board in sorted(attacked, key=_unusual):
        by_score.setdefault(board.score.name, []).append(board)
    general = {n: b for n, b in by_score.items() if b[0].objective == "untargeted"} or by_score
    sentences, last = [], ""
    for group in general.values():
        same = [board for board in group if _setting(board) == _setting(group[0])]
        sentence, change = _sentence(same, last)
        sentences += [sentence] if sentence else []
        last = change
    return sentences


def _unusual(board: Board) -> tuple[object, ...]:
    """Return a key that sorts boards from the most usual setting to the least usual."""
    labels = board.dataset.task == "segmentation"
    threats = list(text.THREATS)
    plain = (bool(board.channels), board.budget != "absolute", board.norm != "linf", board.norm)
    return labels, board.objective != "untargeted", threats.index(board.threat), *plain


def _setting(board: Board) -> tuple[object, ...]:
    return board.threat, board.norm, board.budget, board.objective, bool(board.channels)


def _sentence(group: list[Board], last: str) -> tuple[str, str]:
    """Return a sentence on the ranked models of some boards, and the change that it names.

    It states their scores when clean and at the most common headline radius.

    Args:
        group: boards of one setting and one score.
        last: the change that the previous sentence names, which is not repeated.
    """
    headlines = Counter(board.ladder[board.headline] for board in group)
    eps = max(headlines, key=lambda radius: (headlines[radius], radius))
    clean: list[float] = []
    worst: list[float] = []
    met: list[Board] = []
    models: set[str] = set()
    for board in group:
        rung = next((i for i, e in enumerate(board.ladder) if math.isclose(e, eps)), None)
        ranked = [row for row in board.rows if row.standing == "ranked"]
        if rung is None or not ranked:
            continue
        met.append(board)
        models.update(row.key.victim for row in ranked)
        clean += [row.clean.value for row in ranked]
        worst += [row.worst[rung].value for row in ranked]
    clean, worst = ([v for v in values if math.isfinite(v)] for values in (clean, worst))
    if not worst:
        return "", last
    change = change_words(met, eps)
    when = "after a change of the same size" if change == last else f"when {change}"
    score = group[0].score
    ending = " No model withstands it." if max(worst) <= lost_below(score) else ""
    return f"{_results(score, clean, worst, len(models))} {when}.{ending}", change


def _results(score: Score, clean: list[float], worst: list[float], models: int) -> str:
    attacked = value_range(worst, score.kind)
    if score.attacked and score.kind == "percent":
        return f"The goal of the attack is not reached on {attacked} of the attacked images"
    if score.attacked:
        drawn = value_range([1 - value for value in worst], score.kind)
        who = "The model draws" if models == 1 else "The models draw"
        return f"{who} what the attacker wants with a Dice of {drawn}"
    if not clean:
        return f"Worst case: {score.name} {attacked}"
    before = value_range(clean, score.kind)
    if score.kind == "percent":
        who = "The classifier is" if models == 1 else "Classifiers are"
        return f"{who} {before} right when clean; {attacked} right"
    who = "The segmenter reaches" if models == 1 else "Segmenters reach"
    return f"{who} a {score.name} of {before} when clean; {attacked}"


def value_range(values: Sequence[float], kind: str) -> str:
    """Return the range of some values, rounded for a sentence.

    >>> value_range([0.83, 0.984], "percent"), value_range([0.5], "unit")
    ('83 to 98 %', '0.50')
    """
    factor, digits, unit = (100, 0, " %") if kind == "percent" else (1, 2, "")
    low, high = (f"{factor * bound:.{digits}f}" for bound in (min(values), max(values)))
    return (low if low == high else f"{low} to {high}") + unit


def change_words(boards: Sequence[Board], eps: float) -> str:
    """Return as a clause what the attacker may change on boards of one setting.

    E.g. "an attacker who knows the model changes every value by up to 2 grey levels of 255".
    """
    board = boards[0]
    who = _ATTACKERS.get(board.threat, "an attacker")
    radius = text.radius(eps, board.norm, board.budget)
    if board.shift:
        return f"{who} changes the images up to severity {radius}"
    if board.budget == "mean_norm":
        norm = text.NORMS.get(board.norm, board.norm)
        return f"{who} changes an image by up to {radius} of the mean {norm} norm"
    if board.norm == "linf":
        return f"{who} changes every value by up to {size_words(boards, eps)}"
    if board.norm == "l0":
        return f"{who} changes up to {radius} values"
    return f"{who} changes an image by up to {radius} in {text.NORMS.get(board.norm, board.norm)}"


def size_words(boards: Sequence[Board], eps: float) -> str:
    """Return an L∞ radius, in the units of the data if all boards have the same units."""
    natives = {native_radius(eps, board.dataset, "linf") for board in boards}
    radius = text.radius(eps, "linf")
    native = natives.pop() if len(natives) == 1 else ""
    grey = native.endswith(("grey level", "grey levels")) and native.partition(" ")[0]
    if grey and radius == f"{grey}/255":
        return f"{native} of 255"
    return f"{radius} of its range" + (f" ({native})" if native else "")


def radius_words(board: Board) -> str:
    """Return the headline radius with the units of the data: "ε = 2/255 (2 grey levels)"."""
    if board.shift or board.native_axis is not None:  # board.at has the unit
        return f"{board.sign} {board.at}"
    native = native_radius(board.ladder[board.headline], board.dataset, board.norm, board.budget)
    counts = " values" if board.norm == "l0" else ""
    norm = text.NORMS.get(board.norm, board.norm) if board.norm in ("l1", "l2") else ""
    unit = f" ({native})" if native else counts or (f" ({norm})" if norm else "")
    return f"ε = {board.at}{unit}"


def lost_below(score: Score) -> float:
    """Return the worst case up to which a model is said not to withstand its attacks."""
    if score.kind == "percent":
        return _PERCENT_LOST
    return _TARGET_DRAWN if score.attacked else _DICE_LOST


def lone_result(board: Board) -> str:
    """Return how the only model of a board does in the worst case."""
    row = board.rows[0]
    worst = row.worst[board.headline].value
    return f"{row.title} {worst_words(worst, board.score)}." if math.isfinite(worst) else ""


def worst_words(worst: float, score: Score) -> str:
    """Return what a model does in the worst case, as the end of a sentence about it.

    E.g. "is right on 45.0 % of the images", "keeps 0.496 Dice", "draws what the attacker wants with
    a Dice of 0.753".
    """
    if score.attacked and score.kind != "percent":  # the score is 1 − the Dice of the target
        return f"draws what the attacker wants with a Dice of {text.number(1 - worst, score.kind)}"
    value = text.measured(worst, score.kind, score.short)
    if score.attacked:
        return f"keeps the attacker from the goal on {value} of the attacked images"
    return f"is right on {value} of the images" if score.kind == "percent" else f"keeps {value}"


def verdict(board: Board) -> str:
    """Return a sentence on which model of a board is the most robust, or that all fail."""
    if board.control:
        return "A control is no attack, so no model is ranked."
    ranked = [row for row in board.rows if row.standing == "ranked"]
    if not ranked:
        return "No model is ranked; each row states the reason."
    best = ranked[0]
    estimate = best.worst[board.headline]
    if math.isfinite(estimate.value) and estimate.value <= lost_below(board.score):
        words = worst_words(estimate.value, board.score)
        if len(ranked) == 1:
            return f"The model does not withstand these attacks: it {words}."
        return f"No model withstands these attacks: even the best one {words}."
    if len(ranked) == 1:
        return "" if len(board.rows) == 1 else f"{best.title} is the only model ranked."
    tied = [row for row in ranked if row.ranks[board.headline] == best.ranks[board.headline]]
    if len(tied) == 1:
        others = "the other model" if len(ranked) == 2 else f"the other {len(ranked) - 1} models"
        return f"{best.title} is more robust than {others} (paired test)."
    if len(tied) > 2:
        # two of these models may still differ as a pair
        none = "none is significantly more robust than all the others"
        return f"{len(tied)} models share the first place: {none}."
    names = joined([row.title for row in tied])
    return f"{names} share the first place: their scores do not differ significantly."
