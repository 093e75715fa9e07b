"""Victim: a deployed model with its input contract. It maps images in [0,1] to an `Output`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.jit import ScriptModule

from robustbench_med.chunks import ChunkLimit, in_chunks
from robustbench_med.contract import InputContract
from robustbench_med.errors import InvalidOutputError, VictimError
from robustbench_med.outputs import Reading, same_order, to_logits
from robustbench_med.stored_images import by_size, in_order, select_images, sizes_differ
from robustbench_med.types import AnyImages, Images, Logits, Output, PerSample, joined_outputs

__all__ = ["Guard", "InputContract", "Transform", "Victim", "frozen", "looks_like_probabilities"]

Transform = Callable[[Images], Images]  # images in [0,1] to images in [0,1]
Guard = Callable[[Images, Logits], PerSample]  # images in [0,1], and the victim's logits of them
# called with `answer` (normalised images -> logits) and normalised images; returns the logits
Recorder = Callable[[Callable[[Images], Logits], Images], Logits]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Victim:
    """A module behind its contract.

    Attributes:
        module: maps normalised images to logits `(b, k)`, or `(b, k, *s)` for masks, or to an
            output that `reading` turns into them.
        contract: see InputContract.
        offset: `(k,)` added to the logits: the operating point of the deployed device (see
            `operating_point`). Decision, attack and score all use the same shifted logits.
        chunk: number of images forwarded at a time.
        limit: the largest chunk that fits the memory; copies of the victim share it.
        draws: number of forward passes whose logits are averaged, so that a randomised victim is
            attacked and judged in expectation (EOT: Athalye, Engstrom, Ilyas, Kwok, ICML 2018).
        vote: whether each pass of a mask is a vote for one class at every pixel, so that the mean
            over `draws` is the share of the votes; it has no gradient.
        before: the transform that a defense applies to an image first; a random one draws from
            torch's generator.
        guard: a detector, which returns the suspicion of each image: rejected above 0.
        reading: how logits are read from the output of the module.
        recorder: wraps the calls of the module and records some of the gradients that an attack
            gets (bench/gradient_recorder.py). It changes no value.
    """

    module: nn.Module
    contract: InputContract
    offset: Float[Tensor, " k"] | None = None
    chunk: int = 64
    draws: int = 1
    vote: bool = False
    before: Transform | None = None
    guard: Guard | None = None
    reading: Reading = Reading()
    recorder: Recorder | None = None
    limit: ChunkLimit = field(default_factory=ChunkLimit, compare=False)

    def __call__(self, x: Images) -> Output:
        """Return logits `(b, k)`, or `(b, k, *s)`, for images in [0,1]; suspicion with a guard."""
        logits = self._answer(x)
        if self.draws > 1:
            more_draws = [self._answer(x) for _ in range(self.draws - 1)]
            logits = torch.stack([logits, *more_draws]).mean(0)
        if self.offset is not None:
            logits = logits + self.offset.to(logits).view(-1, *[1] * (logits.ndim - 2))
        return Output(logits, None if self.guard is None else self.guard(x, logits))

    def normalised(self, x: Images) -> Float[Tensor, "b n *t"]:
        """Return the input of the module for images in [0,1]."""
        c = self.contract
        if type(x) is not Tensor:  # a subclass, e.g. MONAI's MetaTensor
            x = x.as_subclass(Tensor)
        shape = (1, -1, *[1] * len(c.size))
        mean, std = x.new_tensor(c.mean).view(shape), x.new_tensor(c.std).view(shape)
        x = x if self.before is None else self.before(x)
        shown = (x if c.preprocess is None else c.preprocess(x)).sub(mean).div(std)
        return shown if self.reading.dtype is None else shown.to(self.reading.dtype)

    @property
    def network(self) -> Victim:
        """The victim without the steps that change the size of an image, and without a defense."""
        return replace(self, contract=self.contract.network, before=None, guard=None)

    def settled(self, x: Images) -> Victim:
        """Return the victim; skip its last sigmoid only if these outputs stay the same.

        Where several functions in a row are skipped, the order of the classes must stay the same.
        """
        if self.reading.bypass is None:
            return self
        row = self.reading.link == "identity"
        certain = self.reading.certain and not row
        complete = replace(self, reading=replace(self.reading, bypass=None, certain=certain))
        squash = _softmax if self.reading.link == "log" else torch.sigmoid

        def is_same(rows: slice) -> bool:
            bypassed, full = (victim._answer(x[rows]) for victim in (self, complete))
            if row:
                return same_order(bypassed, full)
            return torch.allclose(squash(bypassed), squash(full), atol=1e-3)

        with torch.no_grad():
            return self if all(self.in_chunks(is_same, len(x))) else complete

    def _answer(self, x: Images) -> Logits:
        shown = self.normalised(x)
        logits = self.answer(shown) if self.recorder is None else self.recorder(self.answer, shown)
        if self.contract.preprocess is not None and logits.ndim > 2:  # masks
            logits = self.contract.preprocess.restore(logits, tuple(x.shape[2:]))
        logits = _votes(logits) if self.vote else logits
        return logits.to(x.dtype)  # a module in double precision gets images in double precision

    def answer(self, shown: Images) -> Logits:
        """Return the logits of normalised images, in float32, or float64 if the images are.

        This is one pass, without the operating point and the guard.
        """
        logits = self.reading.logits(self.module, shown)
        if self.reading.width is None and self.contract.returns == "probabilities":
            return to_logits(logits, "logit" if logits.shape[1] == 1 else "log")
        return logits

    def outputs(self, x: AnyImages) -> Output:
        """Return logits and suspicion of any number of images, without gradient.

        Raises:
            InvalidOutputError: a logit or suspicion is NaN or Inf.
        """
        if sizes_differ(x):
            return self._of_each_size(x)
        with torch.no_grad():
            output = joined_outputs(self.in_chunks(lambda rows: self(x[rows]), len(x)))
        for value in output:
            if value is not None and not torch.isfinite(value).all():
                bad = int((~torch.isfinite(value)).reshape(len(x), -1).any(1).sum())
                raise InvalidOutputError(
                    f"expected finite logits, got NaN or Inf on {bad} of {len(x)} images"
                )
        return output

    def _of_each_size(self, x: AnyImages) -> Output:
        """Return the outputs of images that keep their own sizes, masks filled up with 0."""
        rows = [positions for positions, _ in by_size(torch.arange(len(x)), x)]
        outputs = [self.outputs(select_images(x, positions)) for positions in rows]
        suspicion = [output.suspicion for output in outputs if output.suspicion is not None]
        return Output(
            in_order([output.logits for output in outputs], rows),
            in_order(suspicion, rows) if suspicion else None,
        )

    def in_chunks(self, function: Callable[[slice], Result], count: int) -> list[Result]:
        """Return the results of a function of rows, as many rows at a time as fit the memory."""
        return in_chunks(function, count, self.chunk, self.limit)

    def logits(self, x: AnyImages) -> Logits:
        """Return the logits of any number of images, without gradient, chunk by chunk.

        Raises:
            InvalidOutputError: a logit is NaN or Inf.
        """
        return self.outputs(x).logits

    def at(self, offset: Float[Tensor, " k"] | None) -> Victim:
        """Return the victim at another operating point."""
        return replace(self, offset=offset)

    def check(self, x: Images, outputs: tuple[int, ...], *, masks: bool = False) -> None:
        """Raise unless the victim accepts images like `x` and returns a fitting number of logits.

        Where images keep their own sizes, one of each size that the contract names is tried too.

        Args:
            x: images.
            outputs: the numbers of logits that are accepted.
            masks: whether the logits must be at every pixel.

        Raises:
            VictimError: wrong channels, size, or number of logits.
        """
        contract = self.contract
        shapes = [(contract.channels, *size) for size in (contract.size, *contract.sizes)]
        if tuple(x.shape[1:]) != shapes[0] and (not contract.sizes or x.shape[1] != shapes[0][0]):
            raise VictimError(f"expected images of shape {shapes[0]}, got {tuple(x.shape[1:])}")
        self._check_outputs(x, outputs, masks=masks)
        for shape in dict.fromkeys(shapes):
            if contract.sizes and shape != tuple(x.shape[1:]):
                self._check_outputs(x.new_zeros((1, *shape)), outputs, masks=masks)

    def check_every_size(
        self, x: AnyImages, outputs: tuple[int, ...], *, masks: bool = False
    ) -> None:
        """Raise VictimError unless the victim accepts an image of each size; see `check`."""
        for positions, _ in by_size(torch.arange(len(x)), x):
            self._check_outputs(x[positions[:1]], outputs, masks=masks)

    def _check_outputs(self, x: Images, outputs: tuple[int, ...], *, masks: bool) -> None:
        """Raise VictimError unless the victim reads images and returns fitting logits."""
        try:
            with frozen(self.module), torch.no_grad():
                parts = in_chunks(lambda rows: self(x[rows]), min(len(x), 2), 2, self.limit)
                logits = joined_outputs(parts).logits
        except VictimError:
            raise
        except Exception as error:  # the code of a model is not ours and may raise anything
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            way = "" if not self.contract.sizes else f": {_one_size(self.contract)}"
            raise VictimError(
                f"expected a model that reads {tuple(x.shape[1:])} images, got: {first_line}{way}"
            ) from None
        pixels, shape = tuple(x.shape[2:]) if masks else (), tuple(logits.shape[1:])
        if shape[1:] != pixels or not shape or shape[0] not in outputs:
            widths = " or ".join(map(str, outputs))
            each = " at every pixel" if masks else ""
            way = _advice(shape, x, outputs, masks=masks)
            if self.contract.sizes and masks:
                way = f"{_one_size(self.contract)}, or window=[...] in the text of the model"
            raise VictimError(
                f"expected {widths} logits{each} for this data, got outputs {shape}: {way}"
            )


def _one_size(contract: InputContract) -> str:
    """Return what to do about a model that does not read images of every size."""
    sides = ", ".join(map(str, contract.size))
    return (
        "the images keep their own sizes, which this model does not read: add "
        f'--preprocess "resize({sides})" or another size, or state one size in the card file'
    )


def _votes(logits: Logits) -> Logits:
    """Return 1 for the class called at each pixel and 0 for others; -0.5 or 0.5 of one logit."""
    logits = logits.detach()
    if logits.shape[1] == 1:
        return (logits > 0).to(logits) - 0.5
    return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)


def _softmax(logits: Logits) -> Logits:
    return logits.softmax(1)


def _advice(shape: tuple[int, ...], x: Images, outputs: tuple[int, ...], *, masks: bool) -> str:
    """Return what to do about outputs whose shape does not fit the data."""
    size = tuple(x.shape[2:])
    if masks and len(shape) == len(size) + 1 and shape[-1] in outputs and shape[:-1] == size:
        return "move the axis of the classes before those of the pixels"
    if masks and len(shape) == len(size) + 1 and shape[0] in outputs:
        return f"resize them to {size} in the model"
    if not masks and len(shape) > 1 and shape[0] in outputs:
        return "average them over the pixels in the model, or choose data with masks"
    return (
        "choose a victim trained for these classes, or look at "
        f"the {'masks' if masks else 'labels'}, which say how many there are"
    )


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Keep a module in eval mode without trainable parameters; restore it and its buffers after.

    Inside, CUDA computes float32 in full: by default its convolutions round to 10 bits (TF32).
    """
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    # a frozen script has no modes
    modes = [(p, p.training) for p in module.modules() if hasattr(p, "training")]
    grads = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    buffers = list(_buffers(module))
    try:
        with suppress(NotImplementedError):  # an exported program has one mode only
            module.eval()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield module
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        for part, mode in modes:
            part.training = mode
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
        for part, name, buffer, value in buffers:
            if not isinstance(part, ScriptModule) and part._buffers.get(name) is not buffer:
                part._buffers[name] = buffer
            if not torch.equal(buffer, value):  # a batch norm that the module keeps in training
                with torch.no_grad():
                    buffer.copy_(value)


def _buffers(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, Tensor]]:
    """Yield each buffer with its module, its name and a copy of its values."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                yield part, name, buffer, buffer.detach().clone()


def looks_like_probabilities(logits: Logits, *, span: float = 0.5) -> bool:
    """Whether outputs declared as logits are probabilities: in [0,1], with rows that sum to 1.

    For a single logit or for findings the sum says nothing. There, outputs are taken for
    probabilities if all are in [0,1] and the smallest and largest are more than `span` apart.
    """
    inside = bool(((logits > -1e-5) & (logits < 1 + 1e-5)).all())  # an offset was subtracted
    sums_to_one = bool(torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3))
    return inside and (sums_to_one or float(logits.max()) - float(logits.min()) > span)
