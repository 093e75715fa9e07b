"""Victims by name: a card of the zoo, or any model that can be built, with a weights file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_med import registry, spec
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.contract import InputContract, contract_of, statistic
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models import user_factory, weights
from robustbench_med.models.build import build
from robustbench_med.models.probing import Expected, check_weights, probe
from robustbench_med.models.sliding import Sliding, bare
from robustbench_med.types import images_at_once
from robustbench_med.victim import Victim

ZOO = registry.CORE / "models" / "zoo"
_OURS = ("weights", "pretrained", "mean", "std", "window", "overlap", "returns", "output")
_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()  # what this process has told of a model


_FILES = {
    ending: "weights alone have no architecture; use \"timm:NAME(weights='FILE.safetensors')\" or "
    "\"FILE.py:FACTORY(weights='FILE.safetensors')\""
    for ending in (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
} | {
    ending: "only networks of PyTorch are attacked; convert it to one"
    for ending in (".onnx", ".h5", ".keras", ".tflite", ".pb", ".joblib")
}


class Loaded(NamedTuple):
    """A victim with its card and the hash of everything that makes its answers."""

    victim: Victim
    card: ModelCard
    sha256: str


def check_name(name: str) -> None:
    """Raise VictimError where a file stands in the place of a model's name."""
    ending = Path(name).suffix.lower()
    if not registry.is_own(name) and ending in _FILES:
        raise VictimError(f"expected a model's name or spec, got {name!r}: {_FILES[ending]}")


class ModelSource(NamedTuple):
    """What the text of a victim names; parsed once, loaded as often as needed.

    Attributes:
        name: the text.
        card: the card of the zoo; None of a model of the user's own.
        factory: the Python file and function that make it, where the text names one.
        builder: a library's model with its parameters, where the text names one.
        entry: a model that a package or a script registered as a function.
    """

    name: str
    card: ModelCard | None = None
    factory: user_factory.Factory | None = None
    builder: spec.Spec | None = None
    entry: registry.Entry | None = None


def resolve_model(name: str) -> ModelSource:
    """Return what the text of a victim names.

    Raises:
        UnknownNameError: no such card.
        SpecError, VictimError: a text that is no spec, or names a file in the place of a model.
    """
    if not registry.is_own(name):
        check_name(name)
        entry = registry.entry_of("models", name)
        if entry is not None and entry.item is not None:
            return ModelSource(name, entry=entry)
        return ModelSource(name, card=registry.find("models", name))
    factory = user_factory.factory_of(name)
    if factory is not None:
        return ModelSource(name, factory=factory)
    return ModelSource(name, builder=spec.parse(name))


def load_victim(model: str | ModelSource, data: DatasetCard, *, zoo: Path = ZOO) -> Loaded:
    """Return a victim, ready for the images of `data`.

    Args:
        model: a card of the zoo, or `timm:NAME(weights='FILE.safetensors', mean=[..], std=[..],
            ...)`, or `timm:NAME(pretrained=True)` for timm's own hub; of masks
            `smp:NAME(weights=...)`, `monai:NAME(weights=...)` or a network of `build`, with
            `window=[..], overlap=0.25` where it reads an image window by window; or
            `FILE.py:FACTORY(...)`, which executes that file. Each takes `returns='probabilities'`
            and `output='KEY'`, see InputContract.
        data: says channels, size and classes.
        zoo: folder with the cards' weights.

    Raises:
        UnknownNameError: no such card, builder or model of a builder.
        ChecksumError: the weights are not those of the card.
        VictimError: the weights do not fit the architecture, or the model the data.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    if source.factory is not None:
        return _of_factory(source.name, source.factory, data)
    if source.builder is not None:
        return _own(source.builder, data)
    if source.entry is not None:
        return _of_function(source.entry, data)
    card = _card_of(source)
    victim = untrained(card, _trained_on(card, data))
    found = weights.read(bare(victim.module), zoo / card.weights, sha256=card.sha256)
    return Loaded(victim, card, _answers_of(card, found))


def _trained_on(card: ModelCard, data: DatasetCard) -> DatasetCard:
    """Return the card of the victim's training data, if images of `data` fit it."""
    trained: DatasetCard = registry.find("datasets", card.dataset)
    for what in ("channels", "size", "task"):
        if getattr(trained, what) != getattr(data, what):
            raise VictimError(
                f"{card.name}: expected {what} {getattr(trained, what)}, got "
                f"{getattr(data, what)} of {data.name}: choose a victim trained on {data.name}"
            )
    if len(trained.classes) != len(data.classes):
        raise VictimError(
            f"{card.name}: expected K = {len(trained.classes)} classes, got "
            f"K = {len(data.classes)} of {data.name}: choose a victim trained on {data.name}"
        )
    return trained


def _card_of(source: ModelSource) -> ModelCard:
    if source.card is None:
        raise RuntimeError(f"expected a source with a card, factory or builder, got {source.name}")
    return source.card


