"""Asked: what a person asked of the Python face, as the cases that `run` would make of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_med import registry
from robustbench_med.bench.plan import ResolvedCase, plan
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.errors import SpecError
from robustbench_med.subject import Data, Model, Subject, named, victim_of

Radii = float | str | Sequence[float | str]  # in [0,1] image units; "2/255" and "1/255,2/255" too
_CALLED = {"ladder": "eps", "defenses": "defense"}  # what the face calls fields of a grid


@dataclass(frozen=True)
class Asked:
    """One model on one dataset under some attacks.

    Attributes:
        model: what was handed in.
        data: likewise.
        attacks: specs.
        seed: of everything random.
        fields: the other fields of a grid.
    """

    model: Subject
    data: Data
    attacks: tuple[str, ...]
    seed: int
    fields: dict[str, Any]

    def planned(
        self,
        *,
        folder: str | Path | None = None,
        name: str | None = None,
        **stated: object,
    ) -> list[ResolvedCase]:
        """Return its cases.

        Args:
            folder: with the files of named datasets.
            name: of a torch module.
            stated: of a torch module: mean, std, returns, output; None is not stated.

        Raises:
            BenchError: a choice that is wrong, or whatever keeps a case from running.
        """
        called, dataset = named(self.data, folder=folder)
        victim, own = victim_of(self.model, dataset.card, name=name, **stated)
        asked = {"datasets": [called], "victims": [victim], "attacks": self.attacks, **self.fields}
        values = {"name": "asked", "title": "Asked", "seed": self.seed, "grids": [asked]}
        suite = registry.validate(Suite, values, "arguments")
        victims = {} if own is None else {victim: own}
        planned, refused = plan(suite, datasets={called: dataset}, victims=victims)
        if refused:
            raise refused[0].exception
        if not planned:
            known, got = self.fields["knowledge"][0], ", ".join(self.attacks)
            raise SpecError(f"expected an attack by gradients with knowledge {known}, got {got}")
        if len({one.case.victim for one in planned}) != 1:
            raise SpecError(f"expected one model, got {victim!r}, which stands for several")
        return planned

    @property
    def command(self) -> str:
        """A command that computes them again; in brackets what only the caller has."""
        usual = Grid.model_fields
        said = {
            _CALLED.get(key, key): value
            for key, value in self.fields.items()
            if key not in usual or value != usual[key].default
        }
        for key in ("defense", "knowledge"):
            if key in said:
                said[key] = said[key][0]
        options = "".join(
            f", {key}={value!r}" for key, value in (said | {"seed": self.seed}).items()
        )
        subject, data = (_shown(value) for value in (self.model, self.data))
        return python(f"evaluate({subject}, {data}, {list(self.attacks)!r}{options})")


def asked(
    model: Subject,
    data: Data,
    attacks: str | Sequence[str],
    *,
    eps: Radii | None,
    seed: int,
    defense: str = "none",
    knowledge: str = "adaptive",
    **fields: Any,  # noqa: ANN401 - the suite's schema checks them
) -> Asked:
    """Return what was asked.

    Raises:
        SpecError: a defense before a model that has one, or no attack.
    """
    if isinstance(model, Model) and model.defense != "none":
        if defense != "none":
            raise SpecError(f"expected one defense, got {defense} before {model.defense}")
        defense = model.defense
    radii: Any = eps.split(",") if isinstance(eps, str) else eps
    several = not isinstance(radii, str) and isinstance(radii, Iterable)  # arrays are no Sequence
    ladder = () if radii is None else tuple(radii) if several else (radii,)
    chosen = {"ladder": ladder, "defenses": (defense,), "knowledge": (knowledge,)}
    specs = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    return Asked(model, data, specs, seed, {**chosen, **fields})


def python(call: str) -> str:
    """Return a call as a command of the shell, to which the runner adds a case's id: a comment."""
    plain = call if '"' in call else call.replace("'", '"')  # quotes that need no escape
    return f"python -c {shlex.quote(f'from robustbench_med import *; {plain}')}  #"


def _shown(value: object) -> str:
    if isinstance(value, Model):
        value = value.name
    return repr(str(value)) if isinstance(value, str | Path) else f"<{type(value).__name__}>"
