"""Gradient check: compare an attack's gradients with finite differences of the module's outputs.

An autograd function, a hook or a branch can give a module a backward pass that does not belong to
its forward pass. Every gradient attack then optimises against another function and reports
robustness. Finite differences need only forward passes, so they reveal this.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.bench.gradient_recorder import GradientSample
from robustbench_med.rng import seeded
from robustbench_med.types import Images, Logits
from robustbench_med.victim import Victim

DIRECTIONS = 2  # random directions for each image, at first
PASSES = 2 * DIRECTIONS + 2  # forward passes for each image
MORE = 6  # directions for an image in doubt
STEP = 1e-4  # step of the first difference, in [0,1] image units
STEPS = (3e-5, 1e-3, 4e-3, 1.6e-2)  # further steps for an image in doubt
TINY = 1e-6  # step in double precision
DOUBT = 0.2  # a larger residual is measured again; 1 in 50 of the zoo's right gradients has one
TOLERANCE = 0.3  # a gradient with a larger residual is wrong
STRAIGHT = 0.8  # the same for a straight-through gradient, where the outputs are constant nearby
MOVED = 0.01  # outputs differ if they are farther apart, in units of the spread of the logits
ASKED = 7  # forward passes that are repeated to see whether a module in doubt is random
_NOISE = 4e-7  # relative rounding error of a float32 output
_SIGNAL = 8.0  # a difference counts if it exceeds so many times the noise
_NAMES = ("shown", "logits", "cotangent", "gradient")


@dataclass(frozen=True)
class Comparison:
    """The comparison of some gradients with finite differences.

    Attributes:
        judged: `(p,)` whether the differences exceed the rounding error at any step.
        residual: `(p,)` smallest distance between gradient and differences over all steps, in units
            of the larger of both: 0 = the same, 1 = unrelated or 0, 2 = the opposite.
        moved: `(p,)` distance between the output in the attack's pass and the output without
            gradients, in units of the spread of the logits.
        passes: number of images forwarded.
    """

    judged: Bool[Tensor, " p"]
    residual: Float[Tensor, " p"]
    moved: Float[Tensor, " p"]
    passes: int

    @property
    def disagree(self) -> Bool[Tensor, " p"]:
        """Which gradients are not the derivative of the outputs."""
        return self.judged & (self.residual > TOLERANCE)


def compare(victim: Victim, samples: Sequence[GradientSample], *, seed: int) -> Comparison:
    """Compare an attack's gradients with central differences along random directions.

    If the module is random, every pass uses the same random draws, and the gradient is computed
    again with these draws, since the attack's pass used others.

    Args:
        victim: the victim, whose module the caller has frozen.
        samples: the recorded gradients, at least one.
        seed: seed of the directions.
    """
    shown, logits, cotangent, gradient = (
        torch.stack([getattr(sample, name) for sample in samples]) for name in _NAMES
    )
    plain = replace(victim, recorder=None)
    first = _Differences(plain, shown, logits, cotangent, gradient, seed)
    p = len(first.shown)
    centre, again = (first.answers(first.shown) for _ in range(2))
    passes, moved = 2 * p, _moved(centre, first.logits)
    drawn = _apart(centre, again)
    judged, residual = first.at(STEP, DIRECTIONS)
    passes += 2 * DIRECTIONS * p
    rows = _doubtful(judged, residual)
    if not drawn and (len(rows) or bool((moved > MOVED).any())):
        # two outputs of a random module may be equal by chance, so test more passes before
        # concluding that its gradients are wrong
        drawn, spent = first.draws_at_random()
        passes += spent
    if drawn:
        fixed, moved = first.with_draws_fixed(), torch.zeros_like(moved)
        passes += 4 * p
        if fixed is None:
            none = torch.zeros(p, dtype=torch.bool, device=centre.device)
            return Comparison(none, torch.zeros_like(moved), moved, passes)
        first = fixed
        judged, residual = first.at(STEP, DIRECTIONS)
        passes += 2 * DIRECTIONS * p
        rows = _doubtful(judged, residual)
    if len(rows):
        judged[rows], residual[rows], spent = _again(first.select(rows))
        passes += spent
    return Comparison(judged, residual, moved, passes)


def _doubtful(judged: Bool[Tensor, " p"], residual: Float[Tensor, " p"]) -> Int[Tensor, " some"]:
    return (~judged | (residual > DOUBT)).nonzero()[:, 0]


def _apart(answer: Logits, second: Logits) -> bool:
    return not torch.equal(answer, second) and float(_moved(answer, second).max()) > 1e-4


def _again(doubtful: _Differences) -> tuple[Bool[Tensor, " p"], Float[Tensor, " p"], int]:
    """Compare images in doubt again: with more directions, other steps and in double precision.

    The error that a kink, a tie or rounding causes depends on the step; that of a wrong gradient
    does not.
    """
    ok = torch.zeros(len(doubtful.shown), dtype=torch.bool, device=doubtful.shown.device)
    residual = torch.full(ok.shape, torch.inf, dtype=torch.float64, device=ok.device)
    passes, rows = 0, ok.logical_not().nonzero()[:, 0]
    for step in (STEP, *STEPS, TINY):
        subset: _Differences | None = doubtful.select(rows)
        # volumes are left out, since they take minutes in double precision
        if step == TINY:
            subset = _double(doubtful.select(rows)) if doubtful.shown.ndim == 4 else None
        if subset is None or len(rows) == 0:
            break
        judged, error = subset.at(step, MORE)
        passes += (2 * MORE + int(step == TINY)) * len(rows)
        ok[rows] |= judged
        residual[rows] = residual[rows].minimum(error.masked_fill(~judged, torch.inf))
        # piecewise constant outputs have no useful gradient: accept a straight-through one
        if step == TINY:
            residual[rows[subset.flat()]] *= TOLERANCE / STRAIGHT
        rows = (residual > TOLERANCE).nonzero()[:, 0]
    return ok, residual.nan_to_num(posinf=0.0), passes


def _double(differences: _Differences) -> _Differences | None:
    try:
        return differences.double()
    except Exception:  # noqa: BLE001 - foreign code in another precision
        return None


def _moved(answer: Logits, second: Logits) -> Float[Tensor, " p"]:
    """Return the largest distance of two outputs for each image, in units of the logits' spread."""
    spread = float(answer.max() - answer.min())
    return (answer - second).flatten(1).abs().amax(1) / max(spread, 1e-6)


