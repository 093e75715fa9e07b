"""What a function of the Python face takes for a model, and what it says of anything else."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_med as rm
from robustbench_med.errors import BenchError, UnknownNameError, VictimError
from robustbench_med.models.load import describe, load_victim
from robustbench_med.victim import InputContract, Victim
from tests.models.truth import Truth, labels

WRONG: list[tuple[Any, str]] = [
    (None, "got None"),
    (Truth, r"got the class Truth: make an instance of it, Truth\(...\)"),
    (dict, "got the class dict"),
    (Truth(2).state_dict(), "got a state dict: build the network, network.load_state_dict"),
    ({"epoch": 1}, "got a dict: build the network"),
    (lambda: Truth(2), "got the function <lambda>: pass the module that it returns"),
    (torch.relu, "got the function relu"),
    (Truth(2).forward, "got the function forward"),
    (functools.partial(Truth, 2), "got the function partial"),
    (np.zeros(3), "got ndarray"),
    (torch.zeros(3), "got Tensor"),
    (pickle.dumps([1]), "got bytes"),
    ([Truth(2)], "got list: pass them one at a time"),
    (3, "got int"),
    ("net.pth", "weights alone have no architecture"),
    (Path("net.ckpt"), "weights alone have no architecture"),
    ("w.safetensors", "weights alone have no architecture"),
    ("net.tflite", "convert it to PyTorch or to ONNX"),
    (Victim(Truth(2), InputContract(1, (16, 16))), "got Victim: pass its module"),
]
ASKS: list[Callable[[Any], Any]] = [
    lambda model: rm.load_model(model, dataset=labels()),
    lambda model: rm.evaluate(model, labels(), "fgsm", eps=0.01),
    lambda model: rm.attack(model, labels(), "fgsm", eps=0.01),
    lambda model: rm.attack(model, labels().batch("test"), "fgsm", eps=0.01),
    lambda model: rm.attack(model=model, data=labels(), spec="fgsm", eps=0.01),
    lambda model: rm.defend(model, "jpeg", labels()),
]


@pytest.mark.parametrize(("model", "message"), WRONG, ids=[w[1] for w in WRONG])
def test_what_is_no_model(model: Any, message: str) -> None:  # noqa: ANN401
    for ask in ASKS:
        with pytest.raises(VictimError, match=message) as caught:
            ask(model)
        assert str(caught.value).startswith(
            ("expected a model: a name or spec", "expected a model's")
        )
        assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_a_name() -> None:
    for ask in (load_victim, describe):
        with pytest.raises(
            VictimError, match="expected a model's name or spec, got 'net.pth': weig"
        ):
            ask("net.pth", labels().card)


@pytest.mark.parametrize(
    "name", ["nowhere.py:make()", "nowhere.py", "folder/net", "timm:nothing(weights='w')"]
)
def test_names_that_lead_nowhere(name: str) -> None:
    for ask in ASKS[:3]:
        with pytest.raises(BenchError) as caught:
            ask(name)
        assert isinstance(caught.value, VictimError | UnknownNameError)
        assert "\n" not in str(caught.value)


def test_what_a_spec_has_by_itself() -> None:
    with pytest.raises(BenchError, match=r'write it into the spec, "...\(returns=...\)"'):
        rm.load_model("timm:resnet18(weights='w')", dataset=labels(), returns="logits")
    with pytest.raises(BenchError, match="expected mean with a torch module alone"):
        rm.load_model("chest_resnet", mean=0.5)
    loaded = rm.load_model(Truth(2), dataset=labels())
    with pytest.raises(BenchError, match="loaded already"):
        rm.load_model(loaded, dataset=labels())


def test_a_subclass_of_module_is_one() -> None:
    class Wrapped(nn.Sequential): ...

    assert rm.load_model(Wrapped(Truth(2)), dataset=labels()).card.title == "Wrapped"
