"""Board and Row: what is compared, and what is known of each victim on it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

import pandas as pd

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, ModelCard
from robustbench_med.stats import Estimate

from ..wording.score import Score, score_of
from ..wording.text import NORMS, THREATS, plain, radius
from ..wording.threat_model import channel_label, channel_words, objective_words
from .columns import AttackRequest
from .image_sets import ImageSet
from .significance import ALPHA, ImageScores

Standing = Literal["ranked", "control", "flagged", "incomplete", "invalid"]
_T = TypeVar("_T")
ORDER: tuple[Standing, ...] = ("ranked", "control", "flagged", "incomplete", "invalid")


class RowKey(NamedTuple):
    """What makes a row this row and no other: the model, how it is judged, the images it saw."""

    victim: str
    defense: str
    weights: str
    operating_point: str
    draws: int
    data: str
    split: str
    n: int | None
    defense_version: int = 0
    train: str = ""

    @classmethod
    def of(cls, case: Case, attack: AttackCard, defense: DefenseCard | None) -> RowKey:
        """Return the row a case belongs to.

        Training images make a row another one where the defense was fitted on them, not where only
        the attack was.
        """
        deployed = (case.victim_sha256, case.operating_point, case.draws)
        images = (case.data_sha256, case.split, case.n)
        fitted = defense is not None and defense.fitted
        only_attack = AttackRequest(case, attack).trains and not fitted
        train = "" if only_attack else case.train_sha256
        return cls(case.victim, case.defense, *deployed, *images, case.defense_version, train)

    @property
    def images(self) -> tuple[str, str, int | None]:
        """Which images it saw."""
        return self.data, self.split, self.n


class Comparison(NamedTuple):
    """A ranked row compared with another one of its board, at each radius of the ladder.

    Attributes:
        title: of the other one.
        gain: by how much the score of this row is higher, mean over the images of both; NaN where
            one of the two was not scored.
        p: p value of no difference, Holm-corrected over the pairs of the board.
        ranks: places of the other one.
    """

    title: str
    gain: tuple[float, ...]
    p: tuple[float, ...]
    ranks: tuple[int | None, ...]

    def sign(self, rung: int) -> int:
        """Return 1 where this row is significantly better, -1 where it is worse, 0 otherwise."""
        if not self.p[rung] <= ALPHA or not self.gain[rung]:
            return 0
        return 1 if self.gain[rung] > 0 else -1


@dataclass(frozen=True, eq=False)
class Row:
    """One victim (with its defense) on a board.

    Attributes:
        runs: column of the board -> the record and samples behind it; of an attack that ran on two
            ladders the second has a column of its own here, see `repeats`.
        robust: which images are robust: a row for each image common to all runs, a column for each
            rung (0 = clean).
        scores: column -> the board's score (accuracy, Dice) at each radius of the ladder.
        worst: worst-case score at each radius of the ladder, under all attacks that ran on it;
            undefined where one that the board ranks by did not run.
        image_scores: the worst-case score of each image, and its patient; a column for each rung
            that is scored.
        ranks: place at each radius; None where the row is not ranked. Rows that do not differ
            significantly share one, see `significance`.
        sharing: how many rows have that place at each radius; 0 where the row is not ranked.
        comparisons: the other ranked rows of the board, compared with this one.
        reasons: why it is not ranked; empty where it is, and where the board ranks nobody.
        notes: what a reader should know, and what does not cost the row its place.
        crosscheck: which attacks that know less were compared with its own, in words; else empty.
        repeats: key of `runs` -> column of the board, where these differ.
        argmax: clean score where the network's own decision counts, not the operating point; None
            where the two are one.
        not_applicable: columns that this row cannot have: on a board of surrogates, attacks made
            on this very model; without a defense, attacks that mistake the defense.
        defense_title: the defense in words; empty where there is none.
        distinction: how it differs from rows of its board with the same title; else empty.
    """

    key: RowKey
    model: ModelCard
    runs: dict[str, Stored]
    robust: pd.DataFrame
    image_scores: ImageScores
    patients: int | None
    clean: Estimate
    scores: dict[str, tuple[Estimate, ...]]
    worst: tuple[Estimate, ...]
    standing: Standing = "ranked"
    reasons: tuple[str, ...] = ()
    ranks: tuple[int | None, ...] = ()
    sharing: tuple[int, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    not_applicable: frozenset[str] = frozenset()
    repeats: Mapping[str, str] = field(default_factory=dict)
    argmax: Estimate | None = None
    notes: tuple[str, ...] = ()
    crosscheck: str = ""
    defense_title: str = ""
    distinction: str = ""

    @property
    def title(self) -> str:
        """The model in words, with its defense and the number of passes that are averaged."""
        title = " + ".join(filter(None, [plain(self.model.title), self.defense_title]))
        title = title if self.key.draws == 1 else f"{title}, mean of {self.key.draws} passes"
        return f"{title} ({self.distinction})" if self.distinction else title

    @property
    def title_with_name(self) -> str:
        """The title with the name that `--victim` takes, where that is another."""
        model, name = plain(self.model.title), plain(self.key.victim)
        return self.title if name in model else f"{model} ({name}){self.title[len(model) :]}"

    @property
    def name(self) -> str:
        """The title with the name that `--victim` takes in the place of the model's own."""
        return plain(self.key.victim) + self.title[len(plain(self.model.title)) :]

    @property
    def attacked_by(self) -> frozenset[str]:
        """Columns of the board that the row has a record of."""
        return frozenset(self.repeats.get(column, column) for column in self.runs)

    @property
    def images(self) -> int:
        """Number of images the worst case is taken over."""
        return len(self.robust)

    def strongest(self, rung: int) -> str:
        """Return the column of the attack that leaves the lowest score at `rung`; empty if none.

        An oblivious one only where there is no other: it never ranks.
        """

        def order(column: str) -> tuple[bool, bool, float]:
            value = self.scores[column][rung].value
            return column in self.oblivious, math.isnan(value), value

        return min(self.scores, key=order, default="")

    @property
    def oblivious(self) -> frozenset[str]:
        """Columns whose attacker did not know of the defense."""
        cases = {column: run.record.case for column, run in self.runs.items()}
        return frozenset(c for c, case in cases.items() if case.knowledge == "oblivious")


