"""A victim: its contract, its frozen state, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.errors import InvalidOutputError, VictimError
from robustbench_med.victim import InputContract, Victim, frozen, looks_like_probabilities
from tests.toys import Linear, Small, grey_images, linear_victim, small_victim, victim_of


class Echo(nn.Module):
    """Answers the pixel means of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def state_of(module: nn.Module) -> tuple[list[bool], list[bool]]:
    modes = [part.training for part in module.modules()]
    return modes, [p.requires_grad for p in module.parameters()]


def mixed() -> nn.Module:
    """Return a training module with a batch norm held in eval mode and two frozen parameters."""
    module = Small(1, 2).train()
    module.features[1].eval()
    module.head[0].eval()
    for parameter in list(module.parameters())[1:3]:
        parameter.requires_grad_(False)
    return module


def test_frozen_restores_a_mixed_state_exactly() -> None:
    module = mixed()
    before = state_of(module)
    assert len(set(before[0])) == len(set(before[1])) == 2
    with frozen(module) as held:
        assert held is module
        assert not any(flag for flags in state_of(module) for flag in flags)
    assert state_of(module) == before


def test_frozen_restores_after_an_exception() -> None:
    module = mixed()
    before = state_of(module)
    with pytest.raises(ZeroDivisionError), frozen(module):
        raise ZeroDivisionError
    assert state_of(module) == before


def test_frozen_restores_though_a_hook_cannot_freeze() -> None:
    """A module whose `eval` raises half-way is restored too."""

    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Stubborn:
            super().train(mode)
            if not mode:
                raise RuntimeError("no")
            return self

    module = nn.Sequential(nn.Dropout(), Stubborn())
    before = state_of(module)
    with pytest.raises(RuntimeError, match="no"), frozen(module):
        pass
    assert state_of(module) == before


