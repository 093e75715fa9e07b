"""Replay: plan and run a record's case again, with the present weights, data and attacks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

from robustbench_med import registry, spec, user_code
from robustbench_med.bench.case import Case
from robustbench_med.bench.execute import Outcome, execute
from robustbench_med.bench.plan import plan
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import SetupCache
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.devices import device_of
from robustbench_med.errors import SpecError
from robustbench_med.models.card_file import is_card_file
from robustbench_med.models.source import executes_code
from robustbench_med.models.user_factory import factory_of
from robustbench_med.spec import Spec

# for each field of a case that may have changed since the record: the message
_WORDS = {
    "victim_sha256": "the weights of {case.victim} are not those of the record",
    "surrogate_sha256": "the weights of {case.surrogate} are not those of the record",
    "data_sha256": "the images of {case.dataset} are not those of the record",
    "train_sha256": "the training images of {case.dataset} are not those of the record",
    "attack_sha256": "the code of {case.attack} is not that of the record",
    "defense_sha256": "the code of {case.defense} is not that of the record",
    "attack_version": "{case.attack} is another version than the record's",
    "parameters": "{case.attack} takes other parameters than the record's",
    "defense": "{case.defense} takes other parameters than the record's",
    "defense_version": "{case.defense} is another version than the record's",
}


class Places(NamedTuple):
    """The present paths of your own files, if they are not where a record says.

    Attributes:
        dataset: the `.npz` file.
        victim: its weights, its Python file, or a whole spec; None = as recorded.
        surrogate: the same for the surrogate.
    """

    dataset: str | None = None
    victim: str | None = None
    surrogate: str | None = None


def replan(
    case: Case, *, data: Path | None = None, code: bool = False, places: Places | None = None
) -> ResolvedCase:
    """Plan a case again: the same choices, resolved with the present weights, data and attacks.

    Args:
        case: the case of a record.
        data: folder with the files of real datasets.
        code: execute the Python file that the case names as its victim or surrogate, if any.
        places: the present paths of your own files; `changed` compares their hashes.

    Raises:
        SpecError: the case names a Python file and `code` is False, since a record may come from
            anybody; or a file that it names does not exist.
        BenchError: the victim, the attack or the data cannot be loaded.
    """
    places = Places() if places is None else places
    if case.victim.startswith("module:") and places.victim is None:
        raise SpecError(
            f"expected a model from a file, got {case.victim}, which was passed as a Python "
            "object: evaluate it again with results=DIR and compare the records"
        )
    victim = _moved(case.victim, places.victim, "victim")
    surrogate = case.surrogate and _moved(case.surrogate, places.surrogate, "surrogate")
    executed = [name for name in (victim, surrogate) if name is not None and executes_code(name)]
    for name in (*executed, *own_functions(case)):
        if not code:
            raise SpecError(
                f"expected a record that executes no Python file, got one that executes {name!r}: "
                "read that file, and pass --run-code if you trust it"
                if not name.startswith("http")
                else f"expected a record that asks no server, got one of {name!r}: pass --run-code "
                "if you know that address"
            )
    dataset = _dataset(case, data, places.dataset)
    grid = _grid_of(case.model_copy(update={"victim": victim, "surrogate": surrogate}))
    suite = Suite(name="again", title="Again", seed=case.seed, grids=(grid,))
    planned, refused = plan(suite, data=data, datasets={case.dataset: dataset})
    if refused:
        raise refused[0].exception
    if len(planned) != 1:
        raise SpecError(f"expected one case to run again, got {len(planned)} of {case.label}")
    return planned[0]


def own_functions(case: Case) -> list[str]:
    """Return the attacks and defenses of a case that are functions in files of the user's own."""
    names = (case.attack, case.defense.partition("(")[0], case.knowledge.partition("(")[0])
    return [name for name in names if user_code.split(name) is not None]


def called_as(case: Case, planned: Case) -> Case:
    """Return a planned case with the model specs of the record, since moved files change them."""
    return planned.model_copy(update={"victim": case.victim, "surrogate": case.surrogate})


def _dataset(case: Case, data: Path | None, path: str | None) -> Dataset:
    """Return the dataset of a case, read from `path` if its file was moved."""
    known = case.dataset in registry.names("datasets")
    if path is not None and known:
        raise SpecError(
            f"expected --dataset only for a record on your own file, got one on {case.dataset}: "
            "pass its folder with --data DIR"
        )
    if known:
        return load_dataset(case.dataset, data=data)
    if path is None and not Path(case.dataset).expanduser().is_file():
        raise SpecError(
            f"expected the dataset {case.dataset} of the record, got no such file: pass its "
            "present path with --dataset FILE; its hash is compared"
        )
    if path is None:
        return load_dataset(case.dataset)
    return _under_its_name(Path(path).expanduser(), Path(case.dataset))


