"""Load a victim: a model of the zoo, a library's model with a weights file, or a user's own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
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
from robustbench_med.models.deployed import load_network
from robustbench_med.models.deployed.source import Deployed, deployed_of
from robustbench_med.models.probing import Expected, check_weights, probe
from robustbench_med.models.sliding import Sliding, bare
from robustbench_med.models.trained_here import home_of, trained_card
from robustbench_med.types import Images, images_at_once
from robustbench_med.victim import Victim

ZOO = registry.CORE / "models" / "zoo"
_OPTIONS = ("weights", "pretrained", "mean", "std", "window", "overlap", "returns", "output")
_log = logging.getLogger(__name__)
_logged: set[tuple[str, str]] = set()  # models and notes that this process has logged


_FILES = {
    ending: "weights alone have no architecture; use \"timm:NAME(weights='FILE.safetensors')\" or "
    "\"FILE.py:FACTORY(weights='FILE.safetensors')\""
    for ending in (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
} | {
    ending: "convert it to PyTorch or to ONNX (FILE.onnx)"
    for ending in (".h5", ".keras", ".tflite", ".pb", ".joblib")
}


class Loaded(NamedTuple):
    """A victim with its card and the hash of everything that determines its outputs."""

    victim: Victim
    card: ModelCard
    sha256: str


def check_name(name: str) -> None:
    """Raise VictimError if the name is that of a file that is not a model."""
    ending = Path(name).suffix.lower()
    if not registry.is_own(name) and ending in _FILES:
        raise VictimError(f"expected a model's name or spec, got {name!r}: {_FILES[ending]}")


class ModelSource(NamedTuple):
    """The model that the text of a victim names: parsed once, and loaded as often as needed.

    Attributes:
        name: the text.
        card: the card of the zoo; None for a user's own model.
        factory: the Python file and function that make the model, if the text names one.
        builder: a library's model with its parameters, if the text names one.
        entry: a model that a package or a script registered as a function.
        deployed: a model in the form in which it is deployed, if the text names one.
    """

    name: str
    card: ModelCard | None = None
    factory: user_factory.Factory | None = None
    builder: spec.Spec | None = None
    entry: registry.Entry | None = None
    deployed: Deployed | None = None


def resolve_model(name: str) -> ModelSource:
    """Return the model that the text of a victim names.

    Raises:
        UnknownNameError: there is no such card.
        SpecError, VictimError: the text is not a spec, or names a file instead of a model.
    """
    if not registry.is_own(name):
        check_name(name)
        entry = registry.entry_of("models", name)
        if entry is not None and entry.item is not None:
            return ModelSource(name, entry=entry)
        return ModelSource(name, card=registry.find("models", name))
    deployed = deployed_of(name)
    if deployed is not None:
        return ModelSource(name, deployed=deployed)
    factory = user_factory.factory_of(name)
    if factory is not None:
        return ModelSource(name, factory=factory)
    return ModelSource(name, builder=spec.parse(name))


def load_victim(
    model: str | ModelSource,
    data: DatasetCard,
    *,
    zoo: Path = ZOO,
    images: Callable[[], Images] | None = None,
) -> Loaded:
    """Return a victim, ready for the images of `data`.

    Args:
        model: a card of the zoo, or `timm:NAME(weights='FILE.safetensors', mean=[..], std=[..],
            ...)`, or `timm:NAME(pretrained=True)` for timm's own hub; for masks
            `smp:NAME(weights=...)`, `monai:NAME(weights=...)` or a network of `build`, with
            `window=[..], overlap=0.25` if it reads an image window by window; or
            `FILE.py:FACTORY(...)`, which executes that file. Each takes `returns='probabilities'`
            and `output='KEY'`, see InputContract.
        data: states channels, size and classes.
        zoo: folder with the weights of the zoo.
        images: returns a few images of the dataset, on which the conversion of a deployed model is
            compared; None = random ones.

    Raises:
        UnknownNameError: there is no such card, builder or model of a builder.
        ChecksumError: the weights are not those of the card.
        VictimError: the weights do not fit the architecture, or the model does not fit the data.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    if source.deployed is not None:
        return _of_deployed(source.name, source.deployed, data, images)
    if source.factory is not None:
        return _of_factory(source.name, source.factory, data)
    if source.builder is not None:
        return _of_spec(source.builder, data)
    if source.entry is not None:
        return _of_function(source.entry, data)
    card, folder = stored(_card_of(source), zoo)
    victim = untrained(card, _trained_on(card, data))
    sha256 = weights.read(bare(victim.module), folder / card.weights, sha256=card.sha256)
    return Loaded(victim, card, _outputs_sha256(card, sha256))


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


