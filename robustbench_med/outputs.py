"""Outputs: from what a module returns, of whatever kind, to logits."""

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

# how a number that the module returns becomes a logit: it is one; it is a probability of its own;
# it is a probability of one of several classes; it is the logarithm of a probability of its own
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
    """Counts the calls of sigmoid and softmax inside, and leaves some of them out.

    A probability that rounds to 1 has no gradient left; the number that went into the sigmoid has.

    Args:
        skip: places of the calls, counted from 0, that return what they were given.
        record: keep the autograd node of each call, so that the last one can be told.
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
        """Call torch's function, unless it is one to leave out."""
        kwargs = kwargs or {}
        if func not in _SQUASHING:
            return func(*args, **kwargs)
        place, self.count = self.count, self.count + 1
        if place in self.skip:
            return args[0] if args else kwargs["input"]
        squashed = func(*args, **kwargs)
        if self.record:
            self.nodes.append(squashed.grad_fn)
        return squashed


class Bypass(NamedTuple):
    """The calls of sigmoid or softmax that end a module, of all that one pass makes."""

    calls: frozenset[int]
    total: int


@dataclass(frozen=True)
class Reading:
    """How the logits of a module are read; the default takes a tensor of logits as it is.

    Attributes:
        path: what leads from what is returned to the tensor; () = it is the tensor.
        width: logits k of an image, or of a pixel; None = the tensor is not reshaped.
        masks: whether there are k logits at every pixel.
        link: how a number becomes a logit.
        bypass: what is left out to get the logits themselves; None = they are computed by the link.
        dtype: of the images that the module is shown; None = as they are.
        certain: whether the module's own last operation tells the link.
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

        In float32, or in float64 where the images are: finite differences need the digits.

        Raises:
            VictimError: it returns something else than when it was looked at.
        """
        if self.bypass is not None:
            with Squashes(self.bypass.calls) as calls:
                raw = module(x)
            if calls.count == self.bypass.total:
                logits = self.shaped(raw, x)
                logits = logits if x.dtype == torch.float64 else logits.float()
                return logits.log_softmax(1) if self.link == "log" else logits
        found = self.shaped(module(x), x)
        if x.dtype == torch.float64 and found.dtype == torch.float64:
            return _linked(found, self.link)
        return to_logits(found, self.link)

    def shaped(self, raw: object, x: Images) -> Tensor:
        """Return the tensor that is read of what a module returned, with its axes in place."""
        tensor = tensor_at(raw, self.path)
        if self.width is None:
            return tensor
        wanted = (len(x), self.width, *(x.shape[2:] if self.masks else ()))
        if tuple(tensor.shape) == wanted:
            return tensor
        if _squeezed(tensor.shape) != _squeezed(wanted):
            raise VictimError(
                f"expected outputs of shape {wanted} for {len(x)} images, got {tuple(tensor.shape)}"
            )
        return tensor.reshape(wanted)


def tensor_at(raw: object, path: Path) -> Tensor:
    """Return the plain tensor of numbers at a place of what a module returned.

    Raises:
        VictimError: there is none, or it holds no real numbers with a fraction.
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
    """Return what a container of outputs holds, by key, attribute or place; {} of anything else."""
    if isinstance(raw, Tensor | str | bytes | nn.Module | type) or raw is None:
        return {}
    if isinstance(raw, Mapping):
        return {k if isinstance(k, str | int) else str(k): value for k, value in raw.items()}
    if isinstance(raw, tuple) and hasattr(raw, "_fields"):
        return dict(zip(raw._fields, raw, strict=True))
    if isinstance(raw, tuple | list):
        return dict(enumerate(raw))
    if dataclasses.is_dataclass(raw):
        return {one.name: getattr(raw, one.name) for one in dataclasses.fields(raw)}
    return {key: value for key, value in getattr(raw, "__dict__", {}).items() if key[:1] != "_"}


def leaves(raw: object, path: Path = ()) -> dict[Path, Tensor]:
    """Return every tensor of a container of outputs by its path."""
    if isinstance(raw, Tensor):
        return {path: raw}
    if len(path) > 3:
        return {}
    tensors: dict[Path, Tensor] = {}
    for key, value in children(raw).items():
        tensors |= leaves(value, (*path, key))
    return tensors


def described(raw: object) -> str:
    """Return what a module returned in a few words, with the keys of what it holds."""
    parts = children(raw)
    if not parts:
        return "None" if raw is None else type(raw).__name__
    shown = ", ".join(
        f"{key!r} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        for key, value in list(parts.items())[:8]
    )
    return f"{type(raw).__name__} of {shown}"


def to_logits(numbers: Tensor, link: Link) -> Tensor:
    """Return the logits that numbers stand for, in float32; probabilities may be 0 and 1.

    In the numbers' own precision: a probability in float64 tells logits of 30 apart, one in
    float32 rounds to 1 from a logit of 17 on.
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


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor has the wanted axes in their order, but for some of one element."""
    return _squeezed(shape) == _squeezed(wanted)
