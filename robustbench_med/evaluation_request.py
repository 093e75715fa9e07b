"""A call of the API as a request: the grid that it states, and the cases planned for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_med import registry
from robustbench_med.bench.plan import plan
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.suite import Grid, Suite, all_shifts
from robustbench_med.errors import SpecError
from robustbench_med.model_handle import (
    DataLike,
    ModelHandle,
    ModelLike,
    resolve_dataset,
    resolve_model,
)
from robustbench_med.printable import plain
from robustbench_med.registry import is_own

Radii = float | str | Sequence[float | str]  # in [0,1] image units; "2/255" and "1/255,2/255" too
_API_NAMES = {"defenses": "defense"}  # field of a grid -> its name in the API


@dataclass(frozen=True)
class EvaluationRequest:
    """One model on one dataset under some attacks, as a call of the API requests it.

    Attributes:
        model: the model as the caller passed it.
        data: the data as the caller passed it.
        attacks: specs of the attacks.
        seed: seed of everything random.
        fields: the other fields of a suite's grid.
    """

    model: ModelLike
    data: DataLike
    attacks: tuple[str, ...]
    seed: int
    fields: dict[str, Any]

    def plan_cases(
        self,
        *,
        folder: str | Path | None = None,
        name: str | None = None,
        **options: object,
    ) -> list[ResolvedCase]:
        """Return the planned cases.

        Args:
            folder: the folder with the files of real datasets.
            name: the name of a torch module, or of a model of the user's own.
            options: mean, std, returns and output of a torch module; None means not stated.

        Raises:
            BenchError: an argument is wrong, or a case cannot run.
        """
        data_name, dataset = resolve_dataset(self.data, folder=folder)
        titles = {}
        if name is not None and isinstance(self.model, str | Path) and is_own(str(self.model)):
            titles, name = {str(self.model): plain(name)}, None
        victim, loaded = resolve_model(self.model, dataset.card, name=name, **options)
        grid = {
            "datasets": [data_name],
            "victims": [victim],
            "attacks": self.attacks,
            "stated": True,
            **self.fields,
        }
        values = {"name": "asked", "title": "Asked", "seed": self.seed, "grids": [grid]}
        suite = registry.validate(Suite, values, "arguments")
        victims = {} if loaded is None else {victim: loaded}
        planned, refused = plan(
            suite, datasets={data_name: dataset}, victims=victims, titles=titles
        )
        if refused:
            raise refused[0].exception
        if not planned:
            knowledge, attacks = self.fields["knowledge"][0], ", ".join(self.attacks)
            raise SpecError(
                f"expected an attack by gradients with knowledge {knowledge}, got {attacks}"
            )
        if len({item.case.victim for item in planned}) != 1:
            raise SpecError(f"expected one model, got {victim!r}, which stands for several")
        return planned

    @property
    def command(self) -> str:
        """A command that computes the cases again; objects of the caller are in angle brackets."""
        defaults = Grid.model_fields
        names = {**_API_NAMES, "ladder": "severity" if all_shifts(self.attacks) else "eps"}
        stated = {
            names.get(key, key): value
            for key, value in self.fields.items()
            if key not in defaults or value != defaults[key].default
        }
        for key in ("defense", "knowledge"):
            if key in stated:
                stated[key] = stated[key][0]
        options = "".join(
            f", {key}={value!r}" for key, value in (stated | {"seed": self.seed}).items()
        )
        model, data = _as_literal(self.model), _as_literal(self.data)
        return python_command(f"evaluate({model}, {data}, {list(self.attacks)!r}{options})")


def make_request(
    model: ModelLike,
    data: DataLike,
    attacks: str | Sequence[str],
    *,
    eps: Radii | None,
    severity: Radii | None = None,
    seed: int,
    defense: str = "none",
    knowledge: str = "adaptive",
    **fields: Any,  # noqa: ANN401 - the suite's schema checks them
) -> EvaluationRequest:
    """Return the request for the arguments of `evaluate` or `attack`.

    Raises:
        SpecError: a defense is requested for a model that has one, or attacks have a severity or
            shifts a radius.
    """
    if isinstance(model, ModelHandle) and model.defense != "none":
        if defense != "none":
            raise SpecError(f"expected one defense, got {defense} before {model.defense}")
        defense = model.defense
    specs = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    _check_sizes(specs, eps, severity)
    ladder = _several(eps if severity is None else severity)
    grid = {"ladder": ladder, "defenses": (defense,), "knowledge": (knowledge,)}
    return EvaluationRequest(model, data, specs, seed, {**grid, **fields})


def _check_sizes(specs: tuple[str, ...], eps: object, severity: object) -> None:
    """Raise SpecError where attacks have a severity, or shifts a radius."""
    shifts = all_shifts(specs)
    if severity is not None and not shifts:
        raise SpecError(
            "expected eps for attacks, whose size is a radius, got severity: `list attacks` names "
            "the shifts"
        )
    if eps is not None and shifts:
        raise SpecError(
            "expected severity for shifts, whose size is no radius, got eps: write severity=0.5"
        )


def _several(radii: Any) -> tuple[Any, ...]:  # noqa: ANN401 - numbers in any form
    """Return the radii or severities that one argument states."""
    values = radii.split(",") if isinstance(radii, str) else radii
    if values is None:
        return ()
    # arrays are no Sequence
    return tuple(values) if isinstance(values, Iterable) else (values,)


def python_command(call: str) -> str:
    """Return a Python call as a command of the shell.

    The command ends with the sign of a comment, to which the runner adds the id of a case.
    """
    plain = call if '"' in call else call.replace("'", '"')  # quotes that need no escape
    return f"python -c {shlex.quote(f'from robustbench_med import *; {plain}')}  #"


def _as_literal(value: object) -> str:
    if isinstance(value, ModelHandle):
        value = value.name
    return repr(str(value)) if isinstance(value, str | Path) else f"<{type(value).__name__}>"
