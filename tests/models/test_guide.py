"""A straight-through guide has gradients behind a transform; the judge is the deployed model."""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks.pgd import pgd
from robustbench_med.models.guide import straight_through
from robustbench_med.types import Images, Output
from tests.toys import draws, grey_images, linear_victim, problem_of

LEVELS = 16


def rounded(x: Images) -> Images:
    return (x * LEVELS).round() / LEVELS


def test_the_guide_answers_as_the_transformed_victim_and_has_its_gradient() -> None:
    victim = linear_victim(3, scale=1.0)
    x = grey_images(5)
    guide = straight_through(rounded, victim)
    torch.testing.assert_close(guide(x).logits, victim(rounded(x)).logits)
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(guide(leaf).logits[:, 1].sum(), leaf)
    inner = rounded(x).requires_grad_(True)
    (expected,) = torch.autograd.grad(victim(inner).logits[:, 1].sum(), inner)
    torch.testing.assert_close(g, expected)


def test_pgd_through_it_breaks_what_the_naive_attack_cannot() -> None:
    victim = linear_victim(3, scale=1.0)
    x = grey_images(24)

    def deployed(z: Images) -> Output:
        return victim(rounded(z))

    y = deployed(x).logits.argmax(1)
    naive = problem_of(victim, x, y, eps=0.05)
    naive = replace(naive, judge=deployed)
    adaptive = replace(naive, guide=straight_through(rounded, victim))
    blind = naive.probe(pgd(naive, rng=draws(24), steps=10)).is_final.float().mean()
    z = pgd(adaptive, rng=draws(24), steps=10)
    seeing = adaptive.probe(z).is_final.float().mean()  # the judge rounds
    assert (adaptive.ball.size(z, x) <= 0.05 + 1e-6).all()
    assert naive.counter.zero > 0
    assert seeing > blind + 0.3
