"""Builders: an architecture from its spec. timm does the architectures."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from robustbench_med.errors import UnknownNameError, VictimError
from robustbench_med.spec import Spec


def build(
    spec: Spec,
    *,
    channels: int,
    outputs: int | None,
    size: tuple[int, ...],
    pretrained: bool = False,
) -> nn.Module:
    """Return a freshly initialised network.

    Args:
        spec: `timm:NAME(...)` with any keyword timm takes (widths, depths), or `vgg(cfg=[...],
            mlp_ratio=...)`.
        channels: image channels.
        outputs: logits; None = as many as the architecture (or its hub weights) has.
        size: `(h, w)`; handed to networks that are built for one size.
        pretrained: take timm's own weights from its hub.

    Raises:
        UnknownNameError: no such builder or timm model.
        VictimError: the parameters do not fit the architecture.
    """
    arguments = {"in_chans": channels, **spec.parameters}
    if outputs is not None:
        arguments["num_classes"] = outputs
    if spec.name.startswith("timm:"):
        return _timm(spec.name.removeprefix("timm:"), arguments, size, pretrained)
    if spec.name == "vgg":
        return _vgg(**arguments)
    raise UnknownNameError("builder", spec.name, ["timm:NAME", "vgg"])


def _timm(
    name: str, arguments: dict[str, Any], size: tuple[int, ...], pretrained: bool
) -> nn.Module:
    import timm

    if not name.startswith("hf-hub:") and not timm.is_model(name):
        raise UnknownNameError("timm model", name, _near(name, timm.list_models()))
    try:
        try:  # transformers and mixers are built for one size; convolutional networks take any
            made: nn.Module = timm.create_model(
                name, pretrained=pretrained, **{"img_size": size, **arguments}
            )
        except TypeError:
            made = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise VictimError(f"timm:{name}: {str(error).splitlines()[0]}") from None
    except (OSError, RuntimeError) as error:
        raise VictimError(
            f"timm:{name}: expected its weights from timm's hub, got {type(error).__name__}: "
            "check the network, or give a file with weights='FILE.safetensors'"
        ) from error
    return made


def _near(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=12, cutoff=0.5) or known[:12]


def _vgg(*, cfg: list[int | str], **arguments: Any) -> nn.Module:  # noqa: ANN401 - handed to timm
    # timm's entry points fix the widths; its class takes them
    from timm.models.vgg import VGG

    made: nn.Module = VGG(cfg, norm_layer=nn.BatchNorm2d, **arguments)
    return made
