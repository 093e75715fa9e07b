"""Board and Row: a table of victims that can be compared, and the results of each victim."""

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
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, ModelCard, NativeRange
from robustbench_med.printable import short_spec
from robustbench_med.registry import is_own
from robustbench_med.stats import Estimate

from ..wording.score import Score, score_of
from ..wording.text import NORMS, THREATS, plain, sign_of
from ..wording.threat_model import channel_label, channel_words, objective_words, radius_label
from .columns import AttackRequest
from .image_sets import ImageSet
from .significance import ALPHA, ImageScores

Standing = Literal["ranked", "control", "flagged", "incomplete", "invalid"]
_T = TypeVar("_T")
ORDER: tuple[Standing, ...] = ("ranked", "control", "flagged", "incomplete", "invalid")


class RowKey(NamedTuple):
    """The identity of a row: the model, how it is judged, and the images it was scored on."""

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
        """Return the key of the row that a case belongs to.

        The training images are part of the key if the defense was fitted on them, but not if only
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
        """The data, split and number of images that the row was scored on."""
        return self.data, self.split, self.n


class Comparison(NamedTuple):
    """A ranked row compared with another row of its board, at each radius of the ladder.

    Attributes:
        title: the title of the other row.
        gain: the score of this row minus that of the other, as the mean over the images of both;
            NaN where one of the two was not scored.
        p: p value of no difference, Holm-corrected over the pairs of the board.
        ranks: the places of the other row.
    """

    title: str
    gain: tuple[float, ...]
    p: tuple[float, ...]
    ranks: tuple[int | None, ...]

    def sign(self, rung: int) -> int:
        """Return 1 if this row is significantly better, -1 if it is worse, and 0 otherwise."""
        if not self.p[rung] <= ALPHA or not self.gain[rung]:
            return 0
        return 1 if self.gain[rung] > 0 else -1


@dataclass(frozen=True, eq=False)
class Row:
    """One victim (with its defense) on a board.

    Attributes:
        runs: column of the board -> the record and its samples. If an attack ran on two ladders,
            the second run has its own key, see `repeats`.
        robust: which images are robust: a row for each image common to all runs, a column for each
            rung (0 = clean).
        scores: column -> the board's score (accuracy, Dice) at each radius of the ladder.
        worst: worst-case score at each radius of the ladder, under all attacks that ran there;
            undefined where an attack that ranks the board did not run.
        image_scores: the worst-case score of each image, and its patient; a column for each rung
            that is scored.
        ranks: the place at each radius; None if the row is not ranked. Rows that do not differ
            significantly share a place, see `significance`.
        sharing: number of rows with that place at each radius; 0 if the row is not ranked.
        comparisons: the other ranked rows of the board, compared with this one.
        reasons: why the row is not ranked; empty if it is ranked or the board ranks no row.
        notes: remarks for the reader that do not change the rank.
        crosscheck: the attacks with less knowledge that were compared with the row's own attacks,
            in words; else empty.
        repeats: key of `runs` -> column of the board, where these differ.
        argmax: the clean score by the network's own decision instead of the operating point; None
            if they are the same.
        not_applicable: columns that this row cannot have: on a transfer board, attacks crafted on
            this model itself; without a defense, attacks that assume another defense or none.
        defense_title: the defense in words; empty if there is none.
        distinction: how the row differs from rows of its board with the same title; else empty.
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
        """The title, followed by the name that `--victim` takes if it is different.

        A title that a person chose stands alone.
        """
        if self.model.named:
            return self.title
        model, name = plain(self.model.title), self.short_name
        return self.title if name in model else f"{model} ({name}){self.title[len(model) :]}"

    @property
    def short_name(self) -> str:
        """The name that `--victim` takes, without folders where it is the spec of a file."""
        name = plain(self.key.victim)
        return short_spec(name) if is_own(name) else name

    @property
    def name(self) -> str:
        """The title with the name that `--victim` takes instead of the model's title."""
        return plain(self.key.victim) + self.title[len(plain(self.model.title)) :]

    @property
    def attacked_by(self) -> frozenset[str]:
        """Columns of the board for which the row has a record."""
        return frozenset(self.repeats.get(column, column) for column in self.runs)

    @property
    def images(self) -> int:
        """Number of images in the worst case."""
        return len(self.robust)

    def strongest(self, rung: int) -> list[str]:
        """Return the columns of the attacks with the lowest score at `rung`: several if tied.

        Oblivious attacks are returned only if there is no other, because they never rank.
        """
        ranking = [c for c in self.scores if c not in self.oblivious] or list(self.scores)
        values = {column: self.scores[column][rung].value for column in ranking}
        lowest = min((v for v in values.values() if not math.isnan(v)), default=math.nan)
        return [c for c, v in values.items() if math.isclose(v, lowest, abs_tol=1e-9)]

    @property
    def oblivious(self) -> frozenset[str]:
        """Columns whose attacker did not know the defense."""
        cases = {column: run.record.case for column, run in self.runs.items()}
        return frozenset(c for c, case in cases.items() if case.knowledge == "oblivious")