def stored(card: ModelCard, zoo: Path = ZOO) -> tuple[ModelCard, Path]:
    """Return the card of a victim with its checksum, and the folder of its weights.

    Raises:
        VictimError: its weights are not shipped, and were not trained on this machine.
    """
    return (trained_card(card), home_of(card)) if card.trained_here else (card, zoo)


def _card_of(source: ModelSource) -> ModelCard:
    if source.card is None:
        raise RuntimeError(f"expected a source with a card, factory or builder, got {source.name}")
    return source.card


def describe(
    model: str | ModelSource, data: DatasetCard, *, images: Callable[[], Images] | None = None
) -> tuple[ModelCard, str]:
    """Return the card and hash of `load_victim`, with the same errors, at less cost.

    A model of the zoo is not built: its card and the checksum of its file are sufficient.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    if source.card is None:
        loaded = load_victim(source, data, images=images)
        x = torch.zeros(2, data.channels, *data.size)
        loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
        log_notes(loaded.card)
        return loaded.card, loaded.sha256
    card, folder = stored(source.card, ZOO)
    _trained_on(card, data)
    weights.content(folder / card.weights, sha256=card.sha256)
    return card, _outputs_sha256(card, card.sha256)


def untrained(card: ModelCard, data: DatasetCard) -> Victim:
    """Return a victim of the card's architecture with fresh weights."""
    module = build(
        spec.parse(card.builder),
        channels=data.channels,
        outputs=len(data.classes),
        size=card.window or data.size,
    )
    contract = _contract(data, card.mean, card.std)
    return Victim(_with_window(module, card), contract, chunk=images_at_once(data.size))


def log_notes(card: ModelCard) -> None:
    """Log the notes of a model's card, each once per process."""
    for note in card.notes:
        if (card.name, note) not in _logged:
            _logged.add((card.name, note))
            _log.warning("%s: %s", card.name, note)


def _contract(
    data: DatasetCard,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    options: Mapping[str, Any] | None = None,
) -> InputContract:
    stated = {key: (options or {}).get(key) for key in ("returns", "output")}
    return contract_of(
        data.channels,
        data.size,
        {"mean": mean, "std": std, **stated},
        native_range=data.native_range,
        bit_depth=data.bit_depth,
        names=data.channel_names,
        spacing=data.spacing,
    )


