"""The pictures of a board as data URIs, under a size limit.

Of labels: clean image, attacked image, perturbation. Of masks: the truth, what the model draws on
the clean and on the attacked image, what the attacker wants drawn, and the perturbation.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from robustbench_med import palette
from robustbench_med.bench.record import Example, MaskExample, Stored

from .boards.board import Board, Row
from .wording.text import number, plain
from .wording.threat_model import class_words

SHOWN = 6  # pictures a board, before its share of bytes
PAGE_BYTES = 3_000_000  # of data URIs on a page; leaves 2 MB for tables and curves
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 400_000  # bytes of one picture file


class Tile(NamedTuple):
    """One image of a picture: its file or data URI, and what is said of it.

    Two follow each other that a slider lays over one another: their `side` is clean and attacked.
    """

    uri: str
    alt: str
    says: str
    tag: str = "span"
    soft: bool = False
    side: str = ""


@dataclass(frozen=True)
class Picture:
    """One example with its images as data URIs."""

    victim: str
    column: str
    example: Example
    tiles: tuple[Tile, ...]
    caption: str

    @property
    def size(self) -> int:
        """Characters the images take on the page."""
        return sum(len(tile.uri) for tile in self.tiles)


def gallery(board: Board, *, budget: int) -> list[Picture]:
    """Return up to SHOWN examples of the board within `budget` characters, spread over its victims.

    A picture that is missing, no PNG, too large or outside its record's folder is left out.
    """
    pictures: list[Picture] = []
    for row, column, example in _in_turn(board):
        picture = _picture(row, column, example)
        if picture and picture.size <= budget:
            budget -= picture.size
            pictures.append(picture)
        if len(pictures) == SHOWN:
            break
    return pictures


def regions_shown(board: Board, pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    """Return the regions drawn over `pictures` and their colours; none where no mask is."""
    if not any(picture.example.masks for picture in pictures):
        return []
    return [(class_words(name), palette.colour(i)) for i, name in enumerate(board.dataset.parts)]


def shown(pictures: Sequence[Picture], *, slides: bool = True) -> str:
    """Return which images a picture has, in words; `slides`: a script lays one over another."""
    masks = [picture.example.masks for picture in pictures if picture.example.masks]
    if not masks:
        both = (
            "Slide between the clean and the attacked image; beside them"
            if slides
            else "The clean image, the attacked one, and"
        )
        return f"{both} the perturbation, amplified around mid-grey by the factor given."
    target = ", what the attacker wants" if any(mask.target for mask in masks) else ""
    between = ", with a slider between" if slides else " on"
    return (
        f"The truth; what the model draws{between} the clean and the attacked image"
        f"{target}; and the perturbation, amplified around mid-grey by the factor given."
    )


def _in_turn(board: Board) -> list[tuple[Row, str, Example]]:
    """Return the examples ordered so that victims take turns, and attacks within a victim do."""
    turns: list[tuple[int, int, Row, str, Example]] = []
    shown_samples: set[tuple[int, str]] = set()
    for index, row in enumerate(board.rows):
        columns = [c for c in board.columns if c in row.runs]
        columns = columns[index % len(columns) :] + columns[: index % len(columns)]
        queues = [[(c, e) for e in row.runs[c].record.examples] for c in columns]
        turn = 0
        for depth in range(max(map(len, queues))):
            for queue in queues:
                if depth >= len(queue) or (index, queue[depth][1].sample) in shown_samples:
                    continue
                shown_samples.add((index, queue[depth][1].sample))
                turns.append((turn, index, row, *queue[depth]))
                turn += 1
    turns.sort(key=lambda item: item[:2])
    return [item[2:] for item in turns]


def _picture(row: Row, column: str, example: Example) -> Picture | None:
    """Return an example with its images read in; None where one cannot be."""
    masks = example.masks
    named = _of_labels(example) if masks is None else _of_masks(example, masks)
    caption = f"truth {plain(example.truth)}" if masks is None else _dice(masks)
    tiles = tuple(tile._replace(uri=_data_uri(row.runs[column], tile.uri)) for tile in named)
    if not all(tile.uri for tile in tiles):
        return None
    return Picture(row.title, column, example, tiles, caption)


def _of_labels(example: Example) -> list[Tile]:
    clean, attacked = plain(example.clean_prediction), plain(example.adversarial_prediction)
    factor = f"×{example.amplification:g}"
    return [
        Tile(example.clean, f"clean image, read as {clean}", clean, side="clean"),
        Tile(
            example.adversarial,
            f"attacked image, read as {attacked}",
            attacked,
            "strong",
            side="attacked",
        ),
        Tile(
            example.perturbation, f"perturbation, amplified {factor}", f"change {factor}", soft=True
        ),
    ]


def _of_masks(example: Example, masks: MaskExample) -> list[Tile]:
    before, after = number(masks.dice_before, "unit"), number(masks.dice_after, "unit")
    target = Tile(masks.target, "clean image with the mask the attacker wants", "wanted", soft=True)
    return [
        Tile(masks.truth, "clean image with its true mask", "truth", soft=True),
        Tile(
            masks.before, f"clean image with the model's mask, Dice {before}", "clean", side="clean"
        ),
        Tile(
            masks.after,
            f"attacked image with the model's mask, Dice {after}",
            "attacked",
            "strong",
            side="attacked",
        ),
        *([target] if masks.target else []),
        Tile(
            example.perturbation,
            f"perturbation, amplified ×{example.amplification:g}",
            f"change ×{example.amplification:g}",
            soft=True,
        ),
    ]


def _dice(masks: MaskExample) -> str:
    """Return the Dice before and after the attack, and what is shown."""
    phrases = [f"Dice {number(masks.dice_before, 'unit')} → {number(masks.dice_after, 'unit')}"]
    if masks.target_before is not None and masks.target_after is not None:
        before, after = (number(v, "unit") for v in (masks.target_before, masks.target_after))
        phrases.append(f"target Dice {before} → {after}")
    return " · ".join(phrases + ([plain(masks.view)] if masks.view else []))


def _data_uri(run: Stored, file: str) -> str:
    folder = Path(run.folder).resolve()
    path = (folder / file).resolve()
    if path.parent != folder or not path.is_file() or path.stat().st_size > _LARGEST:
        return ""
    data = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data[:8] == _PNG else ""
