"""ALMA prox: split the norm from the constraints of all pixels, by an augmented Lagrangian."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.pixels import on_pixels
from robustbench_med.objectives.segmentation import Pixels
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

# defaults of the authors' adversarial-library, under the names of the paper
_EVERY = 10  # M: steps between two looks whether the constraints have come nearer
# tau: what counts as nearer; gamma: how fast rho grows where a constraint has not come nearer
_NEARER, _GROWTH = 0.95, 2.0
_KEPT = 0.8  # alpha: weight of the past in the averages of mu and of the squared gradient
_RHO, _LEAST_MU = 0.01, 1e-12
# how fast the scale w of the constraints moves, and its least value
_SCALE, _LEAST_SCALE = 0.02, 0.1
_LAST_LR = 0.1  # the last step over the first
_BEYOND = 1e-4  # how far a pixel must be beyond the boundary, in units of the ratio of logits
_HALVINGS = 30  # of the interval in which the norm of the proximal step is searched
_TINY = 1e-8


@attack(
    title="ALMA prox",
    summary="Least L-inf change of a mask, by an augmented Lagrangian and proximal steps.",
    source="Rony, Pesquet, Ben Ayed, CVPR 2023",
    version=1,
    norms=("linf",),
    tasks=("segmentation",),
    schedule="distance",
    positive=("steps", "lr"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def alma_prox(
    problem: Problem, *, rng: Draws, steps: int = 500, lr: float = 0.001, fraction: float = 0.99
) -> Images:
    """Return the nearest successes of the ALMA prox attack.

    Args:
        problem: the batch to attack, of a segmentation task. The radius of its ball guides nothing;
            a success beyond it is not returned.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        lr: length of the first step in the metric of the gradients, in image units, > 0; it falls
            to a tenth after the first success, or after half of the steps.
        fraction: share of the pixels that must reach the goal in the last step, in (0, 1]; in the
            first step all must. The pixels that are farthest from it are given up.

    Returns:
        `(b, c, *s)` nearest successful candidates; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of its range, or the task is not segmentation.

    Source: Rony, Pesquet, Ben Ayed, "Proximal splitting adversarial attacks for semantic
        segmentation", CVPR 2023, ALMA prox: a penalty and a multiplier for each pixel, constraints
        that are masked and scaled, and a proximal step for the L-inf norm and the box, in the
        diagonal metric of an average of squared gradients. The constants are the defaults of the
        authors' adversarial-library.
    Deviations: The objective decides what a success is (for damage a Dice below 0.5), where the
        paper asks for 99 % of the pixels; `fraction` only chooses which constraints are kept. The
        ratio of logits needs three classes, and it is constant where the class to reach is the
        last of three; with two classes, and for a target, the difference is divided by its mean
        absolute value over the clean image instead. The norm of the proximal step is found by
        bisection of its optimality condition, not by a ternary search of its objective. The last
        iterate is judged too.
    """
    if not 0 < fraction <= 1:
        raise SpecError(f"expected 0 < fraction <= 1, got {fraction}")
    if len(problem) == 0:
        return problem.x
    lagrangian = _Lagrangian(problem, steps, fraction)
    nearest, x = Nearest(problem), problem.x
    posed = on_pixels(problem, lagrangian.loss, torch.arange(len(x), device=x.device))
    delta, square = torch.zeros_like(x), torch.zeros_like(x)
    found = torch.full_like(nearest.size, steps // 2)  # the step after which lr falls
    for step in range(steps):
        lagrangian.step = step
        z = (x + delta).clamp_(0, 1)
        g, verdict = posed.gradient(z)
        success = posed.confirm(z, verdict).success
        first = success & nearest.size.isinf() & (step < steps // 2)
        found = torch.where(first, torch.full_like(found, step), found)
        nearest.keep(z, success)
        lagrangian.rescale(success)
        g = problem.ball.mask(g)
        square = _KEPT * square + (1 - _KEPT) * g.square()
        metric = (square / (1 - _KEPT ** (step + 1))).sqrt().clamp_min(_TINY)
        rate = _rate(lr, step, found, steps)
        delta = proximal_linf(delta + _wide(rate, x) * g / metric, rate, metric, x)
        delta = problem.ball.mask(delta)
    z = (x + delta).clamp_(0, 1)
    nearest.keep(z, problem.probe(z).success)
    near = nearest.size <= torch.as_tensor(problem.ball.eps).to(x)
    return torch.where(_wide(near, x), nearest.best, x)


class _Lagrangian:
    """The multipliers of all pixels, `(b, p)`, updated whenever their constraints are evaluated.

    A constraint is the margin by which a pixel fails its goal, divided by a scale of the logits; it
    holds below 0.

    Attributes:
        step: number of the step, from 0.
        scale: `(b,)` factor of the constraints (w in the paper).
    """

    def __init__(self, problem: Problem, steps: int, fraction: float) -> None:
        b = len(problem)
        like = problem.x.new_ones(b, problem.y[0].numel())
        self.step, self._steps, self._fraction = 0, steps, fraction
        self.scale = problem.x.new_ones(b)
        self._mu, self._rho, self._previous = like, _RHO * like, like.clone()
        self._reached = torch.zeros_like(like, dtype=torch.bool)  # since the last look at rho
        self._unit = problem.x.new_ones(b)

    def loss(self, pixels: Pixels, rows: Rows) -> PerSample:
        """Return minus the penalties of the pixels that count, summed; update the multipliers.

        Without a gradient, as when a judge confirms a success, nothing is updated.
        """
        ratio = self._ratio(pixels, rows)
        constraint = self.scale[rows, None] * ratio
        counts = self._counts(pixels, constraint.detach())
        if pixels.logits.requires_grad:
            self._update(pixels, constraint.detach(), counts, rows)
        each = penalty(constraint, self._rho[rows], self._mu[rows])
        return -torch.where(counts, each, 0.0).sum(1)

    def rescale(self, success: Bool[Tensor, " b"]) -> None:
        """Make the constraints weigh less where they hold, and more where they do not."""
        factor = torch.where(success, 1 + _SCALE, 1 - _SCALE)
        self.scale = (self.scale / factor).clamp(_LEAST_SCALE, 1)

    def _ratio(self, pixels: Pixels, rows: Rows) -> Float[Tensor, "b p"]:
        reference = pixels.reference[:, None]
        own = pixels.logits.gather(1, reference)[:, 0]
        other = pixels.logits.scatter(1, reference, -torch.inf).amax(1)
        margin = own - other if pixels.away else other - own
        if pixels.away and pixels.logits.shape[1] > 2:
            top = pixels.logits.topk(3, dim=1).values
            return margin / (top[:, 0] - top[:, 2]).clamp_min(_TINY) + _BEYOND
        if self.step == 0:
            self._unit[rows] = pixels.mean(margin.detach().abs()).clamp_min(_TINY)
        return margin / self._unit[rows, None] + _BEYOND

    def _counts(self, pixels: Pixels, constraint: Tensor) -> Bool[Tensor, "b p"]:
        """Return the pixels whose constraints are kept: all but those farthest from the goal."""
        given_up = (1 - self._fraction) * self.step / max(self._steps - 1, 1)
        most = (given_up * pixels.counted.sum(1)).long()
        order = constraint.masked_fill(~pixels.counted, -torch.inf).argsort(1, descending=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return pixels.counted & (rank >= most[:, None])

    def _update(self, pixels: Pixels, constraint: Tensor, counts: Tensor, rows: Rows) -> None:
        self._reached[rows] |= pixels.reached
        if self.step == 0:
            self._previous[rows] = constraint
            return
        if (self.step + 1) % _EVERY == 0:
            nearer = constraint * counts <= _NEARER * self._previous[rows]
            stuck = ~(self._reached[rows] | nearer)
            self._rho[rows] = torch.where(stuck, _GROWTH * self._rho[rows], self._rho[rows])
            self._previous[rows], self._reached[rows] = constraint, False
        slope = penalty_slope(constraint, self._rho[rows], self._mu[rows])
        mu = self._mu[rows].lerp(torch.where(counts, slope, 0.0), 1 - _KEPT)
        self._mu[rows] = mu.clamp(_LEAST_MU, 1)


def penalty(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Return the penalty of a constraint y <= 0 with parameter rho and multiplier mu.

    Source: the penalty P2 that Rony, Pesquet, Ben Ayed, CVPR 2023, use.

    >>> penalty(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3), torch.ones(3))
    tensor([-0.5000,  0.0000,  2.1667])
    """
    above, below = _parts(y)
    over = mu * above + mu * rho * above.square() + rho.square() * above**3 / 6
    return torch.where(y >= 0, over, mu * below / (1 - rho.clamp_min(1) * below))


