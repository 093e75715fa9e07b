"""A model whose answer to an image depends on the other images is asked one by one, and flagged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med import evaluate
from robustbench_med.bench.batch_check import depends_on_batch
from robustbench_med.victim import frozen
from tests.bench.toys import dataset_of
from tests.toys import Small, grey_images, small_mask_victim, victim_of

N = 40


class Plain(nn.Module):
    """Two logits of the mean brightness."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 40 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-bright, bright], 1)


class Centred(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(0)


class Normed(Plain):
    """Batch norm over the images of the batch, whatever mode it is in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.batch_norm(x, None, None, training=True))


class FirstIsOther(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([-logits[:1], logits[1:]])


class InLargeBatches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return -logits if len(x) > 8 else logits


class Dropping(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.dropout(x, 0.5))


DEPENDING = [Centred, Normed, FirstIsOther, InLargeBatches]


def images() -> tuple[Tensor, Tensor]:
    y = torch.arange(N) % 2
    x = grey_images(N) + 0.06 * (2 * y - 1).view(-1, 1, 1, 1)
    return x.clamp(0, 1), y


@pytest.mark.parametrize("kind", DEPENDING)
def test_the_answer_alone_counts_and_a_flag_says_why(kind: type[nn.Module]) -> None:
    x, y = images()
    module = kind().eval()
    with torch.no_grad():
        alone = torch.cat([module(one[None]) for one in x])
    found = evaluate(
        module, dataset_of(x, y, 2), "fgsm", eps=0.001, operating_point="argmax", device="cpu"
    )
    assert found.clean == pytest.approx(float((alone.argmax(1) == y).float().mean()))
    assert "answers_depend_on_batch" in {flag.name for flag in found.flags}


@pytest.mark.parametrize("kind", [Plain, Dropping])
def test_others_are_not_flagged(kind: type[nn.Module]) -> None:
    x, y = images()
    found = evaluate(
        kind().eval(),
        dataset_of(x, y, 2),
        "fgsm",
        eps=0.001,
        operating_point="argmax",
        device="cpu",
    )
    assert "answers_depend_on_batch" not in {flag.name for flag in found.flags}


def test_networks_of_the_field_answer_each_image_alone() -> None:
    x = grey_images(9)
    for victim in (victim_of(Small(1, 3)), small_mask_victim(2)):
        with frozen(victim.module):
            assert depends_on_batch(victim, x, victim.logits(x)) == 0
