"""Published protocols do what their papers' code does, faults included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.studies.protocols import mean_norm, project, run_protocol
from robustbench_med.studies.target import Target
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim
from tests.toys import Linear

SIDE = 4
EPS = 0.05


def target(*, channels: int = 1, n: int = 12, margin: float = 0.0) -> Target:
    """Return grey images near 1/2 before a victim that calls class 1 where the mean is above it."""
    w = torch.zeros(2, channels * SIDE**2)
    w[1] = 40 / (channels * SIDE**2)
    victim = Victim(
        Linear(w, torch.tensor([0.0, -20.0])), InputContract(channels=channels, size=(SIDE, SIDE))
    )
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    sign = (2 * y - 1).float().view(-1, 1, 1, 1)
    x = 0.5 + sign * margin + 0.001 * torch.randn(n, channels, SIDE, SIDE, generator=rng)
    ids = np.array([str(i) for i in range(n)])
    return Target(victim, x, y, rng, lambda k: Batch(x[:k], y[:k], ids[:k]))


def right(at: Target, z: torch.Tensor) -> torch.Tensor:
    return at.victim.logits(z).argmax(1) == at.y


def test_pgd_ends_on_the_corner_of_its_ball_and_goes_on_after_success() -> None:
    at = target(margin=0.01)
    z = run_protocol(f"pgd(eps={EPS}, step_size=0.02, steps=4)", at)
    assert not right(at, z).any()
    # two steps are enough to succeed; the published code spends the whole radius all the same
    torch.testing.assert_close((z - at.x).abs(), torch.full_like(z, EPS))


def test_toward_the_flipped_label_is_away_from_the_true_one_for_two_classes() -> None:
    at = target(margin=0.01)
    away = run_protocol(f"pgd(eps={EPS}, step_size=0.01, steps=6)", at)
    flipped = run_protocol(f"pgd(eps={EPS}, step_size=0.01, steps=6, flipped=True)", at)
    torch.testing.assert_close(away, flipped)


def test_fgsm_attacks_images_that_are_wrong_when_clean() -> None:
    at = target(margin=-0.02)
    assert not right(at, at.x).any()
    z = run_protocol(f"fgsm(eps={EPS})", at)
    assert ((z - at.x).abs() > 0.9 * EPS).all()


def test_steps_toward_a_class_leave_its_own_images_and_have_no_ball() -> None:
    at = target(margin=0.01)
    z = run_protocol("i_fgsm(aim=0, step_size=0.005, steps=10)", at)
    ill = at.y == 1
    torch.testing.assert_close(z[~ill], at.x[~ill])
    assert (at.victim.logits(z[ill]).argmax(1) == 0).all()
    # nothing bounds the sum of the steps, also long after success
    torch.testing.assert_close((at.x - z)[ill], torch.full_like(z[ill], 0.05))
    bounded = run_protocol("i_fgsm(aim=0, step_size=0.005, steps=10, eps=0.02)", at)
    torch.testing.assert_close((at.x - bounded)[ill], torch.full_like(z[ill], 0.02))
    healthy = at._replace(x=at.x[~ill], y=at.y[~ill])
    assert torch.equal(run_protocol("i_fgsm(aim=0, step_size=0.1, steps=2)", healthy), healthy.x)


def test_images_made_on_one_model_say_nothing_of_an_attack_on_another() -> None:
    at = target(margin=0.01)
    w = at.victim.module.w.detach().clone()  # type: ignore[operator]
    w[:, : SIDE**2 // 2] = 0
    other = at._replace(
        victim=Victim(Linear(2 * w, torch.tensor([0.0, -20.0])), at.victim.contract)
    )
    left = at.victim.module.w.detach() - w  # type: ignore[operator]
    blind = Victim(Linear(2 * left, torch.tensor([0.0, -20.0])), at.victim.contract)
    attack = "i_fgsm(aim=0, step_size=0.005, steps=10)"
    z = run_protocol(attack, other)
    ill = at.y == 1
    # the transferred images miss the half of the image that the second model reads
    assert (blind.logits(z[ill]).argmax(1) == 1).all()
    direct = run_protocol(attack, at._replace(victim=blind))
    assert (blind.logits(direct[ill]).argmax(1) == 0).all()


def test_shuffling_keeps_every_value_and_loses_the_place() -> None:
    at = target(margin=0.01)
    w = at.victim.module.w.detach().clone()  # type: ignore[operator]
    w[1, ::2] *= -1  # half of the pixels count the other way
    at = at._replace(victim=Victim(Linear(w, torch.zeros(2)), at.victim.contract))
    change = run_protocol(f"fgsm(eps={EPS})", at) - at.x
    moved = run_protocol(f"shuffled(attack='fgsm', eps={EPS})", at) - at.x
    sorted_ = [c.flatten(1).sort(1).values for c in (change, moved)]
    torch.testing.assert_close(*sorted_, atol=1e-6, rtol=0)
    assert not torch.allclose(change, moved)


def test_the_norm_of_one_channel_is_sqrt_3_too_low_for_a_grey_image_in_three() -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.manual_seed(0)).expand(-1, 3, -1, -1)
    ratio = mean_norm(x, "l2") / mean_norm(x, "l2", first_channel=True)
    assert ratio == pytest.approx(math.sqrt(3), rel=1e-6)
    assert mean_norm(x, "linf") == mean_norm(x, "linf", first_channel=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_universal_perturbation_is_one_of_its_size_and_leaves_the_range(norm: str) -> None:
    at = target(margin=0.01)
    bright = at._replace(x=at.x + 0.49)  # nothing keeps the sum in [0,1]
    spec = f"universal(zeta=0.1, norm='{norm}', inner_eps=0.01, max_iter=5, n_fit=12"
    z = run_protocol(f"{spec}, aim=1)", bright)
    noise = z - bright.x
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), atol=1e-6, rtol=0)
    radius = 0.1 * mean_norm(at.x, norm)
    size = noise[0].norm() if norm == "l2" else noise[0].abs().max()
    assert 0 < float(size) <= radius * 1.0001
    assert z.max() > 1


def test_a_targeted_universal_perturbation_takes_all_images_to_its_class() -> None:
    at = target(margin=0.01)
    z = run_protocol("universal(zeta=0.1, inner_eps=0.01, max_iter=5, n_fit=12, aim=1)", at)
    assert (at.victim.logits(z).argmax(1) == 1).all()


def test_a_step_that_does_not_cross_by_itself_is_lost() -> None:
    at = target(margin=0.01)
    spec = "universal(zeta=0.1, inner_eps=0.004, max_iter=5, n_fit=12, aim=1"
    # three steps would take an image across, and no single one does
    torch.testing.assert_close(run_protocol(f"{spec})", at), at.x)
    z = run_protocol(f"{spec}, crossing=False)", at)
    assert (at.victim.logits(z).argmax(1) == 1).all()


def test_an_image_that_is_wrong_when_clean_is_not_fooled_yet() -> None:
    at = target(margin=-0.01)
    assert not right(at, at.x).any()
    z = run_protocol("universal(zeta=0.1, inner_eps=0.02, max_iter=1, n_fit=1)", at)
    before, after = (at.victim.logits(images)[:1].argmax(1) for images in (at.x, z))
    assert before != after
    assert right(at, z)[:1].all()  # it counts as fooled because it became right


def test_with_clipping_no_sum_leaves_the_range() -> None:
    at = target(margin=0.01)
    bright = at._replace(x=at.x + 0.49)
    spec = "universal(zeta=0.1, inner_eps=0.02, max_iter=5, n_fit=12, aim=1"
    assert run_protocol(f"{spec})", bright).max() > 1
    clipped = run_protocol(f"{spec}, clip=True)", bright)
    assert clipped.max() == 1
    assert (clipped > bright.x).any()


def test_the_random_direction_has_the_radius_of_the_fitted_one() -> None:
    at = target()
    spec = "random_direction(zeta=0.1, n_fit=12"
    sphere = run_protocol(f"{spec}, norm='l2')", at) - at.x
    assert float(sphere[0].norm()) == pytest.approx(0.1 * mean_norm(at.x, "l2"), rel=1e-4)
    radius = 0.1 * mean_norm(at.x, "linf")
    corner = (run_protocol(f"{spec}, corner=True)", at) - at.x)[0]
    torch.testing.assert_close(corner.abs(), torch.full_like(corner, radius))


def test_the_random_control_in_l_infinity_is_shorter_than_a_corner_of_its_ball() -> None:
    at = target(channels=64)
    drawn = (run_protocol("random_direction(zeta=0.1, n_fit=12)", at) - at.x)[0]
    radius = 0.1 * mean_norm(at.x, "linf")
    assert 0.98 * radius < float(drawn.abs().max()) <= radius * 1.0001
    corner = radius * math.sqrt(drawn.numel())
    assert float(drawn.norm()) == pytest.approx(corner / math.sqrt(3), rel=0.05)


def test_projection_keeps_what_is_inside_and_scales_the_rest() -> None:
    noise = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(project(noise, 10, "l2"), noise)
    torch.testing.assert_close(project(noise, 1, "l2"), noise / 5)
    torch.testing.assert_close(project(noise, 3.5, "linf"), noise.clamp(max=3.5))
    assert not project(torch.zeros(1, 1, 2, 2), 1, "l2").any()


def test_an_unknown_protocol_or_parameter_is_named() -> None:
    with pytest.raises(UnknownNameError, match="protocol"):
        run_protocol("bogus", target())
    with pytest.raises(SpecError, match="epsilon"):
        run_protocol("fgsm(epsilon=1)", target())


def test_a_random_start_is_inside_the_ball_and_drawn_by_the_generator() -> None:
    at = target(margin=0.01)
    spec = f"pgd(eps={EPS}, step_size=0, steps=1, random_start=True)"
    first, second = (run_protocol(spec, at) - at.x for _ in range(2))
    assert 0.9 * EPS < float(first.abs().max()) <= EPS * 1.0001
    assert not torch.equal(first, second)
    assert not (run_protocol(f"pgd(eps={EPS}, step_size=0, steps=1)", at) - at.x).any()


def test_the_margin_moves_an_image_that_the_cross_entropy_is_too_sure_of() -> None:
    at = target(margin=0.01)
    w = at.victim.module.w.detach() * 1e4  # type: ignore[operator]
    sure = Victim(Linear(w, torch.tensor([0.0, -20e4])), at.victim.contract)
    at = at._replace(victim=sure)
    spec = f"pgd(eps={EPS}, step_size=0.02, steps=3"
    assert right(at, run_protocol(f"{spec})", at)).all()
    assert not right(at, run_protocol(f"{spec}, loss='margin')", at)).any()


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(SpecError, match="margin"):
        run_protocol("pgd(eps=0.1, step_size=0.1, loss='bogus')", target())
