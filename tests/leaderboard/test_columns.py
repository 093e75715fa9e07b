"""Columns: one a setting, named so that no two are mixed up."""

from __future__ import annotations

from collections.abc import Callable

from leaderboard.boards.columns import attack_columns, heading
from robustbench_med.bench.record import Stored

from .planted import VICTIMS

Maker = Callable[..., Stored]
RESNET, VIT, DENSE, _ = VICTIMS


def test_surrogates_are_called_by_the_name_one_types(make_stored: Maker) -> None:
    group = [make_stored([6], surrogate=other) for other in (VIT, DENSE)]
    assert attack_columns(group) == ["PGD-40 from vit_tiny", "PGD-40 from densenet_narrow"]
    assert heading(make_stored([6])) == "PGD-40"


def test_two_models_of_one_title_make_two_columns(make_stored: Maker) -> None:
    twins = [("net_a", "Net", "CNN"), ("net_b", "Net", "CNN")]
    group = [make_stored([6], surrogate=twin) for twin in twins]
    assert attack_columns(group) == ["PGD-40 from net_a", "PGD-40 from net_b"]


def test_weights_fit_and_guide_tell_columns_apart(make_stored: Maker) -> None:
    one, two = (
        make_stored([6], surrogate=VIT, case={"surrogate_sha256": digit * 64}) for digit in "ab"
    )
    assert attack_columns([one, two]) == [
        "PGD-40 from vit_tiny (weights=aaaaaaaa)",
        "PGD-40 from vit_tiny (weights=bbbbbbbb)",
    ]
    fitted = [make_stored([6], attack="uap", case={"n_fit": n}) for n in (64, 512)]
    assert attack_columns(fitted) == ["UAP (n_fit=64)", "UAP (n_fit=512)"]


def test_a_hostile_surrogate_name_is_one_line_of_text(make_stored: Maker) -> None:
    evil = ("a\x1b[2J\nb.py:make", "t", "f")
    assert attack_columns([make_stored([6], surrogate=evil)]) == ["PGD-40 from a[2J b.py:make"]
