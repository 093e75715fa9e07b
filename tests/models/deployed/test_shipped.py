"""ONNX and TorchScript copies of shipped victims: the same verdicts and gradients."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_med import registry
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.decide import answer_of
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen

VICTIMS = (
    "chest_resnet",
    "chest_vit",
    "fundus_densenet",
    "chest_findings_resnet",
    "vessels_unet",
    "brain_unet",
)


class Copied(nn.Module):
    """A victim with its normalisation, as one network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.module = victim.module
        contract, axes = victim.contract, (1, -1, *[1] * len(victim.contract.size))
        self.register_buffer("mean", torch.tensor(contract.mean).view(axes))
        self.register_buffer("std", torch.tensor(contract.std).view(axes))

    def forward(self, x: Images) -> torch.Tensor:
        logits: torch.Tensor = self.module((x - self.mean) / self.std)
        return logits


def copied(victim: Victim, kind: str, path: Path, x: Images) -> str:
    """Write a copy of a victim, and return the spec of it."""
    module = Copied(victim).eval()
    with warnings.catch_warnings(), frozen(module):
        warnings.simplefilter("ignore")  # of exporters that torch deprecates
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(module, x[:2]), path)
            return f"torchscript:{path}"
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            module,
            (x[:2],),
            str(path),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return f"onnx:{path}"


def gradient(victim: Victim, x: Images) -> Images:
    leaf = x.clone().requires_grad_(True)
    with frozen(victim.module):
        logits = victim(leaf).logits
        weights = torch.linspace(-1, 1, logits.shape[1]).view(1, -1, *[1] * (logits.ndim - 2))
        (g,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return g


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", VICTIMS)
def test_a_copy_is_the_victim(tmp_path: Path, name: str, kind: str) -> None:
    card = registry.find("models", name)
    data = load_dataset(card.dataset)
    victim = load_victim(name, data.card).victim
    x = data.batch("test").x[:200]
    spec = copied(victim, kind, tmp_path / "copy", x)
    loaded = load_victim(spec, data.card, images=lambda: x[:4])
    assert not loaded.card.queries_only, loaded.card.notes
    with frozen(victim.module), frozen(loaded.victim.module):
        mine, theirs = (answer_of(v.logits(x)) for v in (victim, loaded.victim))
    if data.card.task == "segmentation":
        same = (mine == theirs).float().flatten(1).mean(1) > 0.9999
    elif data.card.task == "multi_label":
        same = ((mine > 0) == (theirs > 0)).all(1)
    else:
        same = mine.argmax(1) == theirs.argmax(1)
    assert float(same.float().mean()) >= 0.995
    g, copy = gradient(victim, x[:8]), gradient(loaded.victim, x[:8])
    torch.testing.assert_close(copy, g, rtol=0, atol=1e-5 * float(g.abs().max()))