# field of the key -> what a title adds where two rows differ in it
_DISTINCTIONS = {
    "victim": "{}",
    "operating_point": "operating point {}",
    "weights": "weights {:.8}",
    "defense": "{}",
    "defense_version": "defense version {}",
    "train": "fitted on {:.8}",
    "data": "data {:.8}",
    "split": "{} split",
    "n": "n = {}",
}


def with_distinct_titles(rows: list[Row]) -> list[Row]:
    """Return the rows of a board; where titles are equal, each says how it differs."""
    common = Counter(row.title for row in rows)
    distinct = []
    for row in rows:
        alike = [other.key for other in rows if other.title == row.title]
        words = [
            plain(form.format(getattr(row.key, name)))
            for name, form in _DISTINCTIONS.items()
            if len({getattr(key, name) for key in alike}) > 1
        ]
        if common[row.title] > 1:
            row = replace(row, distinction=", ".join(words))
        distinct.append(row)
    return distinct


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that may be compared, best worst case at the headline radius first.

    Attributes:
        ladder: every radius of its records; a row has those that its attacks ran at.
        columns: its attacks, weak to strong.
        common: the columns that a row must have to be ranked, see `cells`.
        ranked_at: place on the ladder of the radius that ranks the board; None = the middle one,
            the lower of two.
        images: what most of its records saw; None where none is valid.
        image_set: which images these are, in words, where boards of the same setting have others.
    """

    dataset: DatasetCard
    objective: str
    norm: str
    ladder: tuple[float, ...]
    budget: str
    threat: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    channels: dict[str, float] = field(default_factory=dict)
    images: ImageSet | None = None
    image_set: str = ""
    common: frozenset[str] = frozenset()
    ranked_at: int | None = None

    @property
    def score(self) -> Score:
        """What is counted of each image."""
        return score_of(self.dataset, self.objective)

    @property
    def headline(self) -> int:
        """Index of the radius that ranks the board: the middle one of the ladder most rows have."""
        return (len(self.ladder) - 1) // 2 if self.ranked_at is None else self.ranked_at

    @property
    def oblivious(self) -> frozenset[str]:
        """Columns of attackers who do not know of the defenses they meet."""
        return frozenset[str]().union(*(row.oblivious for row in self.rows))

    @property
    def control(self) -> bool:
        """Whether nothing here is an attack, so that nobody is ranked."""
        return self.threat == "control"

    @property
    def key(self) -> tuple[object, ...]:
        """What boards of different threat models have in common that can be read side by side."""
        return (*self.family, tuple(sorted(self.channels.items())))

    @property
    def family(self) -> tuple[object, ...]:
        """What boards have in common that differ in threat model and channels alone."""
        setting = (self.dataset.name, self.objective, self.norm, self.budget)
        return (*setting, self.images if self.image_set else None)

    @property
    def setting(self) -> str:
        """Threat model, norm, objective, channels, budget and images in words."""
        threat = THREATS.get(self.threat, self.threat)
        words = [threat, NORMS.get(self.norm, self.norm)]
        words.append(objective_words(self.objective, self.dataset))
        words += filter(None, [channel_words(self.channels, self.dataset)])
        if self.budget == "mean_norm":
            words.append("relative to a training image's mean norm")
        words += filter(None, [self.image_set])
        return " · ".join(words)

    @property
    def at(self) -> str:
        """The headline radius in words."""
        return radius(self.ladder[self.headline], self.norm, self.budget)


def single_row_board(board: Board, row: Row) -> Board:
    """Return a board of one row alone, with the radii that its own attacks ran at."""
    scored = [
        rung
        for rung in range(len(board.ladder))
        if not row.scores or any(math.isfinite(e[rung].value) for e in row.scores.values())
    ]
    if len(scored) == len(board.ladder) or not scored:
        return replace(board, rows=(row,))

    def cut(values: Sequence[_T]) -> tuple[_T, ...]:
        return tuple(values[rung] for rung in scored) if values else ()

    def columns(table: pd.DataFrame) -> pd.DataFrame:
        new = {0: 0} | {rung + 1: place for place, rung in enumerate(scored, 1)}
        return table.rename(columns=new)

    cut_row = replace(
        row,
        robust=columns(row.robust),
        image_scores=row.image_scores._replace(table=columns(row.image_scores.table)),
        scores={column: cut(e) for column, e in row.scores.items()},
        worst=cut(row.worst),
        ranks=cut(row.ranks),
        sharing=cut(row.sharing),
        comparisons=tuple(
            v._replace(gain=cut(v.gain), p=cut(v.p), ranks=cut(v.ranks)) for v in row.comparisons
        ),
    )
    at = scored.index(board.headline) if board.headline in scored else None
    return replace(board, rows=(cut_row,), ladder=cut(board.ladder), ranked_at=at)


def with_ids(boards: Sequence[Board]) -> list[tuple[str, Board]]:
    """Return each board with its id: the anchor of links to it, unique among these boards."""
    ids: dict[str, Board] = {}
    for board in boards:
        words = [board.dataset.name, board.norm, board.threat, board.objective]
        words += [board.budget] if board.budget != "absolute" else []
        words += [channel_label(board.channels, board.dataset)] if board.channels else []
        words += [board.image_set] if board.image_set else []
        stem = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
        numbered = (stem, *(f"{stem}-{i}" for i in range(2, 9999)))
        ids[next(name for name in numbered if name not in ids)] = board
    return list(ids.items())
