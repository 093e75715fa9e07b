"""The packages of peers: import their attacks, read their parameters, and say which can be used."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging.config
import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from robustbench_med.cards import Norm
from robustbench_med.errors import NotInstalledError, SpecError, UnknownNameError
from robustbench_med.paths import cache_root

Signature = dict[str, inspect.Parameter]

BUDGET = ("eps", "max_epsilon")  # names of the radius; it is set from the ball
STEP = ("alpha", "eps_step")  # names of a step in image units; 0 = the default fraction of eps
VICTIM = ("model", "classifier", "estimator")
PLUMBING = {"norm", "seed", "n_classes", "targeted", "verbose", "verbose_es", "summary_writer"}
PLUMBING |= {"batch_size", "batch_max", "max_batch_size", "inf_batch", "parallel_pool_size"}
REAL = {"c", "kappa", "lam", "scale"}  # real numbers whose default is written as an integer
COST = (  # parameters that multiply the number of passes
    *("steps", "max_iter", "max_iterations", "max_inner_iter", "num_iter_set", "nb_iter"),
    *("nb_steps", "n_queries", "binary_search_steps", "n_restarts", "restarts", "nb_restarts"),
    *("nb_random_init", "eot_iter", "nb_sample", "noise_batch_size", "m", "N", "init_eval"),
)
PASSES = {  # passes of ensembles, whose constructors fix the members: APGD, FAB and Square
    "torchattacks:AutoAttack": 6900,
    "art:AutoAttack": 26100,
}

_ALL: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
NORMS: dict[str, tuple[Norm, ...]] = {  # of attacks whose signature does not show them
    **dict.fromkeys(("torchattacks:VANILA", "torchattacks:GN"), _ALL),
    **dict.fromkeys(("torchattacks:PGDL2", "torchattacks:PGDRSL2"), ("l2",)),
    **dict.fromkeys(("torchattacks:EADL1", "torchattacks:EADEN", "art:ElasticNet"), ("l1", "l2")),
    **dict.fromkeys((f"torchattacks:{n}" for n in ("SparseFool", "OnePixel", "Pixle")), ("l0",)),
    **dict.fromkeys(("torchattacks:JSMA", "art:SaliencyMapMethod"), ("l0",)),
    **dict.fromkeys(("art:CarliniL0Method", "art:PixelAttack"), ("l0",)),
    **dict.fromkeys(("art:CarliniLInfMethod", "art:ThresholdAttack"), ("linf",)),
    **dict.fromkeys(("art:HopSkipJump", "art:GeoDA", "art:SquareAttack"), ("linf", "l2")),
    **dict.fromkeys(("art:AutoAttack", "art:UniversalPerturbation"), ("linf", "l2")),
    "art:TargetedUniversalPerturbation": ("linf", "l2"),
    "art:BrendelBethgeAttack": _ALL,
    "torchattacks:FAB": ("linf", "l2", "l1"),
}
CONTROL = {"torchattacks:VANILA", "torchattacks:GN"}
QUERY = {f"torchattacks:{n}" for n in ("Square", "OnePixel", "Pixle", "SPSA")}
QUERY |= {"art:SquareAttack", "art:HopSkipJump", "art:BoundaryAttack", "art:ZooAttack"}
QUERY |= {"art:GeoDA", "art:SignOPTAttack", "art:PixelAttack", "art:ThresholdAttack"}
QUERY |= {"art:SpatialTransformation"}
_UNFIT = {  # attacks that can be called but not used here, and why
    **{f"art:AdversarialPatch{n}": "makes a patch" for n in ("", "Numpy", "PyTorch")},
    "art:AdversarialPatchTensorFlowV2": "needs TensorFlow",
    "art:ProjectedGradientDescentTensorFlowV2": "needs TensorFlow",
    "art:FeatureAdversariesNumpy": "needs images to imitate",
    "art:LowProFool": "attacks rows of a table",
    "art:OverTheAirFlickeringPyTorch": "attacks videos",
    "art:SimBA": "needs a model that returns probabilities",
    "art:VirtualAdversarialMethod": "needs a model that returns probabilities",
    "art:Wasserstein": "has a budget that is no norm",
}


class Package(NamedTuple):
    """A peer's package.

    Attributes:
        distribution: its name for pip.
        attacks: imports the package and returns its attacks by class name.
        norms: the norms of an attack that has the norm as a parameter.
        names: the package's name of each norm.
    """

    distribution: str
    attacks: Callable[[], dict[str, Any]]
    norms: tuple[Norm, ...]
    names: dict[Norm, object]


def package_of(name: str) -> Package:
    """Return the package of a name such as `torchattacks:PGD`.

    Raises:
        UnknownNameError: there is no such package.
    """
    package = name.partition(":")[0]
    if package not in _PACKAGES:
        raise UnknownNameError("package of attacks", package, _PACKAGES)
    return _PACKAGES[package]


def signature_of(name: str) -> Signature:
    """Return the parameters of an attack's constructor.

    Raises:
        UnknownNameError: there is no such package or attack.
        NotInstalledError: the package is not installed.
        SpecError: the attack cannot be used here; the message says why.
    """
    return parameters_of(class_of(name))


def class_of(name: str) -> Any:  # noqa: ANN401 - a class of a peer
    """Return the class of a name; it raises the same errors as `signature_of`."""
    package, (module, _, attack) = package_of(name), name.partition(":")
    try:
        # looked up by distribution, because another package is called art too
        importlib.metadata.version(package.distribution)
        missing = importlib.util.find_spec(module) is None
    except importlib.metadata.PackageNotFoundError:
        missing = True
    if missing:
        raise NotInstalledError(package.distribution, name, "peers")
    with quiet():
        classes = package.attacks()
        names = {key: f"{module}:{key}" for key in classes}
        if attack not in classes:
            known = [full for key, full in names.items() if not _unfit(full, classes[key])]
            raise UnknownNameError("attack", name, known)
        reason = _unfit(name, classes[attack])
    if reason:
        raise SpecError(
            f"{name}: expected an attack on images and their labels, got one that {reason}"
        )
    return classes[attack]


def parameters_of(cls: Any) -> Signature:  # noqa: ANN401 - a class of a peer
    """Return the parameters of a constructor, without self."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def is_relative(parameter: str, signature: Signature) -> bool:
    """Whether a parameter is a step whose default goes with the default radius."""
    step = parameter in STEP and parameter in signature
    return step and any(key in signature for key in BUDGET)