def _parts(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return y where it is not below 0, and where it is, else 0; of 0 itself the slope is kept."""
    return torch.where(y >= 0, y, 0.0), torch.where(y >= 0, 0.0, y)


def penalty_slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Return the derivative of the penalty by y: the next multiplier."""
    above, below = _parts(y)
    over = mu + 2 * mu * rho * above + rho.square() * above.square() / 2
    return torch.where(y >= 0, over, mu / (1 - rho.clamp_min(1) * below).square())


def proximal_linf(delta: Images, rate: PerSample, metric: Images, x: Images) -> Images:
    """Return the nearest change to `delta` in a metric H, with a price on its L-inf norm.

    It is the p with x + p in [0,1] that minimises rate |p|_inf + (p - delta)' H (p - delta) / 2.
    For a norm t, the best p is delta clipped to the box and to [-t, t]. The slope of what is
    minimised rises with t; its root is found by bisection.

    Args:
        delta: `(b, c, *s)` change before the step.
        rate: `(b,)` weight of the norm, >= 0.
        metric: `(b, c, *s)` diagonal of H, > 0.
        x: `(b, c, *s)` clean images in [0,1].
    """
    boxed = torch.minimum(torch.maximum(delta, -x), 1 - x)
    size, wish, weight = (v.flatten(1) for v in (boxed.abs(), delta.abs(), metric))
    low, high = torch.zeros_like(rate), size.amax(1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        pull = torch.where(size > middle[:, None], weight * (wish - middle[:, None]), 0.0).sum(1)
        larger = pull > rate
        low, high = torch.where(larger, middle, low), torch.where(larger, high, middle)
    norm = _wide(high, x)
    return torch.minimum(torch.maximum(boxed, -norm), norm)


def _rate(lr: float, step: int, found: PerSample, steps: int) -> PerSample:
    """Return the length of a step: lr until `found`, then falling to a tenth of it as 1 / step."""
    slow = _LAST_LR / (1 - _LAST_LR) * (steps - found).clamp_min(1)
    return lr * slow / ((step - found).clamp_min(0) + slow)


def _wide(values: Tensor, like: Images) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
