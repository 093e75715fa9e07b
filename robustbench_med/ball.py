"""Ball: the perturbations that are allowed around clean images; `_NORMS` has one row per norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.rng import Draws
from robustbench_med.types import Channels, Images, PerSample, Rows

_TINY = 1e-12


def check_image_units(eps: float) -> None:
    """Raise SpecError if a radius of single values is larger than the step from black to white."""
    if eps > 1:
        raise SpecError(
            f"expected eps <= 1 (0 is black, 1 is white), got {eps:g}: {eps:g} grey levels are "
            f"{eps:g}/255 of an 8-bit image, or '{eps:g}gl' on the command line"
        )


@dataclass(frozen=True)
class Ball:
    """The images in [0,1] within `eps` of the clean ones that differ only where this is allowed.

    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> Ball("linf", 0.1).project(x + 0.3, x).amax().item()  # doctest: +ELLIPSIS
    0.6...

    Attributes:
        norm: "linf", "l2", "l1" or "l0" (the number of values that differ), over all channels and
            pixels of an image.
        eps: radius in image units (x in [0,1]); a float, or `(b,)` for one radius per sample. For
            "l0" a number of values. `inf` if only the box [0,1] bounds the change.
        channels: the channels that may change; None = all.
        region: bool mask `(b or 1, c or 1, *s)`, True where change is allowed; None = everywhere.
        channel_scales: the fraction of the radius that each channel may use, in (0, 1]; L-inf only.
            None = the whole radius.
    """

    norm: Norm
    eps: float | Float[Tensor, " b"]
    channels: Channels = None
    region: Bool[Tensor, "..."] | None = None
    channel_scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        eps = torch.as_tensor(self.eps)
        if not bool((eps >= 0).all()):  # NaN is refused too
            raise SpecError(f"expected eps >= 0, got {eps[~(eps >= 0)].flatten()[0]:g}")
        if self.channel_scales is not None:
            if self.norm != "linf":
                raise SpecError(f"expected norm linf for a radius per channel, got {self.norm!r}")
            if not all(0 < scale <= 1 for scale in self.channel_scales):
                raise SpecError(
                    f"expected fractions of the radius in (0, 1], got {self.channel_scales}"
                )

    def project(self, z: Images, x: Images) -> Images:
        """Return the image near `z` that lies in the ball and in [0,1].

        L-inf: this is the exact Euclidean projection. L2, L1: the projection on the ball, then on
        the box; the result is feasible because x is in [0,1], so clipping only shrinks the
        perturbation. L0: the largest changes remain.
        """
        return (x + self.bound(z - x)).clamp_(0, 1)

    def bound(self, delta: Images) -> Images:
        """Return the perturbation near `delta` with norm at most eps, without regard to the box."""
        return _NORMS[self.norm].project(self.mask(delta), self._radius(delta))

    def steepest(self, g: Images) -> Images:
        """Return the direction of steepest ascent, with unit norm; 0 where `g` is 0."""
        return _NORMS[self.norm].steepest(self.mask(g))

    def step(self, z: Images, g: Images, x: Images, rel_stepsize: float | PerSample) -> Images:
        """Return `z` after a step of `rel_stepsize` times eps in the steepest direction of `g`."""
        if isinstance(rel_stepsize, Tensor):
            rel_stepsize = _per_sample(rel_stepsize, x)
        return self.project(z + rel_stepsize * self.full(g), x)

    def full(self, g: Images) -> Images:
        """Return the perturbation of norm eps in the steepest direction of `g`."""
        return self._radius(g) * self.steepest(g)

    def sample(self, x: Images, rng: Draws) -> Images:
        """Return images drawn uniformly from the ball around `x` and clipped to [0,1].

        Only values that may change are drawn. L0: eps of them, drawn uniformly, change by a uniform
        draw from [-1,1].
        """
        allowed = None
        if self.channels is not None or self.region is not None:
            allowed = self.mask(torch.ones_like(x, dtype=torch.float32))
        delta = _NORMS[self.norm].sample(rng, tuple(x.shape[1:]), self._radius(x), allowed)
        return (x + self.mask(delta.to(x.dtype))).clamp_(0, 1)

    def size(self, z: Images, x: Images) -> PerSample:
        """Return the norm of `z - x` per sample, `(b,)`.

        A channel with a fraction of the radius is measured in units of that fraction. The size is
        inf where a value changed that may not change.
        """
        delta = z - x
        scaled = delta if self.channel_scales is None else delta / self._scales(x)
        size = _NORMS[self.norm].size(scaled.flatten(1))
        if self.channels is None and self.region is None:
            return size
        forbidden = (delta != self.mask(delta)).flatten(1).any(1)
        return size.masked_fill(forbidden, torch.inf)

    def at(self, eps: float | Float[Tensor, " b"]) -> Ball:
        """Return the same ball with another radius."""
        return replace(self, eps=eps)

    def select(self, rows: Rows) -> Ball:
        """Return the ball of the given rows."""
        eps = self.eps[rows] if isinstance(self.eps, Tensor) else self.eps
        region = self.region
        if region is not None and len(region) > 1:
            region = region[rows]
        return replace(self, eps=eps, region=region)

    def _radius(self, x: Images) -> Tensor:
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        eps = eps.reshape(-1, *[1] * (x.ndim - 1))
        return eps if self.channel_scales is None else eps * self._scales(x)

    def _scales(self, x: Images) -> Tensor:
        return x.new_tensor(self.channel_scales).reshape(-1, *[1] * (x.ndim - 2))

    def mask(self, delta: Images) -> Images:
        """Return a perturbation or gradient with 0 where no change is allowed."""
        if self.channels is not None:
            allowed = torch.zeros(delta.shape[1], dtype=torch.bool, device=delta.device)
            allowed[list(self.channels)] = True
            delta = delta * allowed.reshape(-1, *[1] * (delta.ndim - 2))
        return delta if self.region is None else delta * self.region


class _Norm(NamedTuple):
    project: Callable[[Tensor, Tensor], Tensor]
    steepest: Callable[[Tensor], Tensor]
    sample: Callable[[Draws, tuple[int, ...], Tensor, Tensor | None], Tensor]
    size: Callable[[Tensor], Tensor]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _linf_project(delta: Tensor, eps: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(delta, -eps), eps)


def _linf_sample(rng: Draws, shape: tuple[int, ...], eps: Tensor, allowed: Tensor | None) -> Tensor:
    return (rng.uniform(*shape) * 2 - 1) * eps


def _l2_project(delta: Tensor, eps: Tensor) -> Tensor:
    size = _per_sample(delta.flatten(1).norm(dim=1), delta)
    return delta * (eps / size.clamp_min(_TINY)).clamp_max(1)


def _l2_steepest(g: Tensor) -> Tensor:
    # divide by the largest entry first: a gradient of 1e-30 has a direction too
    g = g / _per_sample(g.flatten(1).abs().amax(1), g).clamp_min(torch.finfo(g.dtype).tiny)
    return g / _per_sample(g.flatten(1).norm(dim=1), g).clamp_min(_TINY)


def _masked(drawn: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Return draws with 0 where no change is allowed, and the number of allowed values, >= 1."""
    if allowed is None:
        return drawn, max(math.prod(drawn.shape[1:]), 1)
    return drawn * allowed, allowed.flatten(1).sum(1).clamp_min(1)


