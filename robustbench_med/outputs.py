"""Read logits from the output of a module, whatever its form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robustbench_med.errors import VictimError
from robustbench_med.types import Images, Logits

# what a number of the output is: a logit; a probability by itself; a probability of one of several
# classes; the logarithm of a probability by itself
Link = Literal["identity", "logit", "log", "log_odds"]
Path = tuple[str | int, ...]

_SQUASHING = {
    torch.sigmoid,
    torch.sigmoid_,
    torch.special.expit,
    Tensor.sigmoid,
    Tensor.sigmoid_,
    torch.softmax,
    torch.special.softmax,
    Tensor.softmax,
    functional.softmax,
    functional.logsigmoid,
}


class Squashes(TorchFunctionMode):
    """Count the calls of sigmoid and softmax, and skip some of them.

    A probability that rounds to 1 has no gradient; the input of the sigmoid has one.

    Args:
        skip: indices of the calls, from 0, that return their input.
        record: record the autograd node of each call, so that the last one can be recognised.
    """

    def __init__(self, skip: frozenset[int] = frozenset(), *, record: bool = False) -> None:
        super().__init__()
        self.skip, self.record = skip, record
        self.count = 0
        self.nodes: list[Any] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,  # noqa: ARG002 - torch's own protocol
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Call torch's function, or skip it."""
        kwargs = kwargs or {}
        if func not in _SQUASHING:
            return func(*args, **kwargs)
        index, self.count = self.count, self.count + 1
        if index in self.skip:
            return args[0] if args else kwargs["input"]
        squashed = func(*args, **kwargs)
        if self.record:
            self.nodes.append(squashed.grad_fn)
        return squashed


class Bypass(NamedTuple):
    """The calls of sigmoid or softmax at the end of a module, and the total number of calls."""

    calls: frozenset[int]
    total: int


@dataclass(frozen=True)
class Reading:
    """How to read the logits of a module; by default its output is a tensor of logits.

    Attributes:
        path: the keys that lead from the output to the tensor; () = the output is the tensor.
        width: number of logits k per image or pixel; None = the tensor is not reshaped.
        masks: whether there are k logits at every pixel.
        link: how a number becomes a logit.
        bypass: the calls to skip to get the logits; None = the link computes them.
        dtype: type of the images that the module gets; None = unchanged.
        certain: whether the link is known from the module's last operation.
    """

    path: Path = ()
    width: int | None = None
    masks: bool = False
    link: Link = "identity"
    bypass: Bypass | None = None
    dtype: torch.dtype | None = None
    certain: bool = False

    def logits(self, module: nn.Module, x: Images) -> Logits:
        """Return the module's logits of normalised images, `(b, k)` or `(b, k, *s)`.

        They are float32, or float64 if the images are, which finite differences need.

        Raises:
            VictimError: the output differs in form from the one that was probed.
        """
        if self.bypass is not None:
            with Squashes(self.bypass.calls) as calls:
                raw = module(x)
            if calls.count == self.bypass.total:
                logits = self.shaped(raw, x)
                logits = logits if x.dtype == torch.float64 else logits.float()
                return logits.log_softmax(1) if self.link == "log" else logits
        numbers = self.shaped(module(x), x)
        if x.dtype == torch.float64 and numbers.dtype == torch.float64:
            return _linked(numbers, self.link)
        return to_logits(numbers, self.link)

    def shaped(self, raw: object, x: Images) -> Tensor:
        """Return the tensor that is read from an output, with its axes in order."""
        tensor = tensor_at(raw, self.path)
        if self.width is None:
            return tensor
        shape = (len(x), self.width, *(x.shape[2:] if self.masks else ()))
        if tuple(tensor.shape) == shape:
            return tensor
        if _squeezed(tensor.shape) != _squeezed(shape):
            raise VictimError(
                f"expected outputs of shape {shape} for {len(x)} images, got {tuple(tensor.shape)}"
            )
        return tensor.reshape(shape)


def tensor_at(raw: object, path: Path) -> Tensor:
    """Return the tensor at a path of an output.

    Raises:
        VictimError: there is no tensor, or its numbers are not real floats.
    """
    for step in path:
        raw = children(raw).get(step)
    if not isinstance(raw, Tensor):
        raise VictimError(f"expected a tensor of logits, got {described(raw)}")
    if raw.is_complex():
        raise VictimError(f"expected real logits, got complex numbers ({raw.dtype})")
    if not raw.is_floating_point():
        raise VictimError(
            f"expected logits, got whole numbers ({raw.dtype}): return what the model computes "
            "before argmax or a threshold"
        )
    if type(raw) is not Tensor:  # a subclass, e.g. MONAI's MetaTensor
        raw = raw.as_subclass(Tensor)
    return raw if raw.layout == torch.strided else raw.to_dense()


def children(raw: object) -> dict[str | int, object]:
    """Return the items of a container by key, attribute or index; {} for anything else."""
    if isinstance(raw, Tensor | str | bytes | nn.Module | type) or raw is None:
        return {}
    if isinstance(raw, Mapping):
        return {k if isinstance(k, str | int) else str(k): value for k, value in raw.items()}
    if isinstance(raw, tuple) and hasattr(raw, "_fields"):
        return dict(zip(raw._fields, raw, strict=True))
    if isinstance(raw, tuple | list):
        return dict(enumerate(raw))
    if dataclasses.is_dataclass(raw):
        return {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    return {key: value for key, value in getattr(raw, "__dict__", {}).items() if key[:1] != "_"}


def leaves(raw: object, path: Path = ()) -> dict[Path, Tensor]:
    """Return all tensors of a container by their paths."""
    if isinstance(raw, Tensor):
        return {path: raw}
    if len(path) > 3:
        return {}
    tensors: dict[Path, Tensor] = {}
    for key, value in children(raw).items():
        tensors |= leaves(value, (*path, key))
    return tensors


def described(raw: object) -> str:
    """Return a short description of an output, with its keys."""
    items = children(raw)
    if not items:
        return "None" if raw is None else type(raw).__name__
    shown = ", ".join(
        f"{key!r} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        for key, value in list(items.items())[:8]
    )
    return f"{type(raw).__name__} of {shown}"


def to_logits(numbers: Tensor, link: Link) -> Tensor:
    """Return the logits of numbers, in float32; probabilities may be 0 and 1.

    They are computed in the precision of the numbers: a probability in float64 distinguishes logits
    up to 30, one in float32 rounds to 1 from a logit of 17 on.
    """
    precise = numbers if numbers.dtype == torch.float64 else numbers.float()
    return _linked(precise, link).float()


def _linked(numbers: Tensor, link: Link) -> Tensor:
    if link == "identity":
        return numbers
    kind = torch.finfo(numbers.dtype)
    if link == "log_odds":
        small = numbers.clamp(max=-kind.eps / 2)
        return small - torch.log(-torch.expm1(small))
    p = numbers.clamp_min(kind.tiny)
    if link == "log":
        return p.log()
    p = p.clamp_max(1 - kind.eps / 2)
    return p.log() - torch.log1p(-p)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tensor has the expected axes in order, apart from axes of one element."""
    return _squeezed(shape) == _squeezed(expected)


def same_order(logits: Tensor, outputs: Tensor) -> bool:
    """Return whether a class with a larger logit `(b, k, *s)` never has a smaller output."""
    outputs = outputs.double()
    rising = outputs.gather(1, logits.double().argsort(dim=1)).diff(dim=1)
    return bool((rising >= -1e-6 * outputs.abs().max().clamp_min(1e-6)).all())