def default_rel_step(step: str, signature: Signature) -> float:
    """Return the default of a step in units of the default radius."""
    radius = next(signature[key].default for key in BUDGET if key in signature)
    return float(signature[step].default / radius)


def _unfit(name: str, cls: Any) -> str:  # noqa: ANN401 - a class of a peer
    """Return why an attack cannot be used, or an empty text if it can."""
    if name in _UNFIT:
        return _UNFIT[name]
    for kind in getattr(cls, "_estimator_requirements", None) or ():
        from art.estimators.classification import PyTorchClassifier

        if not issubclass(PyTorchClassifier, kind):
            return "attacks another kind of model"
    needed = [
        key
        for key, parameter in parameters_of(cls).items()
        if parameter.default is parameter.empty
        and key not in VICTIM
        and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return f"needs {', '.join(needed)}" if needed else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of a peer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _torchattacks() -> dict[str, Any]:
    module = importlib.import_module("torchattacks")
    return {name: getattr(module, name) for name in module.__all__}


def _art() -> dict[str, Any]:
    """Return the evasion attacks of ART, imported without changes outside our cache folder.

    The import of ART would write a folder in the user's home and configure logging anew, which
    closes the handlers of everything else.
    """
    if "art" not in sys.modules:
        home = cache_root()
        with contextlib.suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
        with mock.patch.object(os.path, "expanduser", lambda path: path.replace("~", str(home), 1)):
            config = _module_alone("art.config")
        state = random.getstate()  # a module that ART imports draws from this generator
        with mock.patch.object(logging.config, "dictConfig"):
            importlib.import_module("art").config = config  # type: ignore[attr-defined]
        random.setstate(state)
        logging.getLogger("art").addHandler(logging.NullHandler())
    evasion = importlib.import_module("art.attacks.evasion")
    base = importlib.import_module("art.attacks.attack").EvasionAttack
    return {n: c for n, c in vars(evasion).items() if inspect.isclass(c) and issubclass(c, base)}


def _module_alone(name: str) -> ModuleType:
    """Return a module of a package that is not imported yet, without importing the package."""
    package, _, module = name.partition(".")
    spec = importlib.util.find_spec(package)
    home = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    file_spec = importlib.util.spec_from_file_location(name, os.path.join(home, f"{module}.py"))
    if file_spec is None or file_spec.loader is None:
        raise ImportError(f"expected {module}.py in {home}")
    module_object = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module_object)
    sys.modules[name] = module_object
    return module_object


_PACKAGES = {
    "torchattacks": Package(
        "torchattacks",
        _torchattacks,
        ("linf", "l2"),
        {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"},
    ),
    "art": Package(
        "adversarial-robustness-toolbox",
        _art,
        ("linf", "l2", "l1"),
        {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0},
    ),
}
