"""Build a network from its spec, usually with timm, smp or MONAI."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from robustbench_med import user_code
from robustbench_med.errors import UnknownNameError, VictimError
from robustbench_med.models.networks import NETWORKS
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
        spec: for labels, `timm:NAME(...)` with any keyword of timm (widths, depths),
            `vgg(cfg=[...], mlp_ratio=...)`, or our `covid_net(...)`, `inception_v3(...)`,
            `inception_v4(...)`, `lesion_model(...)`; for masks, `smp:NAME(...)`, `monai:NAME(...)`
            with any of their keywords, or our `fcn(...)`, `segnet(...)`, `vnet(...)`,
            `fc_densenet(...)`. Ours are in robustbench_med/models/networks. A spec may state its
            number of logits itself, as smp's `classes=1`, MONAI's `out_channels=1` or our
            `outputs=1`. `FILE.py:FACTORY(...)` executes a file of the user's own; the factory gets
            `channels`, `outputs` and `size` if its signature has them.
        channels: number of image channels.
        outputs: number of logits; None = that of the architecture or its hub weights.
        size: `(h, w)` or `(d, h, w)`; used by networks that are built for one size.
        pretrained: load the weights of timm's hub.

    Raises:
        UnknownNameError: there is no such builder, or its library has no such model or encoder.
        VictimError: the parameters do not fit the architecture.
    """
    library, colon, name = spec.name.partition(":")
    if colon and library in _LIBRARIES:
        return _LIBRARIES[library](name, spec.parameters, channels, outputs, size)
    if user_code.split(spec.name) is not None:
        return _of_file(spec, {"channels": channels, "outputs": outputs, "size": size})
    if spec.name in NETWORKS:
        return _own_network(spec.name, spec.parameters, channels, outputs, size)
    arguments = {"in_chans": channels, **spec.parameters}
    if outputs is not None:
        arguments["num_classes"] = outputs
    if spec.name.startswith("timm:"):
        return _timm(spec.name.removeprefix("timm:"), arguments, size, pretrained)
    if spec.name == "vgg":
        return _vgg(**arguments)
    known = ["timm:NAME", "vgg", *NETWORKS, *(f"{library}:NAME" for library in _LIBRARIES)]
    raise UnknownNameError("builder", spec.name, known)


def _of_file(spec: Spec, offered: dict[str, Any]) -> nn.Module:
    """Return the network that a function in a file of the user's own makes."""
    factory = user_code.load(spec.name).function
    named = inspect.signature(factory).parameters
    arguments = {key: value for key, value in offered.items() if key in named} | spec.parameters
    network = user_code.run(spec.name, lambda: factory(**arguments), VictimError)
    if not isinstance(network, nn.Module):
        raise VictimError(
            f"{spec.name}: expected a factory that returns a torch nn.Module, got "
            f"{type(network).__name__}"
        )
    return network


def _timm(
    name: str, arguments: dict[str, Any], size: tuple[int, ...], pretrained: bool
) -> nn.Module:
    import timm

    if not name.startswith("hf-hub:") and not timm.is_model(name):
        raise UnknownNameError("timm model", name, _near(name, timm.list_models()))
    try:
        try:  # transformers and mixers are built for one image size; others take no such argument
            network: nn.Module = timm.create_model(
                name, pretrained=pretrained, **{"img_size": size, **arguments}
            )
        except TypeError:
            network = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise VictimError(f"timm:{name}: {str(error).splitlines()[0]}") from None
    except (OSError, RuntimeError) as error:
        raise VictimError(
            f"timm:{name}: expected its weights from timm's hub, got {type(error).__name__}: "
            "check the network, or give a file with weights='FILE.safetensors'"
        ) from error
    return network


def _near(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=12, cutoff=0.5) or known[:12]


def _vgg(*, cfg: list[int | str], **arguments: Any) -> nn.Module:  # noqa: ANN401 - handed to timm
    # timm's functions fix the widths; its class takes them as arguments
    from timm.models.vgg import VGG

    network: nn.Module = VGG(cfg, norm_layer=nn.BatchNorm2d, **arguments)
    return network


def _smp(
    name: str,
    parameters: dict[str, Any],
    channels: int,
    outputs: int | None,
    size: tuple[int, ...],
) -> nn.Module:
    import segmentation_models_pytorch as smp
    import timm

    known = {network.__name__: network for network in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in known:
        raise UnknownNameError("smp network", name, known)
    _refuse(f"smp:{name}", parameters, ("encoder_weights", "pretrained", "aux_params"))
    if len(size) != 2:
        raise VictimError(f"smp:{name}: expected images of two axes, got size {size}")
    encoder = parameters.get("encoder_name", "resnet34")
    inner = str(encoder).removeprefix("tu-")
    # timm would download a model whose name has a colon
    if encoder not in smp.encoders.encoders and (encoder == inner or not timm.is_model(inner)):
        encoders = [*smp.encoders.encoders, *(f"tu-{model}" for model in timm.list_models())]
        raise UnknownNameError("smp encoder", str(encoder), _near(str(encoder), encoders))
    unknown = set(parameters) - set(inspect.signature(known[name].__init__).parameters)
    # smp silently ignores arguments that only timm's encoders take
    if unknown and encoder == inner:
        raise VictimError(f"smp:{name}: expected a parameter that it takes, got {min(unknown)!r}")
    arguments = {"in_channels": channels, "classes": outputs, **parameters}
    return _construct(f"smp:{name}", known[name], {"encoder_weights": None, **arguments})


_MONAI = (
    "AttentionUnet",
    "BasicUNet",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "SegResNet",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)


def _monai(
    name: str,
    parameters: dict[str, Any],
    channels: int,
    outputs: int | None,
    size: tuple[int, ...],
) -> nn.Module:
    if name not in _MONAI:
        raise UnknownNameError("monai network", name, _MONAI)
    from monai.networks import nets

    _refuse(f"monai:{name}", parameters, ("pretrained",))
    arguments: dict[str, Any] = {
        "spatial_dims": len(size),
        "in_channels": channels,
        "out_channels": outputs,
    }
    if name == "UNETR":
        arguments["img_size"] = size
    return _construct(f"monai:{name}", getattr(nets, name), {**arguments, **parameters})


def _own_network(
    name: str,
    parameters: dict[str, Any],
    channels: int,
    outputs: int | None,
    size: tuple[int, ...],
) -> nn.Module:
    arguments = {"axes": len(size), "channels": channels, "outputs": outputs, **parameters}
    return _construct(name, NETWORKS[name], arguments)


def _refuse(builder: str, parameters: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise VictimError if a spec asks for a download or for a second output."""
    for key in keys:
        if parameters.get(key):
            raise VictimError(
                f"{builder}: expected no {key}, got {parameters[key]!r}: nothing is downloaded, "
                "and there is one output; give the weights with weights='FILE.safetensors'"
            )


def _construct(
    builder: str, make: Callable[..., nn.Module], arguments: dict[str, Any]
) -> nn.Module:
    try:
        return make(**arguments)
    except Exception as error:  # a library may raise any error for the parameters of a user
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise VictimError(f"{builder}: {first}") from None


_LIBRARIES: dict[str, Callable[..., nn.Module]] = {"smp": _smp, "monai": _monai}
