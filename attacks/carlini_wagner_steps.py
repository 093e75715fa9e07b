"""Shared by the attacks of Carlini and Wagner: the evaluation of a candidate, and Adam in a box."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.problem import Problem
from robustbench_med.types import Images, PerSample, Rows

_BETA1, _BETA2 = 0.9, 0.99  # of Adam; 0.999 would average over more than the 20 steps of a search
TINY = 1e-18  # its square is a normal float32


class Settings(NamedTuple):
    """The parameters of the attack."""

    steps: int
    searches: int
    lr: float
    confidence: float


class Evaluation(NamedTuple):
    """The result of one forward and backward pass on a candidate.

    Attributes:
        g: gradient of the loss, 0 where no change is allowed.
        gap: how far the loss is below the confidence that is required.
        success: whether the candidate succeeds with that confidence.
    """

    g: Images
    gap: PerSample
    success: Bool[Tensor, " b"]


def evaluate(problem: Problem, z: Images, confidence: float) -> Evaluation:
    """Evaluate `z` by one forward and backward pass; the judge confirms success."""
    g, verdict = problem.gradient(z)
    verdict = problem.confirm(z, verdict)
    success = verdict.is_final & (verdict.harm >= confidence)
    # where the guide reports success, the judge's harm tells how much is still missing
    reached = torch.where(verdict.loss > 0, verdict.harm, verdict.loss)
    return Evaluation(problem.ball.mask(g), confidence - reached, success)


def total(values: Tensor) -> Tensor:
    """Return the sum over each sample, with a shape that multiplies images."""
    return values.sum(tuple(range(1, values.ndim)), keepdim=True)


def wide(values: Tensor, like: Images) -> Tensor:
    """Return one value per sample, with a shape that multiplies images."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def free_to_move(z: Images, up: Images) -> Bool[Tensor, "b c *s"]:
    """Return where `z` may move along `up` without leaving the box."""
    return ((z > 0) | (up > 0)) & ((z < 1) | (up < 0))


class Adam:
    """Adam with one second moment per value, or with one per sample (`shared`)."""

    def __init__(self, like: Images, *, shared: bool) -> None:
        self.shared = shared
        self.age = like.new_zeros(len(like), *[1] * (like.ndim - 1))
        self.m = torch.zeros_like(like)
        self.v = torch.zeros_like(self.age if shared else like)

    def direction(self, z: Images, up: Images) -> Images:
        """Return the direction in which to move from `z`; its size is about 1 per value."""
        free = free_to_move(z, up)
        up, self.age = up * free, self.age + 1
        square = up.square()
        if self.shared:
            square = total(square) / up[0].numel()
        self.m = (_BETA1 * self.m + (1 - _BETA1) * up) * free
        self.v = _BETA2 * self.v + (1 - _BETA2) * square
        root = (self.v / (1 - _BETA2**self.age)).sqrt()
        return self.m / (1 - _BETA1**self.age) / root.clamp_min(torch.finfo(root.dtype).tiny)

    def restart(self, rows: Bool[Tensor, " b"]) -> None:
        """Start `rows` anew, without the moments of earlier steps."""
        for state in (self.age, self.m, self.v):
            state[rows] = 0

    def select(self, rows: Rows) -> None:
        """Keep only `rows`."""
        self.age, self.m, self.v = self.age[rows], self.m[rows], self.v[rows]
