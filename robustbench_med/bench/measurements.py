"""Measurements: the outcome and the size of every candidate, for each sample and radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.errors import InvalidOutputError
from robustbench_med.metrics.perturbation import psnr, ssim
from robustbench_med.objectives.decide import answer_of
from robustbench_med.problem import Problem
from robustbench_med.shift import Shifted, images_of
from robustbench_med.sized_images import corner
from robustbench_med.stored_images import joined
from robustbench_med.types import Images, Output, Rows, Verdict

Measurements = dict[str, Tensor]  # by name; the first axis of each tensor is the samples
CANDIDATES = "z"  # the measurement that holds the candidates, if a problem keeps them
_AT_PIXELS = ("answer", CANDIDATES)


def measure(problem: Problem, candidates: Images | Shifted, levels: int) -> Measurements:
    """Return the measurements of candidates, `(b, ...)` by name: outcomes and sizes.

    The size of shifted images is the severity that they use, and masks are judged against the
    truth that moved along.

    Args:
        problem: the clean images.
        candidates: images in [0,1], or those of a shift with their parameters.
        levels: steps between the stored values behind 0 and 1, to which `z` is rounded.

    Raises:
        InvalidOutputError: the judge returned NaN or Inf.
    """
    z, shift = images_of(candidates), dict[str, Tensor]()
    if isinstance(candidates, Shifted):
        truth, size = candidates.truth(problem.y), candidates.severity(problem.x)
        shift = candidates.measurements(truth)
        problem = problem if truth is None else replace(problem, y=truth)
    else:
        size = problem.ball.size(z, problem.x)
    answer, suspicion, verdict = _judged(problem, z)
    x, success = problem.x, verdict.success
    rounded = torch.zeros_like(success)
    rows = success.nonzero()[:, 0]
    if len(rows):
        output = problem.outputs(z[rows].mul_(levels).round_().div_(levels))
        rounded[rows] = problem.objective.select(rows)(output, problem.y[rows]).success
    flat = (z - x).flatten(1)
    lowest, highest = flat.aminmax(dim=1)
    return {
        "answer": answer,
        "harm": verdict.harm,
        "done": verdict.is_final,
        "success": success,
        "rounded": rounded,
        "size": size,
        "linf": torch.maximum(lowest.abs(), highest.abs()),
        "l2": flat.norm(dim=1),
        "lowest": z.flatten(1).amin(1),
        "highest": z.flatten(1).amax(1),
        "ssim": _of_successes(ssim, z, x, rows, problem.chunk),
        "psnr": _of_successes(psnr, z, x, rows, problem.chunk),
        **suspicion,
        **shift,
        **({CANDIDATES: z} if problem.keeps else {}),
    }


def clean_measurements(problem: Problem, answer: Output, verdict: Verdict) -> Measurements:
    """Return the measurements of the clean images, from the judge's output for them.

    Their `size` is 0, their `ssim` and `psnr` are NaN, and nothing is rounded.
    """
    ends = [part.flatten(1).aminmax(dim=1) for part in problem.x.split(problem.chunk)]
    lowest, highest = (torch.cat(values) for values in zip(*ends, strict=True))
    nothing, undefined = torch.zeros_like(lowest), torch.full_like(lowest, torch.nan)
    return {
        "answer": answer.logits,
        "harm": verdict.harm,
        "done": verdict.is_final,
        "success": verdict.success,
        "rounded": verdict.success,
        "size": nothing,
        "linf": nothing,
        "l2": nothing,
        "lowest": lowest,
        "highest": highest,
        "ssim": undefined,
        "psnr": undefined,
        **({} if answer.suspicion is None else {"suspicion": answer.suspicion}),
        **({CANDIDATES: every_image(problem)} if problem.keeps else {}),
    }


def of_size(columns: Measurements, size: tuple[int, ...]) -> Measurements:
    """Return measurements of images without what was added to those of a smaller size."""
    return {
        name: value[(..., *corner(size))]
        if name in _AT_PIXELS and value.ndim > len(size)
        else value
        for name, value in columns.items()
    }


def every_image(problem: Problem) -> Images:
    """Return all clean images; those of a smaller size are filled up."""
    return joined(list(problem.x.split(problem.chunk)))


def _judged(problem: Problem, z: Images) -> tuple[Tensor, Measurements, Verdict]:
    """Return the judge's outputs for `z`, their suspicion and the verdicts, chunk by chunk.

    There is no suspicion if the victim has no detector.

    Raises:
        InvalidOutputError: the judge returned NaN or Inf.
    """
    chunks = []
    for rows in torch.arange(len(problem), device=z.device).split(problem.chunk):
        chunk = problem.select(rows)
        output = chunk.outputs(z[rows])
        if not torch.isfinite(output.logits).all():
            raise InvalidOutputError("expected finite logits, got NaN or Inf on an attacked image")
        guarded = output.suspicion is not None
        suspicion = output.suspicion if guarded else output.logits.flatten(1)[:, 0]
        chunks.append((answer_of(output.logits), suspicion, *chunk.objective(output, chunk.y)))
    answer, suspicion, *verdict = map(torch.cat, zip(*chunks, strict=True))
    return answer, {"suspicion": suspicion} if guarded else {}, Verdict(*verdict)


def _of_successes(
    metric: Callable[[Images, Images], Tensor], z: Images, x: Images, rows: Rows, chunk: int
) -> Tensor:
    """Return a metric of the perturbation of each success; NaN for the other samples."""
    values = x.new_full((len(x),), torch.nan)
    for chunk_rows in rows.split(chunk):
        values[chunk_rows] = metric(z[chunk_rows], x[chunk_rows])
    return values


def smallest_success(columns: Measurements) -> Float[Tensor, " b"]:
    """Return the size of the smallest success on each sample, `(b,)`; inf where there is none.

    >>> success = torch.tensor([[False], [True]])
    >>> smallest_success({"size": torch.tensor([[0.1], [0.2]]), "success": success})
    tensor([0.2000])
    """
    return columns["size"].masked_fill(~columns["success"], torch.inf).amin(0)


class Table:
    """The measurements of every sample at every rung, `(r, b, ...)` by name."""

    def __init__(self, rungs: int, samples: int) -> None:
        self.columns: Measurements = {}
        self._shape = (rungs, samples)

    @classmethod
    def of(cls, columns: Measurements) -> Table:
        """Return the table with these measurements `(r, b, ...)`."""
        table = cls(*columns["success"].shape)
        table.columns = columns
        return table

    def put(self, rung: int | Rows, rows: Rows, columns: Measurements) -> None:
        """Write the measurements of some rows, all at one rung or each at its own.

        Raises:
            ValueError: these are other measurements than those of earlier rows.
        """
        if self.columns and self.columns.keys() != columns.keys():
            names = ", ".join(sorted(self.columns.keys() ^ columns.keys()))
            raise ValueError(f"expected the measurements of earlier rows, got others: {names}")
        for name, value in columns.items():
            if name not in self.columns:
                self.columns[name] = value.new_zeros((*self._shape, *value.shape[1:]))
            whole = tuple(self.columns[name].shape[2:])
            if tuple(value.shape[1:]) != whole:  # of images of a smaller size
                value = joined([value], whole)
            self.columns[name][rung, rows] = value

    def carry(self) -> None:
        """Count a success at one rung at all larger ones too, by the same candidate."""
        success = self.columns["success"]
        for i in range(1, len(success)):
            rows = (success[i - 1] & ~success[i]).nonzero()[:, 0]
            for value in self.columns.values():
                value[i, rows] = value[i - 1, rows]
