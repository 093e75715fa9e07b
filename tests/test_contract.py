"""What a contract refuses: statistics that are none of images in [0,1]."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import robustbench_med as rm
from robustbench_med.contract import InputContract, contract_of, statistic
from robustbench_med.errors import SpecError
from robustbench_med.models.load import describe, load_victim
from tests.bench.toys import card_of, save_timm
from tests.models.truth import Truth, labels

GREY = card_of(torch.zeros(1, 1, 32, 32), 2)
NUMBERS: list[Any] = [
    0.25,
    [0.25],
    (0.25,),
    np.array(0.25),
    np.array([0.25]),
    np.float32(0.25),
    torch.tensor(0.25),
    torch.tensor([[[[0.25]]]]),
    [torch.tensor(0.25)],
    [np.float64(0.25)],
    torch.tensor([0.25], dtype=torch.float64, requires_grad=True),
]


@pytest.mark.parametrize("values", NUMBERS, ids=repr)
def test_numbers_in_any_form(values: Any) -> None:  # noqa: ANN401
    assert statistic("mean", values, 1) == (0.25,)
    assert statistic("mean", values, 3) == (0.25,)
    model = rm.load_model(Truth(2), dataset=labels(), mean=values, std=values)
    assert model.victim.contract.mean == model.victim.contract.std == model.card.mean == (0.25,)


def test_a_number_a_channel() -> None:
    assert statistic("std", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), 3) == pytest.approx(
        (0.1, 0.2, 0.3)
    )


WRONG: list[tuple[str, Any, str]] = [
    ("mean", [0.5, 0.5], "mean: expected 1 number, got 2: 0.5, 0.5"),
    ("mean", [0.485, 0.456, 0.406], "mean: expected 1 number, got 3"),
    ("std", [0.2, 0.2], "std: expected 1 number, got 2"),
    ("mean", 127.5, "divide statistics of grey levels 0..255 by 255"),
    ("mean", [32768.0], "16-bit images by 65535"),
    ("std", 63.75, "std: expected a statistic of images in [0,1], got 63.75"),
    ("mean", -400.0, "mean: expected a statistic of images in [0,1], got -400"),
    ("std", [-0.25], "std: expected numbers above 0, got -0.25"),
    ("std", 0, "std: expected numbers above 0, got 0"),
    ("mean", float("nan"), "mean: expected finite numbers, got nan"),
    ("std", np.array([np.inf]), "std: expected finite numbers, got inf"),
    ("mean", np.array([np.nan]), "mean: expected finite numbers, got nan"),
    ("mean", "0.5", "expected mean=[one number per channel], got '0.5'"),
    ("mean", [True], "expected mean=[one number per channel], got [True]"),
    ("mean", [], "expected mean=[one number per channel], got []"),
    ("std", {"r": 1.0}, "expected std=[one number per channel], got {'r': 1.0}"),
    ("mean", [0.5j], "expected mean=[one number per channel], got [0.5j]"),
    ("mean", [None], "expected mean=[one number per channel], got [None]"),
]


@pytest.mark.parametrize(("name", "values", "message"), WRONG)
def test_what_is_no_statistic(name: str, values: Any, message: str) -> None:  # noqa: ANN401
    for ask in (
        lambda: rm.load_model(Truth(2), dataset=labels(), **{name: values}),
        lambda: rm.evaluate(Truth(2), labels(), "fgsm", eps=0.01, **{name: values}),
        lambda: rm.attack(Truth(2), labels(), "fgsm", eps=0.01, **{name: values}),
        lambda: contract_of(1, (16, 16), {name: values}),
    ):
        with pytest.raises(SpecError, match=re.escape(message)) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_contract_of_ones_own_is_checked() -> None:
    assert rm.InputContract is InputContract
    with pytest.raises(SpecError, match="divide statistics of grey levels"):
        InputContract(1, (16, 16), mean=(127.5,), std=(63.75,))
    with pytest.raises(SpecError, match="expected 1 number or 3, one per channel, got 2"):
        InputContract(3, (16, 16), mean=(0.5, 0.5))
    contract = InputContract(1, (16, 16))
    with pytest.raises(SpecError, match="expected mean in the contract, got it beside a contract"):
        rm.load_model(Truth(2), dataset=labels(), contract=contract, mean=0.5)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("mean=[0.5, 0.5], std=[0.2, 0.2]", "mean: expected 1 number, got 2"),
        ("mean=[127.5], std=[63.75]", "divide statistics of grey levels"),
        ("mean=[0.5], std=[-0.2]", "std: expected numbers above 0"),
        ("mean=[0.5]", "expected mean=[..] and std=[..] together, got no std"),
        ("returns='likely'", "expected returns='logits', 'probabilities' or 'auto', got 'likely'"),
        ("output=0.5", "expected output='KEY', an index such as output=0"),
        ("output=[True]", "expected output='KEY', an index such as output=0"),
    ],
)
def test_what_a_spec_states_is_checked(tmp_path: Any, inside: str, message: str) -> None:  # noqa: ANN401
    spec = save_timm(tmp_path / "w.safetensors")
    for ask in (load_victim, describe):
        with pytest.raises(SpecError, match=re.escape(message)):
            ask(f"{spec[:-1]}, {inside})", GREY)


def test_a_networks_own_statistics_fold_into_one_channel_alone(tmp_path: Any) -> None:  # noqa: ANN401
    card, _ = describe(save_timm(tmp_path / "w.safetensors"), GREY)
    assert len(card.mean) == len(card.std) == 1
    spec = save_timm(tmp_path / "w.safetensors", channels=2)
    two = card_of(torch.zeros(1, 2, 32, 32), 2)
    with pytest.raises(SpecError, match=r"expected mean=\[..\] and std=\[..\] with 2 numbers"):
        describe(spec, two)
    stated, _ = describe(f"{spec[:-1]}, mean=[0.5], std=[0.25])", two)
    assert stated.mean == (0.5,)