def _of_spec(builder_spec: spec.Spec, data: DatasetCard) -> Loaded:
    options = {
        key: builder_spec.parameters[key] for key in _OPTIONS if key in builder_spec.parameters
    }
    inner = {key: value for key, value in builder_spec.parameters.items() if key not in _OPTIONS}
    library, _, name = builder_spec.name.rpartition(":")
    pretrained = library.startswith("timm") and bool(options.get("pretrained"))
    if not options.get("weights") and not pretrained:
        way = " or pretrained=True" if library.startswith("timm") else ""
        raise VictimError(f"expected weights='FILE.safetensors'{way}, got {builder_spec}")
    if not isinstance(options.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {options['weights']!r}")
    window, overlap = _window(options, data)
    # a hub model keeps its own head: for another width timm would make a random one
    outputs = None if pretrained else inner.pop("num_classes", len(data.classes))
    builder = spec.Spec(builder_spec.name, inner)
    module = build(
        builder,
        channels=data.channels,
        outputs=outputs,
        size=window or data.size,
        pretrained=pretrained,
    )
    if options.get("weights"):
        sha256 = weights.read(module, Path(options["weights"]))
    else:
        sha256 = weights.fingerprint(module)
    default = getattr(module, "pretrained_cfg", {})
    mean, std = _statistics(options, default, data)
    card = ModelCard(
        name=str(builder_spec),
        title=builder_spec.name,
        summary=f"A {library or builder_spec.name} model with weights the user gave.",
        family=name.partition("_")[0].lower(),
        dataset=data.name,
        builder=str(builder),
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=sha256,
    )
    return _probed(_with_window(module, card), card, _contract(data, mean, std, options), data)


def _of_factory(name: str, factory: user_factory.Factory, data: DatasetCard) -> Loaded:
    product = user_factory.make_model(factory, _OPTIONS)
    options, sha256 = product.unused, product.sha256
    for key in options.keys() & {"pretrained"}:
        raise SpecError(f"{name}: expected a parameter that the factory takes, got {key!r}")
    if not isinstance(options.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {options['weights']!r}")
    if options.get("weights"):
        sha256 = _digest(sha256, weights.read(product.module, Path(options["weights"])))
    window, overlap = _window(options, data)
    mean, std = _statistics(options, {}, data)
    card = ModelCard(
        name=name,
        title=f"{factory.path.name}:{factory.call.name}",
        summary="A model that the user's own code makes.",
        family=factory.call.name.lower(),
        dataset=data.name,
        builder=str(factory.call),
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=sha256,
    )
    return _probed(
        _with_window(product.module, card), card, _contract(data, mean, std, options), data
    )


def _of_deployed(
    name: str, source: Deployed, data: DatasetCard, images: Callable[[], Images] | None
) -> Loaded:
    """Return a deployed model as a victim."""
    stated = {key: source.parameters[key] for key in _OPTIONS if key in source.parameters}
    contract = _contract(data, *_statistics(stated, {}, data), stated)
    x = _random_images(data) if images is None else images()
    network = load_network(source, data, Victim(nn.Identity(), contract).normalised(x))
    options = {**(network.options or {}), **stated}
    window, overlap = _window(options, data)
    mean, std = _statistics(options, {}, data)
    card = ModelCard(
        name=name,
        title=f"{source.title} (queries only)" if network.queries_only else source.title,
        summary="A deployed model of the user's own.",
        family=network.family,
        dataset=data.name,
        builder=network.builder,
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=network.sha256,
        queries_only=network.queries_only,
    )
    contract = _contract(data, mean, std, options)
    loaded = _probed(_with_window(network.module, card), card, contract, data)
    notes = (*network.notes, *loaded.card.notes)
    return loaded._replace(card=loaded.card.model_copy(update={"notes": notes}))


def _random_images(data: DatasetCard) -> Images:
    """Return images to compare a conversion on, where there is none of the dataset."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((4, data.channels, *data.size), generator=generator)


def _of_function(entry: registry.Entry, data: DatasetCard) -> Loaded:
    """Return the victim of a registered function, or of a function of another package."""
    _trained_on(entry.card, data)
    module = user_factory.run_factory(entry.card.name, entry.item)
    sha256 = _digest(entry.origin, user_factory.identity(module))
    card: ModelCard = entry.card.model_copy(update={"sha256": sha256})
    return _probed(_with_window(module, card), card, _contract(data, card.mean, card.std), data)


def _probed(
    module: nn.Module, card: ModelCard, contract: InputContract, data: DatasetCard
) -> Loaded:
    """Return a user's own model as a victim, after probing its outputs."""
    victim = Victim(module, contract, chunk=images_at_once(data.size))
    expected = Expected(
        data.outputs, masks=data.task == "segmentation", findings=data.task == "multi_label"
    )
    reading, notes = probe(victim, expected)
    returns = "logits" if reading.link == "identity" else "probabilities"
    output = "" if reading.path == () else repr(reading.path)
    card = card.model_copy(update={"returns": returns, "output": output, "notes": notes})
    return Loaded(replace(victim, reading=reading), card, _outputs_sha256(card, card.sha256))


def of_module(
    module: nn.Module,
    data: DatasetCard,
    *,
    name: str | None = None,
    contract: InputContract | None = None,
    **stated: Any,  # noqa: ANN401 - each is checked
) -> Loaded:
    """Return a Python module as a victim for the images of `data`.

    Args:
        module: reads images in [0,1], unless `mean` and `std` state a normalisation.
        data: states channels, size and classes, and thereby the contract.
        name: its name in records; by default that of its class.
        contract: replaces the contract made from `data` and `stated`.
        stated: `mean` and `std`, one number or one per channel, in [0,1] units; `returns` and
            `output`, see InputContract. None counts as not stated.

    Raises:
        SpecError: `mean` or `std` are no such numbers, or are stated beside a contract.
        VictimError: the module does not read such images or returns another number of logits.
    """
    options = {key: value for key, value in stated.items() if value is not None}
    if contract is None:
        contract = _contract(data, *_statistics(options, {}, data), options)
    elif options:
        raise SpecError(f"expected {min(options)} in the contract, got it beside a contract")
    title = name or type(module).__name__
    check_weights(module)
    module = user_factory.with_gradients(module)
    card = ModelCard(
        name=f"module:{title}",
        title=title,
        summary="A PyTorch module that was passed in from Python.",
        family=type(module).__name__.lower(),
        dataset=data.name,
        builder=f"module:{type(module).__qualname__}",
        mean=contract.mean,
        std=contract.std,
        sha256=user_factory.identity(module),
    )
    loaded = _probed(module, card, contract, data)
    parameter = next(module.parameters(), None)
    device = None if parameter is None else parameter.device
    x = torch.zeros(2, data.channels, *data.size, device=device)
    loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
    log_notes(loaded.card)
    return loaded


def _statistics(
    options: Mapping[str, Any], default: Mapping[str, Any], data: DatasetCard
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: as stated, else those of the architecture, else 0 and 1.

    Raises:
        SpecError: only one of the two is stated although the architecture has both, or the numbers
            do not fit the data.
    """
    names = ("mean", "std")
    if any(name in options for name in names):
        missing = [name for name in names if name not in options]
        if missing and default.get(missing[0]):
            raise SpecError(
                f"expected mean=[..] and std=[..] together, got no {missing[0]}: the network's own "
                "two belong together"
            )
        default_statistics = {"mean": (0.0,), "std": (1.0,)}
        mean, std = (
            statistic(n, options.get(n, default_statistics[n]), data.channels) for n in names
        )
        return mean, std
    mean, std = tuple(default.get("mean") or (0.0,)), tuple(default.get("std") or (1.0,))
    if data.channels == 1:  # timm folds RGB stems into one channel; the statistics fold likewise
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) not in (1, data.channels):
        raise SpecError(
            f"expected mean=[..] and std=[..] with {data.channels} numbers, one per channel, "
            f"got none: the network's own have {len(mean)} channels"
        )
    return mean, std


def _with_window(module: nn.Module, card: ModelCard) -> nn.Module:
    if card.window is None:
        return module
    return Sliding(module, window=card.window, overlap=card.overlap)


def _window(options: dict[str, Any], data: DatasetCard) -> tuple[tuple[int, ...] | None, float]:
    """Return the window and overlap of a spec; (None, 0.25) if it reads whole images."""
    window, overlap = options.get("window"), options.get("overlap", 0.25)
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise SpecError(f"expected overlap in [0,1), got {overlap!r}")
    if window is None:
        return None, float(overlap)
    sides = window if isinstance(window, list | tuple) else ()
    fits = [isinstance(w, int) and 0 < w <= side for w, side in zip(sides, data.size, strict=False)]
    if len(sides) != len(data.size) or not all(fits):
        raise SpecError(f"expected window=[..] within {list(data.size)}, got {window!r}")
    return tuple(sides), float(overlap)


def _outputs_sha256(card: ModelCard, weights_sha256: str) -> str:
    """Return the hash of everything that determines a victim's outputs."""
    slides = () if card.window is None else (card.window, card.overlap)
    read: list[str] = [] if card.returns == "logits" else [card.returns]
    read += [card.output] if card.output else []
    return _digest(card.builder, card.mean, card.std, weights_sha256, *slides, *read)


def _digest(*values: object) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()
