"""Adversarial training: what is crafted, what is descended, and what must not be touched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional

from attacks.pgd import pgd_last
from defenses.adversarial_training import fast_at, mart, pgd_at, trades, universal_at
from defenses.losses import divergence, label_divergence, margin_term, wrong_probability
from defenses.weight_perturbation import perturbed_loss
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.training import masks
from robustbench_med.types import Images, Logits, Truth
from robustbench_med.victim import InputContract, Victim
from tests.toys import Linear, Small, SmallMasks

Loss = Callable[[Logits, Truth], Tensor]


def num(value: Tensor) -> float:
    return float(value.detach())


def bce(logits: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, y.to(logits))


TASKS: dict[str, tuple[Loss, type[nn.Module], int]] = {
    "single_label": (functional.cross_entropy, Small, 3),
    "multi_label": (bce, Small, 2),
    "segmentation": (masks.loss, SmallMasks, 2),
}


def posed(task: str, *, b: int = 5, channels: int = 1) -> tuple[Victim, Tensor, Tensor, Loss]:
    loss, network, k = TASKS[task]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = network(channels, k)
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.data.mul_(4)
        x = torch.rand(b, channels, 10, 10)
        shape = {"single_label": (b,), "multi_label": (b, k), "segmentation": (b, 10, 10)}[task]
        y = torch.randint(k, shape)
    return Victim(module.train(), InputContract(channels=channels, size=(10, 10))), x, y, loss


class Recorder:
    """Keeps what an attack was asked and what it answered."""

    def __init__(self, attack: Callable[..., Images] = pgd_last) -> None:
        self.attack = attack
        self.problems: list[Problem] = []
        self.effort: dict[str, Any] = {}
        self.found: list[Tensor] = []

    def __call__(self, problem: Problem, *, rng: Any, **effort: Any) -> Images:  # noqa: ANN401
        z = self.attack(problem, rng=rng, **effort)
        self.problems.append(problem)
        self.effort = effort
        self.found.append(z)
        return z


def shifted(delta: Tensor) -> Callable[..., Images]:
    return lambda problem, **_: problem.x + delta


# --- what is crafted -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("b", "channels"), [(5, 1), (1, 3)])
def test_crafted_images_stay_in_the_ball_and_raise_the_loss(
    task: str, norm: Norm, b: int, channels: int
) -> None:
    victim, x, y, loss = posed(task, b=b, channels=channels)
    victim.module.eval()  # one image is a batch norm's batch of one
    eps = {"linf": 0.05, "l2": 0.5}[norm]
    seen = Recorder()
    torch.manual_seed(1)
    found = pgd_at(victim, x, y, loss=loss, attack=seen, eps=eps, norm=norm)
    (z,) = seen.found
    assert found.requires_grad
    assert not z.requires_grad
    assert bool((Ball(norm, eps).size(z, x) <= eps + 1e-5).all())
    assert 0 <= num(z.min()) <= num(z.max()) <= 1
    assert num(found) > 1.02 * num(loss(victim(x).logits, y))
    assert num(found) == pytest.approx(num(loss(victim(z).logits, y)), rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_trades_maximises_the_divergence(task: str) -> None:
    victim, x, y, loss = posed(task)
    seen = Recorder()
    torch.manual_seed(1)
    trades(victim, x, y, loss=loss, attack=seen, eps=0.05)
    victim.module.eval()
    clean, start = victim(x).logits, x + 0.05 * (torch.rand_like(x) * 2 - 1)
    climbed = divergence(clean, victim(seen.found[0]).logits, y)
    assert num(climbed) > 2 * num(divergence(clean, victim(start.clamp(0, 1)).logits, y)) > 0


def test_every_image_takes_all_steps() -> None:
    victim, x, y, loss = posed("single_label")
    seen = Recorder()
    pgd_at(victim, x, y, loss=loss, attack=seen, eps=0.5, steps=6)
    counter = seen.problems[0].counter
    assert counter.backward == counter.forward == 6 * len(x)


def test_fast_at_takes_one_long_step_from_a_random_start() -> None:
    victim, x, y, loss = posed("single_label")
    seen = Recorder()
    fast_at(victim, x, y, loss=loss, attack=seen)
    assert seen.effort == {"steps": 1, "total_step": 1.25}
    first = seen.found[0]
    fast_at(victim, x, y, loss=loss, attack=seen)
    assert not torch.equal(first, seen.found[1])  # the start is drawn anew


@pytest.mark.parametrize("function", [pgd_at, trades, mart, fast_at, universal_at])
@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_crafting_leaves_the_network_as_it_was(function: Callable[..., Tensor], awp: float) -> None:
    """Only the passes that are descended reach the batch norm; modes and gradients come back."""
    victim, x, y, loss = posed("single_label")
    module = victim.module
    assert isinstance(module, Small)
    part = module.features[1]
    part.eval()
    modes = [one.training for one in module.modules()]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    function(victim, x, y, loss=loss, attack=pgd_last, awp=awp)
    assert [one.training for one in module.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    part.train()
    function(victim, x, y, loss=loss, attack=pgd_last, awp=awp)
    passes = 2 if function in (trades, mart) else 1
    assert int(module.state_dict()["features.1.num_batches_tracked"]) == passes


# --- what is descended ---------------------------------------------------------------------------


def tiny() -> tuple[Victim, Tensor, Tensor, Tensor]:
    module = Linear(torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0]]), torch.zeros(3))
    victim = Victim(module, InputContract(channels=1, size=(1, 2)))
    x = torch.tensor([[[[0.2, 0.6]]], [[[0.9, 0.1]]]])
    return victim, x, torch.tensor([1, 2]), torch.tensor([[[[0.05, -0.1]]]])


def by_hand(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def hand(x: list[float]) -> list[float]:
    a, b = x
    return by_hand([a - 2 * b, 0.5 * a + b, -a])


def test_trades_by_hand() -> None:
    victim, x, y, delta = tiny()
    found = trades(
        victim, x, y, loss=functional.cross_entropy, attack=shifted(delta), eps=0.1, beta=3.0
    )
    expected = 0.0
    for image, label in zip([[0.2, 0.6], [0.9, 0.1]], [1, 2], strict=True):
        p, q = hand(image), hand([image[0] + 0.05, image[1] - 0.1])
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected += (-math.log(p[label]) + 3.0 * kl) / 2
    assert num(found) == pytest.approx(expected, rel=1e-5)


def test_mart_by_hand() -> None:
    victim, x, y, delta = tiny()
    found = mart(
        victim, x, y, loss=functional.cross_entropy, attack=shifted(delta), eps=0.1, beta=5.0
    )
    expected = 0.0
    for image, label in zip([[0.2, 0.6], [0.9, 0.1]], [1, 2], strict=True):
        p, q = hand(image), hand([image[0] + 0.05, image[1] - 0.1])
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        wrong = max(v for k, v in enumerate(q) if k != label)
        boosted = -math.log(q[label]) - math.log(1 - wrong)
        expected += (boosted + 5.0 * kl * (1 - p[label])) / 2
    assert num(found) == pytest.approx(expected, rel=1e-5)


def test_mart_of_one_logit_is_that_of_the_pair() -> None:
    one = torch.tensor([[0.7], [-1.2], [30.0]])
    pair = torch.cat([torch.zeros_like(one), one], 1)
    y = torch.tensor([1, 1, 0])
    torch.testing.assert_close(margin_term(one, y), margin_term(pair, y))
    torch.testing.assert_close(wrong_probability(one, y), wrong_probability(pair, y))
    torch.testing.assert_close(
        wrong_probability(pair, y), 1 - pair.softmax(1).gather(1, y[:, None])[:, 0]
    )
    torch.testing.assert_close(label_divergence(one, -one), label_divergence(pair, _turned(pair)))
    assert num(margin_term(one, y)[2]) == pytest.approx(30.0)  # 1 - p underflows, this does not


def _turned(pair: Tensor) -> Tensor:
    return torch.cat([pair[:, :1], -pair[:, 1:]], 1)


def test_mart_does_not_count_the_unlabelled() -> None:
    victim, x, y, delta = tiny()

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y, ignore_index=-1)

    alone = mart(victim, x[:1], y[:1], loss=loss, attack=shifted(delta))
    hidden = mart(victim, x, torch.tensor([1, -1]), loss=loss, attack=shifted(delta))
    torch.testing.assert_close(alone, hidden)


def test_the_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 6, 4)
    softmax = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    y = torch.tensor([0, 1, 2, 3, -1, 0])
    torch.testing.assert_close(divergence(p, q, y), softmax[y >= 0].mean())
    each = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    findings = torch.randint(-1, 2, (6, 4))
    torch.testing.assert_close(divergence(p, q, findings), each[findings >= 0].mean())
    p, q = torch.randn(2, 2, 3, 5, 5)
    pixels = kl_divergence(
        Categorical(logits=p.movedim(1, -1)), Categorical(logits=q.movedim(1, -1))
    )
    mask = torch.randint(-1, 3, (2, 5, 5))
    torch.testing.assert_close(divergence(p, q, mask), pixels[mask >= 0].mean())
    sure = torch.tensor([[200.0, -200.0]])
    assert num(divergence(sure, -sure, torch.tensor([[0, 1]]))) == pytest.approx(200.0)


@pytest.mark.parametrize("task", TASKS)
def test_without_a_radius_trades_is_the_clean_loss(task: str) -> None:
    victim, x, y, loss = posed(task)
    victim.module.eval()
    clean = num(loss(victim(x).logits, y))
    near = trades(victim, x, y, loss=loss, attack=pgd_last, eps=1e-7, beta=6.0)
    far = trades(victim, x, y, loss=loss, attack=pgd_last, eps=0.1, beta=6.0)
    assert num(near) == pytest.approx(clean, abs=1e-4)
    assert num(far) > clean + 0.01


def test_a_universal_perturbation_is_carried_by_the_share() -> None:
    victim, x, y, loss = posed("single_label", b=200)
    victim.module.eval()
    delta = torch.full((1, 1, 10, 10), 0.3)
    here, there = (num(loss(victim(one).logits, y)) for one in (x, x + delta))
    options: dict[str, Any] = {"loss": loss, "attack": shifted(delta)}
    assert num(universal_at(victim, x, y, fraction=0.0, **options)) == pytest.approx(here)
    assert num(universal_at(victim, x, y, fraction=1.0, **options)) == pytest.approx(there)
    half = num(universal_at(victim, x, y, fraction=0.5, **options))
    assert min(here, there) < half < max(here, there)


# --- AWP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_awp_raises_the_loss_and_leaves_the_weights(task: str) -> None:
    victim, x, y, loss = posed(task)
    for part in victim.module.modules():
        part.training = not isinstance(part, nn.Dropout)
    before = copy.deepcopy(victim.module.state_dict())
    plain = perturbed_loss(victim, lambda v: loss(v(x).logits, y), 0.0)
    moved = perturbed_loss(victim, lambda v: loss(v(x).logits, y), 0.05)
    assert num(moved) > num(plain)
    moved.backward()
    for key, value in victim.module.named_parameters():
        assert torch.equal(value, before[key]), key
        assert value.grad is not None, key


def test_awp_moves_each_layer_by_a_share_of_its_norm_along_its_gradient() -> None:
    victim, x, y, _ = tiny()
    loss = functional.cross_entropy
    found = perturbed_loss(victim, lambda v: loss(v(x).logits, y), 0.1)
    module = victim.module
    assert isinstance(module, Linear)
    w = module.w.detach().clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(x.flatten(1) @ w.T, y), w)
    leaf = (w + 0.1 * w.norm() * g / g.norm()).detach().requires_grad_(True)
    expected = loss(x.flatten(1) @ leaf.T, y)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    # the gradient that is descended is the one at the moved weights
    torch.testing.assert_close(module.w.grad, leaf.grad, rtol=1e-4, atol=1e-5)


def test_awp_in_bfloat16() -> None:
    victim, x, y, loss = posed("single_label")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pgd_at(victim, x, y, loss=loss, attack=pgd_last, awp=0.01)
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in victim.module.parameters())


@pytest.mark.parametrize("wrong", [{"awp": -0.1}, {"awp": 2.0}])
def test_a_share_out_of_its_range(wrong: dict[str, float]) -> None:
    victim, x, y, loss = posed("single_label")
    with pytest.raises(SpecError, match=r"expected awp in \[0, 1\], got"):
        pgd_at(victim, x, y, loss=loss, attack=pgd_last, **wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"expected fraction in \[0, 1\], got 1.5"):
        universal_at(victim, x, y, loss=loss, attack=shifted(x[:1] * 0), fraction=1.5)


# --- what it is for ------------------------------------------------------------------------------


def test_a_linear_victim_becomes_robust() -> None:
    """One pixel is right in 95 % and robust; 24 are right together, each within the radius.

    Closed form: an image stands where its margin is above eps times the L1 norm of the weights.
    """
    eps, n = 0.06, 600
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    sign = (2.0 * y - 1)[:, None]
    right = torch.where(torch.rand(n, 1, generator=generator) < 0.95, 1.0, -1.0)
    faint = 0.03 * sign + 0.03 * torch.randn(n, 24, generator=generator)
    x = (0.5 + torch.cat([0.1 * sign * right, faint], 1)).clamp(0, 1).view(n, 1, 5, 5)
    robust, clean = {}, {}
    for name in ("standard", "pgd_at"):
        victim = Victim(
            Linear(torch.zeros(2, 25), torch.zeros(2)),
            InputContract(channels=1, size=(5, 5), mean=(0.5,)),
        )
        optimizer = torch.optim.Adam(victim.module.parameters(), 0.3)
        torch.manual_seed(0)
        for _ in range(250):
            if name == "standard":
                loss = functional.cross_entropy(victim(x).logits, y)
            else:
                loss = pgd_at(victim, x, y, loss=functional.cross_entropy, attack=pgd_last, eps=eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module = victim.module
        assert isinstance(module, Linear)
        away = (module.w[1] - module.w[0]).detach()
        logits = victim(x).logits.detach()
        margin = sign[:, 0] * (logits[:, 1] - logits[:, 0])
        clean[name] = num((margin > 0).float().mean())
        robust[name] = num((margin > eps * away.norm(p=1)).float().mean())
    assert clean["standard"] > 0.97
    assert robust["standard"] < 0.5
    assert robust["pgd_at"] > 0.9


def test_the_objective_of_training_is_one() -> None:
    from defenses.crafting import TrainingLoss
    from robustbench_med.objective import Objective
    from robustbench_med.types import Output

    objective = TrainingLoss(lambda logits: logits.square().mean())
    output, y = Output(torch.full((4, 2), 2.0)), torch.zeros(4, dtype=torch.long)
    assert isinstance(objective, Objective)
    verdict = objective(output, y)
    assert num(verdict.loss.sum()) == pytest.approx(4.0)
    assert not verdict.is_final.any()
    assert objective.margins(output, y).shape == (4, 1)
    assert objective.dlr_scale(output).tolist() == [1.0] * 4
    assert bool(objective.applies(y).all())
    assert objective.bind(y) is objective.select(torch.arange(2)) is objective


def test_a_victim_with_an_offset_keeps_it_under_awp() -> None:
    victim, x, y, _ = tiny()
    at = replace(victim, offset=torch.tensor([5.0, 0.0, 0.0]))
    loss = functional.cross_entropy
    plain = perturbed_loss(at, lambda v: loss(v(x).logits, y), 1e-6)
    assert num(plain) == pytest.approx(num(loss(at(x).logits, y)), rel=1e-3)
