"""Load a victim: a model of the zoo, a library's model with a weights file, or a user's own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_med import registry, spec
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.contract import InputContract
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models import user_factory, weights
from robustbench_med.models.build import build
from robustbench_med.models.card_file import check_fits, placed_builder
from robustbench_med.models.deployed import load_network, settings_of
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.models.options import (
    OPTIONS,
    contract_for,
    note_on_statistics,
    read_statistics,
    read_steps,
    read_window,
)
from robustbench_med.models.preprocess import (
    Preprocess,
    bridge,
    parse_preprocess,
    rebound,
    seen_by_network,
)
from robustbench_med.models.probing import Expected, check_weights, probe
from robustbench_med.models.sliding import Sliding, bare
from robustbench_med.models.source import ModelSource, resolve_model
from robustbench_med.models.trained_here import home_of, trained_card
from robustbench_med.types import Images, images_at_once
from robustbench_med.victim import Victim

ZOO = registry.CORE / "models" / "zoo"
_log = logging.getLogger(__name__)
_logged: set[tuple[str, str]] = set()  # models and notes that this process has logged


class Loaded(NamedTuple):
    """A victim with its card and the hash of everything that determines its outputs."""

    victim: Victim
    card: ModelCard
    sha256: str


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
        return _of_function(source, source.entry, data)
    card, folder = stored(_card_of(source), source.folder or zoo)
    data, card = _trained_on(card, data, source), _with_steps(card, source)
    victim = untrained(card, data, folder=folder)
    sha256 = weights.read(bare(victim.module), folder / card.weights, sha256=card.sha256)
    return Loaded(victim, card, _outputs_sha256(card, sha256))


def _with_steps(card: ModelCard, source: ModelSource) -> ModelCard:
    """Return the card of a model of the zoo with the steps that the text of the victim states."""
    if not source.preprocess:
        return card
    return card.model_copy(update={"name": source.name, "preprocess": source.preprocess})


def _trained_on(card: ModelCard, data: DatasetCard, source: ModelSource) -> DatasetCard:
    """Return the card of the images of a victim, if its network can read images of `data`.

    It is that of its training data, or `data` itself if the victim states its own steps.
    """
    if card.fits is not None:
        check_fits(card, card.fits, data, resized=bool(source.preprocess))
        return data
    trained: DatasetCard = registry.find("datasets", card.dataset)
    expected = seen_by_network(trained, parse_preprocess(card.preprocess, trained))
    steps = parse_preprocess(source.preprocess or card.preprocess, data)
    seen = seen_by_network(data, steps)
    for what in ("channels", "size", "task"):
        wanted, got = getattr(expected, what), getattr(seen, what)
        way = bridge(what, wanted, got)
        if what == "size" and seen.sizes_differ:
            got = "several sizes"
        if wanted != got:
            raise VictimError(
                f"{card.name}: expected {what} {wanted}, got {got} of {data.name}: choose a victim "
                f"trained on {data.name}{way}"
            )
    if len(trained.classes) != len(data.classes):
        raise VictimError(
            f"{card.name}: expected K = {len(trained.classes)} classes, got "
            f"K = {len(data.classes)} of {data.name}: choose a victim trained on {data.name}"
        )
    return data if source.preprocess or data.sizes else trained


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
    card, folder = stored(source.card, source.folder or ZOO)
    _trained_on(card, data, source)
    placed_builder(card, folder)
    weights.content(folder / card.weights, sha256=card.sha256)
    card = _with_steps(card, source)
    return card, _outputs_sha256(card, card.sha256)


def untrained(
    card: ModelCard, data: DatasetCard, *, folder: Path = ZOO, pretrained: bool = False
) -> Victim:
    """Return a victim of the card's architecture with fresh weights.

    Args:
        card: states the architecture.
        data: states channels, size and classes.
        folder: the folder of the card, which the path of its Python file is relative to.
        pretrained: load the weights of timm's hub.
    """
    steps = parse_preprocess(card.preprocess, data)
    seen = seen_by_network(data, steps)
    module = build(
        placed_builder(card, folder),
        channels=seen.channels,
        outputs=len(data.classes),
        size=card.window or seen.size,
        pretrained=pretrained,
    )
    contract = contract_for(data, card.mean, card.std, steps=steps)
    return Victim(_with_window(module, card), contract, chunk=_chunk(data, steps))


def _chunk(data: DatasetCard, steps: Preprocess | None) -> int:
    """Return how many images are forwarded at a time."""
    return min(images_at_once(data.size), images_at_once(seen_by_network(data, steps).size))


def log_notes(card: ModelCard) -> None:
    """Log the notes of a model's card, each once per process."""
    for note in card.notes:
        if (card.name, note) not in _logged:
            _logged.add((card.name, note))
            _log.warning("%s: %s", card.name, note)


