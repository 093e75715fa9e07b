"""Read the pictures of a board as data URIs, up to a size limit.

For labels, a picture has the clean image, the attacked image and the perturbation. For masks, it
has the true mask, the model's mask on the clean and on the attacked image, the mask that the
attacker wants, and the perturbation.
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

SHOWN = 6  # most pictures of a board
PAGE_BYTES = 3_000_000  # most bytes of data URIs on a page; they leave 2 MB for tables and curves
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 400_000  # most bytes of one picture file


class Tile(NamedTuple):
    """One image of a picture: its file or data URI, with its texts.

    The clean and the attacked image follow each other, and a slider lays one over the other; their
    `side` is "clean" and "attacked".
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
        """Number of characters that the images take on the page."""
        return sum(len(tile.uri) for tile in self.tiles)


def gallery(board: Board, *, budget: int) -> list[Picture]:
    """Return up to SHOWN examples of the board within `budget` characters, from all its victims.

    A picture is left out if its file is missing, too large, not a PNG, or outside the folder of its
    record.
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
    """Return the regions in the masks of `pictures` and their colours; none without a mask."""
    if not any(picture.example.masks for picture in pictures):
        return []
    return [(class_words(name), palette.colour(i)) for i, name in enumerate(board.dataset.parts)]


def shown(pictures: Sequence[Picture], *, slides: bool = True, shift: bool = False) -> str:
    """Return a sentence on the images of a picture.

    Args:
        pictures: the pictures.
        slides: whether a slider lays the attacked image over the clean one.
        shift: whether nobody attacked, and the images are shifted.
    """
    words = _shown(pictures, slides=slides)
    return words.replace("attacked image", "shifted image") if shift else words


def _shown(pictures: Sequence[Picture], *, slides: bool) -> str:
    masks = [picture.example.masks for picture in pictures if picture.example.masks]
    if not masks:
        both = (
            "A slider moves between the clean and the attacked image. Beside them is"
            if slides
            else "The clean image, the attacked image and"
        )
        return f"{both} the perturbation, amplified around mid-grey by the factor stated."
    target = ", the mask that the attacker wants" if any(mask.target for mask in masks) else ""
    slider = " (with a slider between them)" if slides else ""
    return (
        f"The true mask, the model's mask on the clean and on the attacked image{slider}{target}, "
        "and the perturbation, amplified around mid-grey by the factor stated."
    )


def _in_turn(board: Board) -> list[tuple[Row, str, Example]]:
    """Return the examples, ordered so that victims take turns, and so do the attacks of each."""
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
    """Return an example with its images as data URIs; None if one cannot be read."""
    masks = example.masks
    named = _of_labels(example) if masks is None else _of_masks(example, masks)
    caption = f"truth {plain(example.truth)}" if masks is None else _dice(masks)
    if example.view:
        caption += f", {plain(example.view)}"
    run = row.runs[column]
    tiles = tuple(tile._replace(uri=_data_uri(run, tile.uri)) for tile in named)
    if run.record.case.threat == "shift":
        tiles = tuple(tile._replace(alt=tile.alt.replace("attacked", "shifted")) for tile in tiles)
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
    """Return the Dice before and after the attack, and which slice is shown."""
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
