"""Victim: a deployed model with its input contract; images in [0,1] in, an `Output` out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.errors import InvalidOutputError, VictimError
from robustbench_med.types import Images, Logits, Output, PerSample

Transform = Callable[[Images], Images]  # images in [0,1] to images in [0,1]
Guard = Callable[[Images, Logits], PerSample]  # images in [0,1], and the victim's logits of them


@dataclass(frozen=True)
class InputContract:
    """What the deployed model expects.

    Attributes:
        channels: number of image channels; `names` says what they are, where it matters.
        size: `(h, w)` or `(d, h, w)` in pixels.
        mean, std: per channel, in [0,1] units. Normalisation happens inside the victim, so that a
            ball is always measured on the image a person would see.
        native_range: what 0 and 1 stand for, e.g. "grey level 0..255" or "HU -1000..400".
        bit_depth: bits a stored pixel has.
        spacing: mm a pixel along each axis, where known.
        returns: "logits", or "probabilities" where the module cannot be made to give logits.
    """

    channels: int
    size: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ()
    native_range: str = "grey level 0..255"
    bit_depth: int = 8
    spacing: tuple[float, ...] | None = None
    returns: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True)
class Victim:
    """A module behind its contract.

    Attributes:
        module: takes normalised images, returns `(b, k)`, or `(b, k, *s)` for masks.
        contract: see InputContract.
        offset: `(k,)` added to the logits: the operating point of the deployed device (see
            `operating_point`). Decision, attack and score all see the same shifted logits.
        chunk: images forwarded at a time.
        draws: forward passes whose logits are averaged: a randomised victim is attacked and judged
            in expectation (EOT: Athalye, Engstrom, Ilyas, Kwok, ICML 2018).
        before: what a defense does to an image first; random ones draw from torch's generator.
        guard: a detector: how suspicious each image is, above 0 where it is rejected.
    """

    module: nn.Module
    contract: InputContract
    offset: Float[Tensor, " k"] | None = None
    chunk: int = 64
    draws: int = 1
    before: Transform | None = None
    guard: Guard | None = None

    def __call__(self, x: Images) -> Output:
        """Return logits `(b, k)`, or `(b, k, *s)`, for images in [0,1]; suspicion with a guard."""
        logits = self._answer(x)
        if self.draws > 1:
            rest = [self._answer(x) for _ in range(self.draws - 1)]
            logits = torch.stack([logits, *rest]).mean(0)
        if self.offset is not None:
            logits = logits + self.offset.to(logits).view(-1, *[1] * (logits.ndim - 2))
        return Output(logits, None if self.guard is None else self.guard(x, logits))

    def normalised(self, x: Images) -> Images:
        """Return what the module is shown of images in [0,1]."""
        c = self.contract
        shape = (1, -1, *[1] * len(c.size))
        mean, std = x.new_tensor(c.mean).view(shape), x.new_tensor(c.std).view(shape)
        return (x if self.before is None else self.before(x)).sub(mean).div(std)

    def _answer(self, x: Images) -> Logits:
        logits: Tensor = self.module(self.normalised(x)).float()
        return _as_logits(logits) if self.contract.returns == "probabilities" else logits

    def outputs(self, x: Images) -> Output:
        """Return logits and suspicion of any number of images, without gradient.

        Raises:
            InvalidOutputError: a logit or suspicion is NaN or Inf.
        """
        with torch.no_grad():
            parts = [self(part) for part in x.split(self.chunk)]
        suspicion = [part.suspicion for part in parts if part.suspicion is not None]
        found = Output(
            torch.cat([part.logits for part in parts]), torch.cat(suspicion) if suspicion else None
        )
        for value in found:
            if value is not None and not torch.isfinite(value).all():
                bad = int((~torch.isfinite(value)).reshape(len(x), -1).any(1).sum())
                raise InvalidOutputError(
                    f"expected finite logits, got NaN or Inf on {bad} of {len(x)} images"
                )
        return found

    def logits(self, x: Images) -> Logits:
        """Return the logits of any number of images, without gradient, chunk by chunk.

        Raises:
            InvalidOutputError: a logit is NaN or Inf.
        """
        return self.outputs(x).logits

    def at(self, offset: Float[Tensor, " k"] | None) -> Victim:
        """Return the victim at another operating point."""
        return replace(self, offset=offset)

    def check(self, x: Images, outputs: tuple[int, ...], *, masks: bool = False) -> None:
        """Raise unless the victim reads images like `x` and answers one of the given widths.

        Args:
            x: images.
            outputs: numbers of logits that will do.
            masks: whether they are wanted at every pixel.

        Raises:
            VictimError: wrong channels, size, or number of logits.
        """
        expected = (self.contract.channels, *self.contract.size)
        if tuple(x.shape[1:]) != expected:
            raise VictimError(f"expected images of shape {expected}, got {tuple(x.shape[1:])}")
        try:
            with frozen(self.module), torch.no_grad():
                found = self(x[:2]).logits
        except Exception as error:  # a model is foreign code and may raise anything
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise VictimError(
                f"expected a model that reads {expected} images, got: {first}"
            ) from None
        places = tuple(x.shape[2:]) if masks else ()
        if tuple(found.shape[2:]) != places or found.shape[1] not in outputs:
            wanted = " or ".join(map(str, outputs))
            each = " at every pixel" if masks else ""
            raise VictimError(
                f"expected {wanted} logits{each} for this data, got outputs "
                f"{tuple(found.shape[1:])}: choose a victim trained for these classes, or look at "
                f"the {'masks' if masks else 'labels'}, which say how many there are"
            )


def _as_logits(p: Logits) -> Logits:
    p = p.clamp(1e-7, 1 - 1e-7)
    return torch.logit(p) if p.shape[1] == 1 else p.log()


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Hold a module in eval mode with no trainable parameter; restore it exactly after.

    Inside, CUDA computes float32 in float32: by default its convolutions round to 10 bits (TF32).
    """
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    modes = [(part, part.training) for part in module.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield module
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        for part, mode in modes:
            part.training = mode
        for parameter, wanted in grads:
            parameter.requires_grad_(wanted)


def looks_like_probabilities(logits: Logits) -> bool:
    """Whether outputs called logits are probabilities: all in [0,1], and rows of several sum to 1.

    A one-logit or multi-label victim cannot be told by the sum: there all values in [0,1] with both
    a small and a large one among them decide.
    """
    inside = bool(((logits > -1e-5) & (logits < 1 + 1e-5)).all())  # an offset was taken off again
    sums_to_one = bool(torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3))
    return inside and (sums_to_one or float(logits.max()) - float(logits.min()) > 0.5)