@dataclass(frozen=True)
class _Differences:
    """Finite differences of a victim's outputs around some images, and the gradients to compare."""

    victim: Victim
    shown: Images
    logits: Logits
    cotangent: Tensor
    gradient: Images
    seed: int
    fixed: bool = False  # whether each pass starts from the same seed

    def select(self, rows: Tensor) -> _Differences:
        """Return the same for some rows; if draws are fixed, the gradient is computed anew.

        The random draws depend on the size of the batch.
        """
        subset = replace(self, **{name: getattr(self, name)[rows] for name in _NAMES})
        return subset.with_own_gradient() if self.fixed and len(rows) else subset

    def answers(self, shown: Images) -> Logits:
        with torch.no_grad(), self._draws():
            parts = self.victim.in_chunks(lambda p: self.victim.answer(shown[p]), len(shown))
            return torch.cat(parts)

    def _draws(self) -> contextlib.AbstractContextManager[None]:
        return seeded(self.seed, "differences") if self.fixed else contextlib.nullcontext()

    def with_draws_fixed(self) -> _Differences | None:
        """Return the same with equal random draws in all passes, and the gradient for these draws.

        None if the module draws from another generator than torch's.
        """
        fixed = replace(self, fixed=True)
        if not torch.equal(fixed.answers(self.shown), fixed.answers(self.shown)):
            return None
        return fixed.with_own_gradient()

    def with_own_gradient(self) -> _Differences:
        """Return the same with the gradient of a pass that uses the same draws as the outputs."""
        leaf = self.shown.clone().requires_grad_(True)
        with torch.enable_grad(), self._draws():
            logits = [self.victim.answer(chunk) for chunk in leaf.split(self.victim.chunk)]
            (g,) = torch.autograd.grad((torch.cat(logits) * self.cotangent).sum(), leaf)
        return replace(self, gradient=g)

    def draws_at_random(self) -> tuple[bool, int]:
        """Return whether repeated passes of an image differ, and the number of passes.

        Images are passed one by one, so that a module that draws once a call draws for each image.
        """
        alone = replace(self, victim=replace(self.victim, chunk=1))
        once = alone.answers(self.shown)
        for i in range(ASKED):
            if _apart(once, alone.answers(self.shown)):
                return True, (i + 2) * len(once)
        return False, (ASKED + 1) * len(once)

    def double(self) -> _Differences | None:
        """Return the same in double precision; None if the outputs then differ."""
        module = copy.deepcopy(self.victim.module).double()
        exact = replace(
            self,
            victim=replace(self.victim, module=module),
            **{name: getattr(self, name).double() for name in _NAMES},
        )
        centre = exact.answers(exact.shown)
        alike = float(_moved(self.answers(self.shown).double(), centre).max()) <= 1e-3
        return exact if centre.dtype == torch.float64 and alike else None

    def at(self, step: float, directions: int) -> tuple[Bool[Tensor, " p"], Float[Tensor, " p"]]:
        """Return which images a step of this size can judge, and the residual of each."""
        contract = self.victim.contract
        h = self.shown.new_tensor(contract.spans) / self.shown.new_tensor(contract.std)
        h = h.view(1, -1, *[1] * (self.shown.ndim - 2))
        exact = self.shown.dtype == torch.float64
        centre = self._value(self.shown) if exact else None
        differences, expected, kinks = [], [], []
        for i in range(directions):
            v = h * self._direction(i)
            up, down = self._value(self.shown + step * v), self._value(self.shown - step * v)
            differences.append((up - down) / (2 * step))
            expected.append((self.gradient.double() * v.double()).flatten(1).sum(1))
            if centre is not None:
                kinks.append((up - 2 * centre + down).abs() / (2 * step))
        fd, pred = torch.stack(differences), torch.stack(expected)
        apart = (fd - pred).abs()
        if kinks:  # at a tie, autograd takes one side and a central difference the middle
            apart = (apart - torch.stack(kinks)).clamp_min(0)
        size = torch.maximum(fd.norm(dim=0), pred.norm(dim=0))
        scale = (self.cotangent * self.logits).double().flatten(1).norm(dim=1)
        noise = (1e-15 if exact else _NOISE) * scale * math.sqrt(directions) / step
        return size > _SIGNAL * noise, apart.norm(dim=0) / size.clamp_min(1e-300)

    def flat(self) -> Bool[Tensor, " p"]:
        """Return around which images the outputs are constant."""
        up, down = (self.answers(self.shown + step) for step in (TINY, -TINY))
        return (up == down).flatten(1).all(1)

    def _direction(self, i: int) -> Images:
        rng = torch.Generator().manual_seed(self.seed * 1000 + i)
        bits = torch.randint(0, 2, self.shown.shape, generator=rng)
        return (2 * bits - 1).to(self.shown)

    def _value(self, shown: Images) -> Float[Tensor, " p"]:
        """Return the output for each image, projected on its cotangent."""
        products = self.answers(shown).double() * self.cotangent.double()
        return products.flatten(1).sum(1)
