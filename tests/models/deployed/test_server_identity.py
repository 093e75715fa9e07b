"""A server's model is told by its answers: models that differ, and answers that vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_med.models.deployed.server_identity import identify, probes
from tests.bench.toys import card_of

CARD = card_of(torch.zeros(1, 1, 16, 16), 2)


class Answers(nn.Module):
    """A model that answers by a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401
        return self.function(x)


def told(function: Callable[[Tensor], Any]) -> tuple[bytes, bool]:
    return identify(Answers(function), CARD)


def contrast(x: Tensor, weight: float) -> Tensor:
    """Return probabilities that are 0 and 1 for noise, whatever the weight is."""
    z = (x.flatten(1).std(1, unbiased=False) - 0.1) * weight
    return torch.stack([z, -z], 1).softmax(1)


def mean(x: Tensor, weight: float) -> Tensor:
    z = x.flatten(1).mean(1) * weight
    return torch.stack([z, -z], 1)


def test_saturated_probabilities() -> None:
    first, steady = told(lambda x: contrast(x, 40))
    assert steady
    assert told(lambda x: contrast(x, 40)) == (first, True)
    assert told(lambda x: contrast(x, 400))[0] != first


def test_an_output_beside_larger_ones() -> None:
    def both(x: Tensor, weight: float) -> dict[str, Tensor]:
        return {"features": 1000 * x.flatten(1)[:, :64], "logits": mean(x, weight)}

    assert told(lambda x: both(x, 2))[0] != told(lambda x: both(x, -2))[0]


def test_a_small_class_beside_a_large_one() -> None:
    def scores(x: Tensor, weight: float) -> Tensor:
        return torch.stack([1000 * x.flatten(1)[:, 0], weight * x.flatten(1).mean(1)], 1)

    assert told(lambda x: scores(x, 2))[0] != told(lambda x: scores(x, -2))[0]


def test_what_shows_in_smooth_images_alone() -> None:
    def smooth(x: Tensor, weight: float) -> Tensor:
        steps = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1)
        return mean(x, 1) + weight * (steps < 0.1).float()[:, None]

    assert told(lambda x: smooth(x, 0))[0] != told(lambda x: smooth(x, 1))[0]


def test_a_small_change_of_a_steady_model() -> None:
    assert told(lambda x: mean(x.square(), 1))[0] != told(lambda x: mean(x**2.02, 1))[0]


def test_a_scale_of_logits() -> None:
    assert told(lambda x: mean(x, 1))[0] != told(lambda x: mean(x, 2))[0]


def test_last_bits_are_no_change() -> None:
    """Masks of a server whose sums come in another order each time."""
    generator = torch.Generator().manual_seed(0)

    def masks(x: Tensor, weight: float) -> Tensor:
        noise = torch.randn(1, 2, 16, 16, generator=generator)
        return torch.cat([weight * x, 0.5 - x], 1) + 1e-7 * noise

    first, steady = told(lambda x: masks(x, 1))
    assert steady
    assert told(lambda x: masks(x, 1))[0] == first
    assert told(lambda x: masks(x, -1))[0] != first


def test_an_unsteady_model() -> None:
    """A model that draws: other draws are no change, another model is one."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Tensor, weight: float) -> Tensor:
        noise = 0.02 * torch.randn(len(x), 2, generator=generator)
        return mean(x, weight) + noise

    first, steady = told(lambda x: drawn(x, 1))
    assert not steady
    assert all(told(lambda x: drawn(x, 1)) == (first, False) for _ in range(5))
    assert told(lambda x: drawn(x, -5))[0] != first
    assert told(lambda x: drawn(x, -1))[0] != first


def test_odd_outputs() -> None:
    def odd(x: Tensor, last: float) -> dict[str, Tensor]:
        boxes = torch.ones(1, 1 + int(4 * x.mean()), 4)
        endless = torch.tensor([[float("inf"), float("nan")]])
        return {"p": mean(x, last), "boxes": boxes, "endless": endless, "none": torch.ones(1, 0)}

    first, steady = told(lambda x: odd(x, 1))
    assert steady
    assert told(lambda x: odd(x, 1.1))[0] != first


def test_images_of_any_size() -> None:
    for size in ((8, 12), (3, 5, 7)):
        card = card_of(torch.zeros(1, 3, *size), 2)
        x = probes(card)
        assert x.shape == (4 + 4 + 3 + len(size), 3, *size)
        assert (float(x.min()), float(x.max())) == (0.0, 1.0)
        assert torch.equal(x, probes(card))