# field of the key -> text that is added to the title of rows that differ in the field
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
    """Return the rows of a board; rows with equal titles get texts that distinguish them."""
    common = Counter(row.title for row in rows)
    distinct = []
    for row in rows:
        alike = [other.key for other in rows if other.title == row.title]
        words = [
            plain(form.format(getattr(row.key, name)))
            for name, form in _DISTINCTIONS.items()
            if len({getattr(key, name) for key in alike}) > 1
        ]
        short = {other.short_name for other in rows if other.title == row.title}
        if len(short) == len({key.victim for key in alike}):  # no two look the same
            words = [row.short_name if word == plain(row.key.victim) else word for word in words]
        if common[row.title] > 1:
            row = replace(row, distinction=", ".join(words))
        distinct.append(row)
    return distinct


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that can be compared, sorted by their worst case at the headline radius, best first.

    Attributes:
        ladder: every radius of the records; a row has scores at those where its attacks ran.
        columns: the attacks, from weak to strong.
        common: the columns that a row must have to be ranked, see `cells`.
        ranked_at: index in the ladder of the radius that ranks the board; None = the middle radius,
            the lower of two.
        images: the images of most records; None if no record is valid.
        image_set: a description of these images, if boards of the same setting have other images.
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
        """The score of each image that the board counts."""
        return score_of(self.dataset, self.objective)

    @property
    def headline(self) -> int:
        """Index of the radius that ranks the board: the middle of the most common ladder."""
        return (len(self.ladder) - 1) // 2 if self.ranked_at is None else self.ranked_at

    @property
    def oblivious(self) -> frozenset[str]:
        """Columns of attackers who do not know the defenses."""
        return frozenset[str]().union(*(row.oblivious for row in self.rows))

    @property
    def control(self) -> bool:
        """Whether the board has only controls and no attack, so that no row is ranked."""
        return self.threat == "control"

    @property
    def shift(self) -> bool:
        """Whether nobody attacks: the board shows what scanners, operators and archives do."""
        return self.threat == "shift"

    @property
    def sign(self) -> str:
        """The word before a radius or a severity of the board."""
        return sign_of(self.norm)

    @property
    def key(self) -> tuple[object, ...]:
        """Boards with equal keys can be read side by side; they differ only in threat model."""
        return (*self.family, tuple(sorted(self.channels.items())))

    @property
    def family(self) -> tuple[object, ...]:
        """Boards with equal families differ only in threat model and channels."""
        setting = (self.dataset.name, self.objective, self.norm, self.budget)
        return (*setting, self.images if self.image_set else None)

    @property
    def setting(self) -> str:
        """Threat model, norm, objective, channels, budget and images in words."""
        threat = THREATS.get(self.threat, self.threat)
        words = [threat] if self.shift else [threat, NORMS.get(self.norm, self.norm)]
        aim = objective_words(self.objective, self.dataset)
        words += [] if self.shift and aim == "untargeted" else [aim]
        words += filter(None, [channel_words(self.channels, self.dataset)])
        if self.budget == "mean_norm":
            words.append("relative to a training image's mean norm")
        words += filter(None, [self.image_set])
        return " · ".join(words)

    @property
    def at(self) -> str:
        """The headline radius in words."""
        return radius_label(self.ladder[self.headline], self.dataset, self.norm, self.budget)

    @property
    def native_axis(self) -> NativeRange | None:
        """The stored values of 0 and 1, if radii are shown in their unit."""
        linf = self.norm == "linf" and self.budget == "absolute"
        return self.dataset.native if linf else None


def single_row_board(board: Board, row: Row) -> Board:
    """Return a board with only this row, and the radii at which its attacks ran."""
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
    """Return each board with its id, the anchor of links to it, unique among these boards."""
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