def _l2_sample(rng: Draws, shape: tuple[int, ...], eps: Tensor, allowed: Tensor | None) -> Tensor:
    # a normal vector has a uniform direction; u^(1/d) makes the radius uniform in volume
    normal, d = _masked(rng.fork("direction").normal(*shape), allowed)
    direction = _l2_steepest(normal)
    radius = _per_sample(rng.fork("radius").uniform(1)[:, 0] ** (1 / d), direction)
    return direction * radius * eps


def _l1_project(delta: Tensor, eps: Tensor) -> Tensor:
    """Project onto the L1 ball (Duchi et al., ICML 2008, fig. 1)."""
    flat = delta.flatten(1)
    size = flat.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    excess = (ordered.cumsum(1) - eps.flatten(1)) / count
    support = (ordered > excess).sum(1, keepdim=True).clamp_min(1)
    shrink = excess.gather(1, support - 1).clamp_min(0)
    shrunk = flat.sign() * (size - shrink).clamp_min(0)
    inside = size.sum(1, keepdim=True) <= eps.flatten(1)
    return torch.where(inside, flat, shrunk).view_as(delta)


def _l1_steepest(g: Tensor) -> Tensor:
    flat = g.flatten(1)
    top = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign()).view_as(g)


def _l1_sample(rng: Draws, shape: tuple[int, ...], eps: Tensor, allowed: Tensor | None) -> Tensor:
    # Laplace entries have a direction uniform on the L1 sphere; u^(1/d) as for L2
    u = rng.fork("direction").uniform(*shape).double() * 2 - 1
    laplace, d = _masked(-u.sign() * torch.log1p(-u.abs()), allowed)
    flat = laplace.flatten(1)
    unit = (flat / flat.abs().sum(1, keepdim=True).clamp_min(_TINY)).view_as(laplace)
    radius = rng.fork("radius").uniform(1)[:, 0].double() ** (1 / d)
    return (unit * _per_sample(radius, unit)).float() * eps


def _largest(values: Tensor, eps: Tensor) -> Tensor:
    """Return a mask `(b, d)` of the floor(eps) largest values of each row; the first on a tie."""
    count = eps.flatten(1).clamp_max(values.shape[1]).long()
    order = values.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(values.shape[1], device=values.device).expand_as(values)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, rank < count)


def _l0_project(delta: Tensor, eps: Tensor) -> Tensor:
    flat = delta.flatten(1)
    return (flat * _largest(flat.abs(), eps)).view_as(delta)


def _l0_sample(rng: Draws, shape: tuple[int, ...], eps: Tensor, allowed: Tensor | None) -> Tensor:
    change = rng.fork("change").uniform(*shape) * 2 - 1
    # a value that may not change has score 0, below all others
    score, _ = _masked(rng.fork("place").uniform(*shape), allowed)
    return change * _largest(score.flatten(1), eps).view_as(change)


_NORMS: dict[str, _Norm] = {
    "linf": _Norm(_linf_project, torch.sign, _linf_sample, lambda d: d.abs().amax(1)),
    "l2": _Norm(_l2_project, _l2_steepest, _l2_sample, lambda d: d.norm(dim=1)),
    "l1": _Norm(_l1_project, _l1_steepest, _l1_sample, lambda d: d.abs().sum(1)),
    # where only the number of values counts, changing a single value is steepest, as for L1
    "l0": _Norm(_l0_project, _l1_steepest, _l0_sample, lambda d: (d != 0).sum(1).to(d.dtype)),
}
