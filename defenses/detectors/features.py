"""Features: read the outputs of a victim's layers by hooks in one forward pass, with gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.errors import VictimError
from robustbench_med.types import AnyImages, Images
from robustbench_med.victim import Victim, frozen

Features = Float[Tensor, "b _"]  # `_`, because the layers in one list differ in width
Reader = Callable[[Images], list[Features]]
_MAX_STAGES = 4  # layers that are read if a network names no stages; a ResNet has as many


class Layers(NamedTuple):
    """Names of the modules to read.

    Attributes:
        stages: the last module of each stage.
        head: the classifier, whose input is the penultimate features.
    """

    stages: tuple[str, ...]
    head: str


def layers_of(module: nn.Module) -> Layers:
    """Return the layers that detectors read.

    The stages are those that timm's `feature_info` names. Without it, they are up to four
    convolutions or linear layers at even distances, ending with the last one. The classifier is the
    module that `get_classifier` returns; without it, the last linear layer.

    Raises:
        VictimError: there is no linear classifier, so there are no penultimate features.
    """
    named = {name: submodule for name, submodule in module.named_modules() if name}
    linear = [name for name, submodule in named.items() if isinstance(submodule, nn.Linear)]
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
        leaves = [
            n for n, submodule in named.items() if isinstance(submodule, kinds) and n != heads[0]
        ]
        count = min(_MAX_STAGES, len(leaves))
        stages = [leaves[(i + 1) * len(leaves) // count - 1] for i in range(count)]
    return Layers(tuple(stages), heads[0])


def activations(victim: Victim, x: Images, layers: Layers) -> list[Features]:
    """Return the features of each stage, followed by the penultimate ones, in one forward pass.

    Input transforms are applied first; if they are random, they are drawn once. The features of a
    stage are means over positions (pixels of an image, tokens of a transformer). The penultimate
    features are the input of the classifier.

    Args:
        victim: the victim whose module is read.
        x: `(b, c, *s)` images in [0,1].
        layers: the layers to read, see `layers_of`.

    Returns:
        `(b, d_l)` for each stage that the pass reached, then `(b, d)`.

    Raises:
        VictimError: the pass did not reach the classifier.
    """
    with _hooked(victim.module, layers) as outputs:
        victim.module(victim.normalised(x))
    if layers.head not in outputs:
        raise VictimError(
            f"expected a forward pass through {layers.head!r}, got one that bypasses it"
        )
    return [outputs[name] for name in (*layers.stages, layers.head) if name in outputs]


def reader(victim: Victim, *, stages: bool = True) -> Reader:
    """Return a function that reads the victim's layers; without stages only the penultimate one."""
    layers = layers_of(victim.module)
    layers = layers if stages else layers._replace(stages=())
    return lambda x: activations(victim, x, layers)


def read_all(victim: Victim, read: Reader, x: AnyImages) -> list[Features]:
    """Return the features of any number of images, read in chunks and without gradients."""
    with torch.no_grad(), frozen(victim.module):
        chunks = victim.in_chunks(lambda rows: read(x[rows]), len(x))
    return [torch.cat(layer) for layer in zip(*chunks, strict=True)]


@contextmanager
def _hooked(module: nn.Module, layers: Layers) -> Iterator[dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}
    thread = threading.get_ident()  # passes of other threads through the same module are ignored

    def stage(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == thread:
                outputs[name] = _mean_over_positions(output)

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


def _mean_over_positions(output: Tensor) -> Features:
    output = output.float()
    if output.ndim == 3:  # tokens (b, n, d); images have at least two axes of positions
        return output.mean(1)
    return output.flatten(2).mean(2) if output.ndim > 3 else output