def _under_its_name(path: Path, recorded: Path) -> Dataset:
    """Return the dataset of a moved file, with the name it had in the record.

    The name in the card, and so in the record, is made of the file's name and folder.
    """
    if not path.is_file():
        raise SpecError(f"expected a .npz file with --dataset, got no file at {path}")
    home = tempfile.mkdtemp(prefix="robustbench_med-")
    alias = Path(home) / (recorded.parent.name or "data") / recorded.name
    alias.parent.mkdir(exist_ok=True)
    try:
        alias.symlink_to(path.resolve())
    except OSError:  # on Windows a link needs a privilege
        shutil.copyfile(path, alias)
    dataset = load_dataset(str(alias))

    def read(split: SplitName) -> Arrays:
        return dataset.read(split)

    weakref.finalize(read, shutil.rmtree, home, ignore_errors=True)
    return Dataset(dataset.card, read)


def _moved(victim: str, location: str | None, option: str) -> str:
    """Return the spec of your own model with the present path of its file.

    >>> _moved("timm:resnet18(weights='/a/w.safetensors')", "w.safetensors", "victim")
    "timm:resnet18(weights='w.safetensors')"
    >>> _moved("/a/net.py:make(width=8)", "b/net.py", "victim")
    'b/net.py:make(width=8)'
    """
    if is_card_file(victim):  # a card names its weights
        return location or victim
    factory = factory_of(victim) if registry.is_own(victim) else None
    if location is not None:
        if not registry.is_own(victim):
            raise SpecError(
                f"expected --{option} only for a record of your own model, got one of {victim}"
            )
        if factory is not None and location.endswith(".py"):
            return f"{location}:{factory.call}"
        if Path(location).suffix and "(" not in location and ".py:" not in location:
            model = spec.parse(victim) if factory is None else factory.call
            moved = str(Spec(model.name, {**model.parameters, "weights": location}))
            return moved if factory is None else f"{factory.path}:{moved}"
        return location
    if not registry.is_own(victim) or victim.startswith("module:"):
        return victim
    model = spec.parse(victim) if factory is None else factory.call
    files = [] if factory is None else [factory.path]
    files += [Path(str(model.parameters["weights"]))] if "weights" in model.parameters else []
    for path in files:
        if not path.expanduser().is_file():
            raise SpecError(
                f"expected the file {path} of the record's model, got no such file: pass its "
                f"present path with --{option} FILE; its hash is compared"
            )
    return victim


def run_again(
    planned: ResolvedCase,
    *,
    images: bool = False,
    device: str = "cpu",
    setups: SetupCache | None = None,
) -> Outcome:
    """Run a case again and return the outcome, without writing a record.

    Args:
        planned: the case.
        images: keep the adversarial images.
        device: as `run`.
        setups: prepared victims, shared with other cases.
    """
    where = device_of(device)
    return execute(
        planned,
        lambda: (setups or SetupCache(where)).of(planned),
        command="",  # no record is written
        examples=0,
        images=images,
        device=str(where),
    )


def changed(recorded: Case, now: Case) -> list[str]:
    """Return a line for each field of the case that has changed since the record.

    >>> case = Case(dataset="d", data_sha256="a", victim="v", victim_sha256="b", attack="fgsm",
    ...             attack_version=1, parameters={}, norm="linf", ladder=(0.1,))
    >>> changed(case, case.model_copy(update={"victim_sha256": "c"}))
    ['the weights of v are not those of the record: expected b, got c']
    """
    lines = []
    for field in Case.model_fields:
        before, after = getattr(recorded, field), getattr(now, field)
        if before != after:
            text = _WORDS.get(field, field + " is not that of the record").format(case=recorded)
            lines.append(f"{text}: expected {_short(before)}, got {_short(after)}")
    return lines


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and isinstance(value, str) else text


def _grid_of(case: Case) -> Grid:
    channels = [f"{name}={fraction}" for name, fraction in case.channels.items()]
    return Grid(
        datasets=(case.dataset,),
        victims=(case.victim,),
        defenses=(case.defense,),
        knowledge=(case.knowledge,),
        attacks=(str(Spec(case.attack, case.parameters)),),
        norm=case.norm,
        channels=(" + ".join(channels) or "all",),
        ladder=case.ladder,
        budget=case.budget,
        surrogates=() if case.surrogate is None else (case.surrogate,),
        draws=case.draws,
        objective=case.objective,
        split=case.split,
        n=case.n,
        operating_point=case.operating_point,
        guide=case.guide,
        **({} if case.n_fit is None else {"n_fit": case.n_fit}),
    )
