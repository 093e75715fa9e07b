"""Bars of channels: like with like, all channels last, what was not run left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import leaderboard
from leaderboard.boards.channels import Bars, channel_bars, chart
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.cards import DatasetCard

from .planted_masks import ATTENTION, BRAIN, UNET, make_masks

Maker = Callable[..., Stored]
CLEAN = np.array([0.9, 0.8, 0.7])
FLAG = Flag(name="zero_gradients", meaning="gradients are zero", value=0.4, threshold=0.1)


def stored(make: Maker, left: float, channel: str = "", **given: Any) -> Stored:  # noqa: ANN401
    """Return a record that leaves a share of the clean Dice at every radius."""
    dice = np.stack([CLEAN, *[left * CLEAN] * 3], axis=1)
    return make_masks(make, dice, channels={channel: 1.0} if channel else None, **given)


def only(records: list[Stored]) -> Bars:
    (found,) = channel_bars(leaderboard.make_boards(records))
    return found


def test_bars_stand_clean_first_and_all_channels_last(make_stored: Maker) -> None:
    hurts = {"FLAIR": 0.6, "": 0.1, "T1": 0.9, "T1ce": 0.4}
    bars = only([stored(make_stored, left, channel) for channel, left in hurts.items()])
    assert bars.board.channels == {}
    assert bars.labels == ("clean", "T1", "T1ce", "FLAIR", "all")
    (group,) = bars.groups
    assert [bar.label for bar in group.bars] == list(bars.labels)
    assert [bar.estimate.value for bar in group.bars] == pytest.approx(
        [0.8, 0.72, 0.32, 0.48, 0.08]
    )
    assert all(bar.estimate.low < bar.estimate.value < bar.estimate.high for bar in group.bars)


def test_only_attacks_that_ran_on_every_board_count(make_stored: Maker) -> None:
    records = [
        stored(make_stored, 0.5, attack="pgd"),
        stored(make_stored, 0.1, attack="segpgd"),  # on all channels alone
        stored(make_stored, 0.7, "T1", attack="pgd"),
    ]
    bars = only(records)
    assert bars.attacks == ("PGD-40",)
    assert [bar.estimate.value for bar in bars.groups[0].bars] == pytest.approx([0.8, 0.56, 0.4])
    assert channel_bars(leaderboard.make_boards(records[1:])) == []  # no attack in common


def test_an_oblivious_attack_takes_no_victim_off_the_bars(make_stored: Maker) -> None:
    made = []
    for left, channel in ((0.5, ""), (0.7, "T1")):
        jpeg = {"defense": "jpeg(quality=75)"}
        made += [stored(make_stored, left, channel), stored(make_stored, left, channel, case=jpeg)]
        unaware = {**jpeg, "knowledge": "oblivious"}
        made.append(stored(make_stored, 0.0, channel, case=unaware))
    bars = only(made)
    assert bars.attacks == ("PGD-40",)
    assert len(bars.groups) == 2
    for group in bars.groups:
        values = [bar.estimate.value for bar in group.bars]
        assert values == pytest.approx([0.8, 0.56, 0.4])


def test_bars_take_the_images_that_all_boards_share(make_stored: Maker) -> None:
    whole, part = stored(make_stored, 0.5), stored(make_stored, 1.0, "T1")
    fewer = part._replace(samples=part.samples[part.samples["sample"] != "s000"])
    bars = only([whole, fewer]).groups[0].bars
    assert [bar.estimate.value for bar in bars] == pytest.approx([0.75, 0.75, 0.375])


def test_a_victim_without_two_boards_has_no_bars_and_a_gap_is_left_out(make_stored: Maker) -> None:
    records = [
        stored(make_stored, left, channel, victim=victim)
        for victim in (UNET, ATTENTION)
        for channel, left in {"": 0.1, "T1": 0.9, "T2": 0.8}.items()
    ]
    bars = only(records[:-1])
    found = {group.title: group for group in bars.groups}
    assert {title: len(group.bars) for title, group in found.items()} == {
        "U-Net": 4,
        "Attention U-Net": 3,
    }
    assert found["Attention U-Net"].bar("T2") is None
    assert [group.title for group in only([*records[:3], records[3]]).groups] == ["U-Net"]


def test_a_flagged_row_is_marked_and_an_invalid_one_left_out(make_stored: Maker) -> None:
    flagged = stored(make_stored, 0.9, "T1", record={"flags": (FLAG,)})
    invalid = stored(make_stored, 0.8, "T2", record={"status": "invalid", "reason": "NaN"})
    (group,) = only([stored(make_stored, 0.1), flagged, invalid]).groups
    assert [(bar.label, bar.doubted) for bar in group.bars] == [
        ("clean", False),
        ("T1", True),
        ("all", False),
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"attack": "square"},
        {"objective": "region(name='tumour core')"},
        {"case": {"norm": "l2"}},
    ],
)
def test_other_threats_aims_and_norms_are_not_mixed(
    make_stored: Maker, other: dict[str, Any]
) -> None:
    records = [stored(make_stored, 0.1), stored(make_stored, 0.5, "T1", **other)]
    assert channel_bars(leaderboard.make_boards(records)) == []


def test_a_chart_says_its_numbers_and_escapes_its_names(make_stored: Maker) -> None:
    evil = '"><script>alert(1)</script>'
    card: DatasetCard = BRAIN.model_copy(update={"channel_names": ("T1", evil, "T2", "FLAIR")})
    records = [stored(make_stored, 0.5, name, dataset=card) for name in ("", "T1", evil)]
    bars = only(records)
    svg = chart(bars, bars.groups[0], "here")
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    label = root.attrib["aria-label"]
    assert label.startswith("U-Net, worst-case Dice at ε = 2/255: clean 0.800, T1 0.400")
    assert evil in label
    assert "<script>" not in svg
    assert "style" not in {key for element in root.iter() for key in element.attrib}
    assert all(e.attrib.get("id", "here-").startswith("here-") for e in root.iter())
    assert svg.count("var(--curve-1)") >= 3