def describe(model: str | ModelSource, data: DatasetCard) -> tuple[ModelCard, str]:
    """Return the card and hash that `load_victim` would, with the same errors, at less cost.

    A model of the zoo is not built: its file's checksum and its card say enough.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    if source.card is None:
        loaded = load_victim(source, data)
        x = torch.zeros(2, data.channels, *data.size)
        loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
        tell(loaded.card)
        return loaded.card, loaded.sha256
    card = source.card
    _trained_on(card, data)
    weights.content(ZOO / card.weights, sha256=card.sha256)
    return card, _answers_of(card, card.sha256)


def untrained(card: ModelCard, data: DatasetCard) -> Victim:
    """Return the card's architecture with fresh weights behind its contract."""
    module = build(
        spec.parse(card.builder),
        channels=data.channels,
        outputs=len(data.classes),
        size=card.window or data.size,
    )
    contract = _contract(data, card.mean, card.std)
    return Victim(_slid(module, card), contract, chunk=images_at_once(data.size))


def tell(card: ModelCard) -> None:
    """Say what was decided of a model, once in a process."""
    for note in card.notes:
        if (card.name, note) not in _said:
            _said.add((card.name, note))
            _log.warning("%s: %s", card.name, note)


def _contract(
    data: DatasetCard,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    ours: Mapping[str, Any] | None = None,
) -> InputContract:
    stated = {key: (ours or {}).get(key) for key in ("returns", "output")}
    return contract_of(
        data.channels,
        data.size,
        {"mean": mean, "std": std, **stated},
        native_range=data.native_range,
        bit_depth=data.bit_depth,
        names=data.channel_names,
        spacing=data.spacing,
    )


