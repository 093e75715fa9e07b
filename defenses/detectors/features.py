"""Features: what a victim's layers answer, read by hooks in one forward pass, with gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.errors import VictimError
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen

Features = Float[Tensor, "b _"]  # of layers of other widths in one list
Reader = Callable[[Images], list[Features]]
_SPREAD = 4  # layers read of a network that names no stages: as many as a ResNet has


class Layers(NamedTuple):
    """Names of modules: the last of each stage, and the classifier, whose input is penultimate."""

    stages: tuple[str, ...]
    head: str


def layers_of(module: nn.Module) -> Layers:
    """Return the layers that detectors read.

    Stages are those that timm's `feature_info` names; without it, up to four convolutions or linear
    layers evenly spread, the last among them. The classifier is what `get_classifier` returns, else
    the last linear layer.

    Raises:
        VictimError: there is no linear classifier, so that nothing is penultimate.
    """
    named = {name: part for name, part in module.named_modules() if name}
    linear = [name for name, part in named.items() if isinstance(part, nn.Linear)]
    classifier: Any = getattr(module, "get_classifier", None)
    stated = classifier() if classifier else None
    heads = [name for name in linear if named[name] is stated] or linear[-1:]
    if not heads:
        raise VictimError(
            "expected a network that ends in a linear classifier, got one without a linear layer"
        )
    stages = [info["module"] for info in getattr(module, "feature_info", None) or ()]
    stages = [name for name in stages if name in named]
    if not stages:
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        leaves = [n for n, part in named.items() if isinstance(part, kinds) and n != heads[0]]
        count = min(_SPREAD, len(leaves))
        stages = [leaves[(i + 1) * len(leaves) // count - 1] for i in range(count)]
    return Layers(tuple(stages), heads[0])


def activations(victim: Victim, x: Images, layers: Layers) -> list[Features]:
    """Return the features of each stage, and last the penultimate ones: one forward pass.

    Input transforms stay in front; of a randomised victim one draw is read. A stage's features are
    means over places (pixels of an image, tokens of a transformer); the penultimate ones are the
    classifier's input.

    Args:
        victim: whose module is read.
        x: `(b, c, *s)` images in [0,1].
        layers: of `layers_of`.

    Returns:
        `(b, d_l)` of each stage that the pass reached, then `(b, d)`.

    Raises:
        VictimError: the pass did not reach the classifier.
    """
    with _read(victim.module, layers) as outputs:
        victim.module(victim.normalised(x))
    if layers.head not in outputs:
        raise VictimError(f"expected a forward pass through {layers.head!r}, got one around it")
    return [outputs[name] for name in (*layers.stages, layers.head) if name in outputs]


def reader(victim: Victim, *, stages: bool = True) -> Reader:
    """Return `activations` of the victim's layers; without stages the penultimate ones alone."""
    layers = layers_of(victim.module)
    layers = layers if stages else layers._replace(stages=())
    return lambda x: activations(victim, x, layers)


def read_all(victim: Victim, read: Reader, x: Images) -> list[Features]:
    """Return features of any number of images, without gradient, chunk by chunk."""
    with torch.no_grad(), frozen(victim.module):
        chunks = [read(chunk) for chunk in x.split(victim.chunk)]
    return [torch.cat(layer) for layer in zip(*chunks, strict=True)]


@contextmanager
def _read(module: nn.Module, layers: Layers) -> Iterator[dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}
    thread = threading.get_ident()  # another thread's pass through the same module is not ours

    def stage(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == thread:
                outputs[name] = _places_averaged(output)

        return hook

    def head(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            outputs[layers.head] = inputs[0].float().flatten(1)

    hooks = []
    try:
        for name in layers.stages:
            hooks.append(module.get_submodule(name).register_forward_hook(stage(name)))
        hooks.append(module.get_submodule(layers.head).register_forward_pre_hook(head))
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _places_averaged(output: Tensor) -> Features:
    output = output.float()
    if output.ndim == 3:  # tokens (b, n, d); one axis of an image is no image here
        return output.mean(1)
    return output.flatten(2).mean(2) if output.ndim > 3 else output
