"""The page, tables and CSV of segmenters, beside those of classifiers."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import leaderboard
from leaderboard.gallery import gallery, regions_shown, shown
from leaderboard.tables import markdown
from leaderboard.wording.metrics import (
    metric_notes,
    metric_rows,
    shape_words,
    spacing_words,
)
from robustbench_med import palette
from robustbench_med.bench.record import Stored

from .browser import Tags
from .planted import DATASETS
from .planted_masks import BRAIN, CHEST, HEART, HIPPOCAMPUS, make_masks

Maker = Callable[..., Stored]
EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>'
DICE = [[0.9, 0.6, 0.4, 0.1], [0.8, 0.7, 0.3, 0.2], [0.9, 0.8, 0.5, 0.2]]
TARGET = [[0.1, 0.5, 0.8, 0.9]] * 3


@pytest.fixture(scope="module")
def mask_page(mask_suite: Path) -> str:
    return mask_suite.read_text(encoding="utf-8")


def section(page: str, ident: str) -> str:
    start = page.index('<section class="board', page.index(f'id="{ident}"') - 80)
    return page[start : page.index("</section>", start)]


def head(page: str, ident: str) -> str:
    """Return what stands above the first board of a dataset."""
    end = page.index('<section class="board', page.index(f'id="{ident}"') - 80)
    return page[page.rindex('<div class="dataset">', 0, end) : end]


def test_classification_boards_are_the_same_beside_masks(
    mask_page: str, suite: Path, make_stored: Maker
) -> None:
    alone = suite.read_text(encoding="utf-8")
    idents = re.findall(r'<section class="board[^>]* id="(phantom-fundus[^"]*)"', alone)
    assert len(idents) == 6

    def text(page: str, ident: str) -> str:
        # pictures share the page's budget; the rest must not differ
        return re.sub(r"data:image/png;base64,[^\"]*", "", section(page, ident))

    for ident in idents:
        assert text(mask_page, ident) == text(alone, ident)


def test_boards_of_channels_have_anchors_and_one_chart(mask_page: str) -> None:
    for ident in ("", "-t1", "-t1ce", "-t2", "-flair"):
        assert f'id="phantom-brain-linf-white-box-untargeted{ident}"' in mask_page
    assert mask_page.count('<figure class="channels">') == 1
    brain = section(mask_page, "phantom-brain-linf-white-box-untargeted")
    figure = brain[brain.index('<figure class="channels">') :].partition("</figure>")[0]
    assert figure.count('role="img"') == 3
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', figure) == [
        "Victim",
        "clean",
        "T1",
        "T1ce",
        "T2",
        "FLAIR",
        "all",
    ]
    assert figure.count('<th scope="row">') == 3
    assert "under PGD-40, SegPGD." in figure


def test_the_heart_is_told_before_and_after(mask_page: str) -> None:
    heart = section(mask_page, "cxr-lungs-linf-white-box-targeted-mask-heart-label-3")
    for words in (
        "draw a heart shape in place of the heart",
        "1 − target Dice: how little is drawn of what the attacker wants",
        "target Dice 0.021 → 0.873",
        "Target Dice",
        "HD95, mm",
        "NSD at 2 mm",
        "Volume error, mm²",
        "(with a slider between them), the mask that the attacker wants, and the perturbation",
    ):
        assert words in heart
    assert "1.4 × 1.4 mm" in head(mask_page, "cxr-lungs-linf-white-box-untargeted")
    ml = section(mask_page, "hippocampus-3d-linf-white-box-untargeted")
    assert "Volume error, ml" in ml
    assert "NSD at 1 mm" in ml


def test_rows_of_metrics_name_their_units_and_regions(make_stored: Maker) -> None:
    record = make_masks(make_stored, DICE).record
    rows = metric_rows(record)
    assert [row.label for row in rows] == [
        "Dice",
        "whole tumour",
        "tumour core",
        "enhancing tumour",
        "IoU",
        "Pixel accuracy, %",
        "HD95, px",
        "NSD at 2 px",
        "Volume error, px",
        "Lesions missed, %",
        "False alarms, %",
        "Attack success, %",
        "SSIM",
        "L∞ used, /255",
    ]
    assert [row.region for row in rows[:5]] == [None, 0, 1, 2, None]
    assert rows[-2].cells[0] is None  # nothing is attacked when clean
    assert "distances are in pixels (px), not mm" in metric_notes(record)
    volume = make_masks(make_stored, DICE, dataset=HIPPOCAMPUS, objective=HEART, target=TARGET)
    notes = metric_notes(volume.record)
    assert "px" not in notes
    assert "a target Dice above 0.75" in notes
    assert metric_rows(volume.record)[0].label == "Target Dice"
    blind = HIPPOCAMPUS.model_copy(update={"spacing": None})
    assert "voxels (px)" in metric_notes(make_masks(make_stored, DICE, dataset=blind).record)
    plain = make_stored([6, 1]).record
    assert metric_notes(plain) == ""
    assert metric_rows(plain)[0].label == "Accuracy, %"


def test_sizes_and_channels_in_words() -> None:
    assert shape_words(DATASETS[0]) == "64×64 RGB"
    assert shape_words(DATASETS[1]) == "64×64 grey"
    unnamed = BRAIN.model_copy(update={"channel_names": ()})
    assert shape_words(unnamed) == "64×64, 4 channels"
    assert spacing_words(HIPPOCAMPUS) == "1 × 0.938 × 0.938 mm"


def test_the_gallery_shows_masks_and_their_colours(make_stored: Maker) -> None:
    plain = leaderboard.make_boards([make_masks(make_stored, DICE, pictures=2)])[0]
    (first, _) = pictures = gallery(plain, budget=10**7)
    assert [tile.says for tile in first.tiles] == ["truth", "clean", "attacked", "change ×16"]
    assert first.tiles[2].alt == "attacked image with the model's mask, Dice 0.118"
    assert first.caption == "Dice 0.914 → 0.118 · T1ce"
    assert first.size == sum(len(tile.uri) for tile in first.tiles)
    assert regions_shown(plain, pictures) == [
        (name, palette.colour(i)) for i, name in enumerate(BRAIN.parts)
    ]
    assert regions_shown(plain, []) == []
    assert "wants" not in shown(pictures)
    assert len(gallery(plain, budget=first.size)) == 1
    changes: dict[str, Any] = {
        "dataset": CHEST,
        "objective": HEART,
        "target": TARGET,
        "pictures": 1,
    }
    drawn = leaderboard.make_boards([make_masks(make_stored, DICE, **changes)])[0]
    (picture,) = gallery(drawn, budget=10**7)
    assert [tile.says for tile in picture.tiles][3] == "wanted"
    assert picture.caption == "Dice 0.914 → 0.118 · target Dice 0.021 → 0.873"


@pytest.mark.parametrize("file", ["../outside.png", "missing.png", "", "/etc/passwd"])
def test_a_mask_outside_its_folder_is_not_shown(make_stored: Maker, file: str) -> None:
    stored = make_masks(make_stored, DICE, pictures=1)
    (example,) = stored.record.examples
    assert example.masks is not None
    shutil.copy(Path(stored.folder) / example.clean, Path(stored.folder).parent / "outside.png")
    masks = example.masks.model_copy(update={"after": file})
    changed = example.model_copy(update={"masks": masks})
    record = stored.record.model_copy(update={"examples": (changed,)})
    (board,) = leaderboard.make_boards([stored._replace(record=record)])
    assert gallery(board, budget=10**7) == []


def test_hostile_regions_channels_and_views_stay_text(make_stored: Maker, tmp_path: Path) -> None:
    card = BRAIN.model_copy(
        update={
            "regions": {EVIL: (1,), "b": (2,)},
            "classes": ("background", EVIL, "b", "c"),
            "channel_names": (EVIL, "T1", "T2", "FLAIR"),
        }
    )
    changes: dict[str, Any] = {"dataset": card, "pictures": 1}
    aims: dict[str, Any] = {"objective": "targeted(mask='heart', label=1)", "target": TARGET}
    records = [
        make_masks(make_stored, DICE, **changes),
        make_masks(make_stored, DICE, channels={EVIL: 1.0}, **changes),
        make_masks(make_stored, DICE, **changes, **aims),
        make_masks(make_stored, DICE, objective=f"region(name={EVIL!r})", **changes),
    ]
    hostile = []
    for stored in records:
        (example,) = stored.record.examples
        assert example.masks is not None
        masks = example.masks.model_copy(update={"view": EVIL})
        example = example.model_copy(update={"masks": masks})
        record = stored.record.model_copy(update={"examples": (example,)})
        hostile.append(stored._replace(record=record))
    page = leaderboard.publish(hostile, tmp_path, title="t").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 2
    assert '<figure class="channels">' in page
    ids = [a["id"] for _, a in Tags(page).tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert "<script>" not in markdown(leaderboard.make_boards(hostile), title="t")


def test_csv_names_its_score_and_its_channels(masks: list[Stored], mask_suite: Path) -> None:
    boards = leaderboard.make_boards(masks)
    frame = pd.read_csv(mask_suite.with_suffix(".csv"), keep_default_na=False, na_values=["NaN"])
    worst = frame[frame["attack"] == "worst_case"]
    assert set(worst["metric"]) == {"accuracy", "dice", "1-target_dice"}
    fundus = worst[worst["dataset"] == "phantom_fundus"]
    assert set(fundus["metric"]) == {"accuracy"}
    assert set(fundus["channels"]) == {""}
    brain = worst[worst["dataset"] == "phantom_brain"]
    assert set(brain["channels"]) == {"", "T1=1", "T1ce=1", "T2=1", "FLAIR=1"}
    board = next(b for b in boards if b.dataset.name == "phantom_brain" and not b.channels)
    row = board.rows[0]
    cell = brain.query("channels == '' and threat == 'white_box' and victim == @row.model.name")
    assert cell["value"].astype(float).to_list() == pytest.approx(
        [row.clean.value, *(e.value for e in row.worst)]
    )
    assert {"dice[tumour core]", "hd95[tumour core]"} <= set(frame["metric"])
    assert "target_dice" in set(frame["metric"])


def test_terminal_and_markdown_say_dice(masks: list[Stored], mask_suite: Path) -> None:
    segmented = [stored for stored in masks if stored.record.dataset_card.task == "segmentation"]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    leaderboard.show(segmented, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "worst-case Dice",
        "Dice from 0 to 1, mean over regions and images, [95 % interval]",
        "Brain MRI, glioma (synthetic phantom) at ε = 2/255, white box, only T1ce",
        "worst case of 1 − target Dice",
    ):
        assert words in text
    assert "accuracy" not in text
    assert re.search(r"0\.\d{3} \[0\.\d\d–0\.\d\d\]", text)
    assert "worst-case Dice at 2/255" in mask_suite.with_suffix(".md").read_text(encoding="utf-8")