def _own(wanted: spec.Spec, data: DatasetCard) -> Loaded:
    ours = {key: wanted.parameters[key] for key in _OURS if key in wanted.parameters}
    inner = {key: value for key, value in wanted.parameters.items() if key not in _OURS}
    library, _, name = wanted.name.rpartition(":")
    pretrained = library.startswith("timm") and bool(ours.get("pretrained"))
    if not ours.get("weights") and not pretrained:
        way = " or pretrained=True" if library.startswith("timm") else ""
        raise VictimError(f"expected weights='FILE.safetensors'{way}, got {wanted}")
    if not isinstance(ours.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {ours['weights']!r}")
    window, overlap = _window(ours, data)
    # a hub model keeps its own head: timm would put a random one in place of one of another width
    outputs = None if pretrained else inner.pop("num_classes", len(data.classes))
    builder = spec.Spec(wanted.name, inner)
    module = build(
        builder,
        channels=data.channels,
        outputs=outputs,
        size=window or data.size,
        pretrained=pretrained,
    )
    if ours.get("weights"):
        found = weights.read(module, Path(ours["weights"]))
    else:
        found = weights.fingerprint(module)
    default = getattr(module, "pretrained_cfg", {})
    mean, std = _statistics(ours, default, data)
    card = ModelCard(
        name=str(wanted),
        title=wanted.name,
        summary=f"A {library or wanted.name} model with weights the user gave.",
        family=name.partition("_")[0].lower(),
        dataset=data.name,
        builder=str(builder),
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=found,
    )
    return _admitted(_slid(module, card), card, _contract(data, mean, std, ours), data)


def _of_factory(name: str, factory: user_factory.Factory, data: DatasetCard) -> Loaded:
    made = user_factory.made(factory, _OURS)
    ours, sha256 = made.rest, made.sha256
    for key in ours.keys() & {"pretrained"}:
        raise SpecError(f"{name}: expected a parameter that the factory takes, got {key!r}")
    if not isinstance(ours.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {ours['weights']!r}")
    if ours.get("weights"):
        sha256 = _digest(sha256, weights.read(made.module, Path(ours["weights"])))
    window, overlap = _window(ours, data)
    mean, std = _statistics(ours, {}, data)
    card = ModelCard(
        name=name,
        title=f"{factory.path.name}:{factory.wanted.name}",
        summary="A model that the user's own code makes.",
        family=factory.wanted.name.lower(),
        dataset=data.name,
        builder=str(factory.wanted),
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=sha256,
    )
    return _admitted(_slid(made.module, card), card, _contract(data, mean, std, ours), data)


def _of_function(entry: registry.Entry, data: DatasetCard) -> Loaded:
    """Return the victim that a declared function makes: another package's, or registered."""
    _trained_on(entry.card, data)
    module = user_factory.run_factory(entry.card.name, entry.item)
    sha256 = _digest(entry.origin, user_factory.identity(module))
    card: ModelCard = entry.card.model_copy(update={"sha256": sha256})
    return _admitted(_slid(module, card), card, _contract(data, card.mean, card.std), data)


def _admitted(
    module: nn.Module, card: ModelCard, contract: InputContract, data: DatasetCard
) -> Loaded:
    """Return a model of the user's own as a victim, its outputs looked at."""
    victim = Victim(module, contract, chunk=images_at_once(data.size))
    expected = Expected(
        data.outputs, masks=data.task == "segmentation", findings=data.task == "multi_label"
    )
    reading, notes = probe(victim, expected)
    returns = "logits" if reading.link == "identity" else "probabilities"
    output = "" if reading.path == () else repr(reading.path)
    card = card.model_copy(update={"returns": returns, "output": output, "notes": notes})
    return Loaded(replace(victim, reading=reading), card, _answers_of(card, card.sha256))


def of_module(
    module: nn.Module,
    data: DatasetCard,
    *,
    name: str | None = None,
    contract: InputContract | None = None,
    **stated: Any,  # noqa: ANN401 - each is checked
) -> Loaded:
    """Return a module handed in from Python as a victim for the images of `data`.

    Args:
        module: takes images in [0,1], unless `mean` and `std` say what else it is shown.
        data: says channels, size and classes, and so the contract.
        name: what records call it; its class unless given.
        contract: in place of the one made of `data` and what is stated.
        stated: `mean` and `std`, one number or one a channel, in [0,1] units; `returns` and
            `output`, see InputContract. None is not stated.

    Raises:
        SpecError: `mean` or `std` are no such numbers, or stated beside a contract.
        VictimError: it does not read such images or answers another number of logits.
    """
    ours = {key: value for key, value in stated.items() if value is not None}
    if contract is None:
        contract = _contract(data, *_statistics(ours, {}, data), ours)
    elif ours:
        raise SpecError(f"expected {min(ours)} in the contract, got it beside a contract")
    title = name or type(module).__name__
    check_weights(module)
    module = user_factory.with_gradients(module)
    card = ModelCard(
        name=f"module:{title}",
        title=title,
        summary="A model handed in from Python.",
        family=type(module).__name__.lower(),
        dataset=data.name,
        builder=f"module:{type(module).__qualname__}",
        mean=contract.mean,
        std=contract.std,
        sha256=user_factory.identity(module),
    )
    loaded = _admitted(module, card, contract, data)
    parameter = next(module.parameters(), None)
    device = None if parameter is None else parameter.device
    x = torch.zeros(2, data.channels, *data.size, device=device)
    loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
    tell(loaded.card)
    return loaded


def _statistics(
    ours: Mapping[str, Any], default: Mapping[str, Any], data: DatasetCard
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: those given, else the architecture's, else those of [0,1] images.

    Raises:
        SpecError: one of two alone where the architecture has statistics of its own, or numbers
            that do not fit the data.
    """
    names = ("mean", "std")
    if any(name in ours for name in names):
        missing = [name for name in names if name not in ours]
        if missing and default.get(missing[0]):
            raise SpecError(
                f"expected mean=[..] and std=[..] together, got no {missing[0]}: the network's own "
                "belong to each other"
            )
        rest = {"mean": (0.0,), "std": (1.0,)}
        mean, std = (statistic(n, ours.get(n, rest[n]), data.channels) for n in names)
        return mean, std
    mean, std = tuple(default.get("mean") or (0.0,)), tuple(default.get("std") or (1.0,))
    if data.channels == 1:  # timm folds RGB stems into one channel; their statistics fold alike
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) not in (1, data.channels):
        raise SpecError(
            f"expected mean=[..] and std=[..] with {data.channels} numbers, one per channel, "
            f"got none: the network's own are of {len(mean)} channels"
        )
    return mean, std


def _slid(module: nn.Module, card: ModelCard) -> nn.Module:
    if card.window is None:
        return module
    return Sliding(module, window=card.window, overlap=card.overlap)


def _window(ours: dict[str, Any], data: DatasetCard) -> tuple[tuple[int, ...] | None, float]:
    """Return the window and overlap a spec asks for; (None, 0.25) where it reads whole images."""
    window, overlap = ours.get("window"), ours.get("overlap", 0.25)
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise SpecError(f"expected overlap in [0,1), got {overlap!r}")
    if window is None:
        return None, float(overlap)
    sides = window if isinstance(window, list | tuple) else ()
    fits = [isinstance(w, int) and 0 < w <= side for w, side in zip(sides, data.size, strict=False)]
    if len(sides) != len(data.size) or not all(fits):
        raise SpecError(f"expected window=[..] within {list(data.size)}, got {window!r}")
    return tuple(sides), float(overlap)


def _answers_of(card: ModelCard, weights_sha256: str) -> str:
    """Return the hash of what makes a victim's answers."""
    slides = () if card.window is None else (card.window, card.overlap)
    read: list[str] = [] if card.returns == "logits" else [card.returns]
    read += [card.output] if card.output else []
    return _digest(card.builder, card.mean, card.std, weights_sha256, *slides, *read)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
