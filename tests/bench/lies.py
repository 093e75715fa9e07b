"""Modules with honest answers and gradients that are not those of the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Edited(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.edit = edit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401
        return ctx.edit(gradients[0]), None


def _masked(g: Tensor) -> Tensor:
    g = g.clone()
    g[..., : g.shape[-1] // 3] = 0
    return g


def _half_of_images(g: Tensor) -> Tensor:
    g = g.clone()
    g[::2] *= -1
    return g


def _one_channel(g: Tensor) -> Tensor:
    g = g.clone()
    g[:, 0] *= -1
    return g


def _minus(g: Tensor) -> Tensor:
    return -g


class Lying(nn.Module):
    """A network behind something that acts on gradients alone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        edit = self.edit(x)
        answer: Tensor = self.body(x if edit is None else _Edited.apply(x, edit))
        return answer

    def edit(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:  # noqa: ARG002
        return None


class Edited(Lying):
    """Edits the gradient in the same way at every call."""

    def __init__(self, body: nn.Module, edit: Callable[[Tensor], Tensor]) -> None:
        super().__init__(body)
        self._edit = edit

    def edit(self, x: Tensor) -> Callable[[Tensor], Tensor]:  # noqa: ARG002
        return self._edit


class OnBatches(Lying):
    def edit(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        return _minus if len(x) > 1 else None


class AfterCalls(Lying):
    def edit(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:  # noqa: ARG002
        return _minus if self.calls > 2 else None


class OnSingles(Lying):
    """Lies in single precision."""

    def edit(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        return _minus if x.dtype == torch.float32 else None


class AnotherNetwork(Lying):
    """Detaches the answer and lends it the gradient of the mirrored image."""

    def forward(self, x: Tensor) -> Tensor:
        other: Tensor = self.body(x.flip(-1))
        answer: Tensor = self.body(x).detach() + other - other.detach()
        return answer


class Decoy(Lying):
    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x)
        bright = x.flatten(1).mean(1).view(-1, *[1] * (answer.ndim - 1))
        decoy = bright * torch.linspace(-1, 2, answer.shape[1]).view(
            1, -1, *[1] * (answer.ndim - 2)
        )
        return answer.detach() + decoy - decoy.detach()


class InputHook(Lying):
    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(_minus)
        answer: Tensor = self.body(x)
        return answer


class OutputHook(Lying):
    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x)
        if answer.requires_grad:
            answer.register_hook(_minus)
        return answer


class InGradMode(Lying):
    """Answers for the mirrored image while it is differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x.flip(-1) if x.requires_grad else x)
        return answer


def _negated(gradients: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 - a tensor or several
    several = (gradients,) if isinstance(gradients, Tensor) else gradients
    return tuple(-g for g in several)


def _backward_hooked(body: nn.Module) -> nn.Module:
    module = Lying(body)
    module.register_full_backward_hook(lambda *found: _negated(found[1]))
    return module


def _backward_pre_hooked(body: nn.Module) -> nn.Module:
    module = Lying(body)
    module.register_full_backward_pre_hook(lambda *found: _negated(found[1]))
    return module


LIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "opposite": lambda body: Edited(body, _minus),
    "rolled": lambda body: Edited(body, lambda g: g.roll(3, -1)),
    "mirrored": lambda body: Edited(body, lambda g: g.flip(-1)),
    "a third masked": lambda body: Edited(body, _masked),
    "half of the images": lambda body: Edited(body, _half_of_images),
    "one channel": lambda body: Edited(body, _one_channel),
    "tiny": lambda body: Edited(body, lambda g: 1e-9 * g),
    "zero": lambda body: Edited(body, torch.zeros_like),
    "noise": lambda body: Edited(body, lambda g: torch.randn_like(g) * g.abs().mean()),
    "another network's": AnotherNetwork,
    "decoy": Decoy,
    "hook on the input": InputHook,
    "hook on the output": OutputHook,
    "backward hook": _backward_hooked,
    "backward pre-hook": _backward_pre_hooked,
    "in grad mode": InGradMode,
    "on batches": OnBatches,
    "after some calls": AfterCalls,
    "in single precision": OnSingles,
}