def test_frozen_leaves_batch_norm_statistics_alone() -> None:
    module = Small(1, 2).train()
    norm = module.features[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    with frozen(module):
        module(grey_images(4))
    assert torch.equal(norm.running_mean, before)


def test_normalisation_is_inside() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    victim = Victim(Echo(), InputContract(channels=3, size=(4, 4), mean=mean, std=std))
    expected = (x.flatten(2).mean(2) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(victim(x).logits, expected)
    victim = Victim(Echo(), InputContract(channels=3, size=(4, 4), mean=(0.5,), std=(0.25,)))
    torch.testing.assert_close(victim(x).logits, (x.flatten(2).mean(2) - 0.5) / 0.25)


def test_normalisation_of_a_volume() -> None:
    x = torch.rand(2, 1, 3, 4, 4)
    victim = Victim(Echo(), InputContract(channels=1, size=(3, 4, 4), mean=(0.5,), std=(2.0,)))
    torch.testing.assert_close(victim(x).logits, (x.flatten(2).mean(2) - 0.5) / 2)


def test_an_offset_moves_the_logits_and_at_replaces_it() -> None:
    victim = small_victim(3)
    x = grey_images(4)
    offset = torch.tensor([0.0, 1.0, -2.0])
    moved = victim.at(offset)
    torch.testing.assert_close(moved(x).logits, victim(x).logits + offset)
    torch.testing.assert_close(moved.at(None)(x).logits, victim(x).logits)
    torch.testing.assert_close(moved.at(offset)(x).logits, moved(x).logits)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_logits_come_in_chunks_without_gradient(chunk: int) -> None:
    victim = small_victim(2)
    sizes: list[int] = []
    victim.module.register_forward_pre_hook(lambda _, passed: sizes.append(len(passed[0])))
    x = grey_images(7)
    logits = Victim(victim.module, victim.contract, chunk=chunk).logits(x)
    assert max(sizes) <= chunk
    assert sum(sizes) == 7
    assert not logits.requires_grad
    torch.testing.assert_close(logits, victim(x).logits.detach())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_no_number_is_refused(bad: float) -> None:
    w, b = torch.zeros(2, 64), torch.tensor([0.0, bad])
    victim = victim_of(Linear(w, b))
    with pytest.raises(InvalidOutputError, match="NaN or Inf on 5 of 5 images"):
        victim.logits(grey_images(5))


def test_only_the_images_with_nan_are_counted() -> None:
    victim = linear_victim(2)
    x = grey_images(100)
    x[[3, 70]] = torch.nan
    with pytest.raises(InvalidOutputError, match="NaN or Inf on 2 of 100 images"):
        victim.logits(x)


# --- probabilities -------------------------------------------------------------------------------


def test_probabilities_become_logits() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    raw = Victim(Echo(), InputContract(channels=3, size=(8, 8)))
    soft = Victim(
        nn.Sequential(Echo(), nn.Softmax(1)),
        InputContract(channels=3, size=(8, 8), returns="probabilities"),
    )
    torch.testing.assert_close(soft(x).logits.softmax(1), raw(x).logits.softmax(1))
    victim = Victim(
        nn.Sequential(Echo(), nn.Sigmoid()),
        InputContract(channels=1, size=(8, 8), returns="probabilities"),
    )
    torch.testing.assert_close(victim(x[:, :1]).logits, x[:, :1].flatten(2).mean(2))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_saturated_probabilities_stay_finite(k: int) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(max(k, 2))[: len(x), :k]

    victim = Victim(Sure(), InputContract(channels=1, size=(8, 8), returns="probabilities"))
    assert torch.isfinite(victim.logits(grey_images(2))).all()


def test_probabilities_are_recognised() -> None:
    logits = 4 * torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    assert looks_like_probabilities(logits.softmax(1))
    assert looks_like_probabilities(logits.sigmoid())  # findings, one column each
    assert looks_like_probabilities(logits[:, :1].sigmoid())
    assert looks_like_probabilities(torch.full((4, 3), 1 / 3))
    assert not looks_like_probabilities(logits)
    assert not looks_like_probabilities(logits.abs())
    assert not looks_like_probabilities(logits.log_softmax(1))
    assert not looks_like_probabilities(logits.softmax(1) * 2)


# --- check ---------------------------------------------------------------------------------------


def test_check_accepts_what_fits_and_restores_the_mode() -> None:
    victim = small_victim(2)
    victim.module.train()
    victim.check(grey_images(3), (1, 2))
    assert victim.module.training


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 9), (2, 1, 16, 16)])
def test_check_refuses_other_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(VictimError, match=r"expected images of shape \(1, 8, 8\), got \("):
        small_victim(2).check(torch.zeros(shape), (2,))


def test_check_refuses_other_widths() -> None:
    with pytest.raises(VictimError, match=r"expected 1 or 2 logits for this data, got outputs \(3"):
        small_victim(3).check(grey_images(2), (1, 2))


def test_check_refuses_maps() -> None:
    victim = victim_of(nn.Conv2d(1, 2, 1))
    with pytest.raises((VictimError, TypeError)) as caught:
        victim.check(grey_images(2), (2,))
    assert isinstance(caught.value, VictimError)


def test_check_tells_what_a_model_cannot_read() -> None:
    victim = Victim(nn.Linear(7, 2), InputContract(channels=1, size=(8, 8)))
    with pytest.raises(VictimError, match=r"expected a model that reads \(1, 8, 8\) images") as e:
        victim.check(grey_images(2), (2,))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [AssertionError, ValueError, TypeError])
def test_check_tells_whatever_a_model_raises(kind: type[Exception]) -> None:
    """Vision transformers assert their image size: no RuntimeError."""

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise kind("Input height (8) doesn't match model (224).")

    with pytest.raises(VictimError, match="Input height"):
        victim_of(Picky()).check(grey_images(2), (2,))


def test_check_tells_of_a_model_that_raises_without_a_word() -> None:
    class Mute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(VictimError, match="expected a model that reads"):
        victim_of(Mute()).check(grey_images(2), (2,))