def _of_spec(builder_spec: spec.Spec, data: DatasetCard) -> Loaded:
    options = {
        key: builder_spec.parameters[key] for key in OPTIONS if key in builder_spec.parameters
    }
    inner = {key: value for key, value in builder_spec.parameters.items() if key not in OPTIONS}
    library, _, name = builder_spec.name.rpartition(":")
    pretrained = library.startswith("timm") and bool(options.get("pretrained"))
    if not options.get("weights") and not pretrained:
        way = " or pretrained=True" if library.startswith("timm") else ""
        raise VictimError(f"expected weights='FILE.safetensors'{way}, got {builder_spec}")
    if not isinstance(options.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {options['weights']!r}")
    steps = read_steps(options, data)
    seen = seen_by_network(data, steps)
    window, overlap = read_window(options, seen)
    # a hub model keeps its own head: for another width timm would make a random one
    outputs = None if pretrained else inner.pop("num_classes", len(data.classes))
    builder = spec.Spec(builder_spec.name, inner)
    module = build(
        builder,
        channels=seen.channels,
        outputs=outputs,
        size=window or seen.size,
        pretrained=pretrained,
    )
    if options.get("weights"):
        sha256 = weights.read(
            module, Path(options["weights"]), unpickle=options.get("unpickle") is True
        )
    else:
        sha256 = weights.fingerprint(module)
    default = getattr(module, "pretrained_cfg", {})
    mean, std = read_statistics(options, default, seen)
    card = ModelCard(
        name=str(builder_spec),
        title=builder_spec.name,
        summary=f"A {library or builder_spec.name} model with weights the user gave.",
        family=name.partition("_")[0].lower(),
        dataset=data.name,
        builder=str(builder),
        preprocess="" if steps is None else steps.text,
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=sha256,
    )
    contract = contract_for(data, mean, std, options, steps)
    notes = note_on_statistics(builder_spec.name, card, options, default)
    return _probed(_with_window(module, card), card, contract, data, notes)


def _of_factory(name: str, factory: user_factory.Factory, data: DatasetCard) -> Loaded:
    product = user_factory.make_model(factory, OPTIONS)
    options, sha256 = product.unused, product.sha256
    for key in options.keys() & {"pretrained"}:
        raise SpecError(f"{name}: expected a parameter that the factory takes, got {key!r}")
    if not isinstance(options.get("weights", ""), str):
        raise VictimError(f"expected weights='FILE.safetensors', got {options['weights']!r}")
    if options.get("weights"):
        unpickle = options.get("unpickle") is True
        read = weights.read(product.module, Path(options["weights"]), unpickle=unpickle)
        sha256 = _digest(sha256, read)
    steps = read_steps(options, data)
    seen = seen_by_network(data, steps)
    window, overlap = read_window(options, seen)
    mean, std = read_statistics(options, {}, seen)
    card = ModelCard(
        name=name,
        title=f"{factory.path.name}:{factory.call.name}",
        summary="A model that the user's own code makes.",
        family=factory.call.name.lower(),
        dataset=data.name,
        builder=str(factory.call),
        preprocess="" if steps is None else steps.text,
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=sha256,
    )
    contract = contract_for(data, mean, std, options, steps)
    return _probed(_with_window(product.module, card), card, contract, data)


def _of_deployed(
    name: str, source: Deployed, data: DatasetCard, images: Callable[[], Images] | None
) -> Loaded:
    """Return a deployed model as a victim."""
    stated = {key: source.parameters[key] for key in OPTIONS if key in source.parameters}
    steps = read_steps(stated, data)
    settings = settings_of(source, seen_by_network(data, steps))
    texts = ["" if steps is None else steps.text, settings.get("preprocess", "")]
    steps = parse_preprocess(", ".join(filter(None, texts)), data)
    seen, options = seen_by_network(data, steps), {**settings, **stated}
    contract = contract_for(data, *read_statistics(options, {}, seen), options, steps)
    x = _random_images(data) if images is None else images()
    network = load_network(source, seen, Victim(nn.Identity(), contract).normalised(x))
    window, overlap = read_window(options, seen)
    mean, std = read_statistics(options, {}, seen)
    card = ModelCard(
        name=name,
        title=f"{source.title} (queries only)" if network.queries_only else source.title,
        summary="A deployed model of the user's own.",
        family=network.family,
        dataset=data.name,
        builder=network.builder,
        preprocess="" if steps is None else steps.text,
        mean=mean,
        std=std,
        window=window,
        overlap=overlap,
        sha256=network.sha256,
        queries_only=network.queries_only,
    )
    contract = contract_for(data, mean, std, options, steps)
    loaded = _probed(_with_window(network.module, card), card, contract, data)
    notes = [*network.notes, *loaded.card.notes]
    if settings and data.native is not None and steps is not None and not steps.windows:
        notes.append(
            f"the network gets the whole range of the images, {data.native_range}: state "
            "preprocess='window(...)' if its device shows a window of it"
        )
    return loaded._replace(card=loaded.card.model_copy(update={"notes": tuple(notes)}))


def _random_images(data: DatasetCard) -> Images:
    """Return images to compare a conversion on, where there is none of the dataset."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((4, data.channels, *data.size), generator=generator)


def _of_function(source: ModelSource, entry: registry.Entry, data: DatasetCard) -> Loaded:
    """Return the victim of a registered function, or of a function of another package."""
    _trained_on(entry.card, data, source)
    module = user_factory.run_factory(entry.card.name, entry.item)
    sha256 = _digest(entry.origin, user_factory.identity(module))
    card = _with_steps(entry.card.model_copy(update={"sha256": sha256}), source)
    contract = contract_for(
        data, card.mean, card.std, steps=parse_preprocess(card.preprocess, data)
    )
    return _probed(_with_window(module, card), card, contract, data)


def _probed(
    module: nn.Module,
    card: ModelCard,
    contract: InputContract,
    data: DatasetCard,
    known: tuple[str, ...] = (),
) -> Loaded:
    """Return a user's own model as a victim, after probing its outputs."""
    victim = Victim(module, contract, chunk=_chunk(data, contract.preprocess))
    expected = Expected(
        data.outputs, masks=data.task == "segmentation", findings=data.task == "multi_label"
    )
    reading, notes = probe(victim.network, expected)
    returns = "logits" if reading.link == "identity" else "probabilities"
    output = "" if reading.path == () else repr(reading.path)
    notes = (*known, *notes)
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
        stated: `preprocess`, the steps between an image and the module; `mean` and `std`, one
            number or one per channel, in [0,1] units; `returns` and `output`, see InputContract.
            None counts as not stated.

    Raises:
        SpecError: `mean` or `std` are no such numbers, or are stated beside a contract.
        VictimError: the module does not read such images or returns another number of logits.
    """
    options = {key: value for key, value in stated.items() if value is not None}
    if contract is None:
        steps = read_steps(options, data)
        statistics = read_statistics(options, {}, seen_by_network(data, steps))
        contract = contract_for(data, *statistics, options, steps)
    elif options:
        raise SpecError(f"expected {min(options)} in the contract, got it beside a contract")
    else:
        contract = rebound(contract, data)
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
        preprocess="" if contract.preprocess is None else contract.preprocess.text,
        mean=contract.mean,
        std=contract.std,
        sha256=user_factory.identity(module),
        queries_only=bool(getattr(module, "queries_only", False)),
    )
    loaded = _probed(module, card, contract, data)
    parameter = next(module.parameters(), None)
    device = None if parameter is None else parameter.device
    x = torch.zeros(2, data.channels, *data.size, device=device)
    loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
    log_notes(loaded.card)
    return loaded


def _with_window(module: nn.Module, card: ModelCard) -> nn.Module:
    if card.window is None:
        return module
    return Sliding(module, window=card.window, overlap=card.overlap)


def _outputs_sha256(card: ModelCard, weights_sha256: str) -> str:
    """Return the hash of everything that determines a victim's outputs."""
    slides = () if card.window is None else (card.window, card.overlap)
    read: list[str] = [card.preprocess] if card.preprocess else []
    read += [] if card.returns == "logits" else [card.returns]
    read += [card.output] if card.output else []
    return _digest(card.builder, card.mean, card.std, weights_sha256, *slides, *read)


def _digest(*values: object) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()
