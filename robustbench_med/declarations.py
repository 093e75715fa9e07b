"""Declarations: an attack's or defense's card, read from the function that it describes.

`@attack(...)` and `@defense(...)` state what a signature cannot. Names, defaults and types of the
parameters come from the signature, their meaning from the docstring's `Args:`. `read_cards` does
the same from source text, so that `list` and `show` import no attack and hence no torch.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from robustbench_med.cards import (
    NORMS,
    TASKS,
    AttackCard,
    Card,
    DefenseCard,
    ModelCard,
    Norm,
    Schedule,
    Task,
)
from robustbench_med.errors import SpecError
from robustbench_med.spec import literal

P = ParamSpec("P")
R = TypeVar("R")
Declared = Literal["attack", "defense", "model"]
_NOT_SETTINGS = ("rng", "attack", "fitting")  # arguments that the bench passes, never a spec
_ENTRY = re.compile(r"(\w+): (.*)", re.DOTALL)


class Declaration(NamedTuple):
    """The declaration of a function by a decorator.

    Attributes:
        kind: the kind of card.
        fields: the fields of the card, except those from the signature and docstring.
        cost: for an attack, a function from parameters to passes, see `attack`.
    """

    kind: Declared
    fields: dict[str, Any]
    cost: Callable[..., float] | None = None

    def card(self, function: Callable[..., Any]) -> Card:
        """Return the card of the declared function."""
        name, signature = function.__name__, inspect.signature(function).parameters
        defaults = {
            key: parameter.default
            for key, parameter in signature.items()
            if parameter.default is not parameter.empty
        }
        path_text = f"{function.__module__}:{name}"
        return _card(self.kind, name, path_text, self.fields, defaults, signature, function.__doc__)


def attack(
    *,
    title: str,
    norms: tuple[Norm, ...],
    schedule: Schedule,
    cost: Callable[..., float],
    summary: str = "",
    source: str = "",
    version: int = 1,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = TASKS,
    threat: Literal["white_box", "query", "label", "control", "shift"] = "white_box",
    positive: tuple[str, ...] = (),
    effort: tuple[str, ...] = (),
    fixed_step: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an attack. Every argument but `cost` is a literal: it is read without an import.

    The function is called as `function(problem, *, rng, **parameters)`; a parameter named in
    `positive` is checked at every call.

    Args:
        title: name on pages and in tables.
        norms: norms the attack is defined for.
        schedule: how a ladder of radii is filled, see `AttackCard`.
        cost: function that returns the largest number of forward and backward passes for one image
            at one radius; its arguments are parameters of the attack.
        summary: one sentence.
        source: paper, section, equation.
        version: number to raise when results change.
        aliases: other names in the literature; a case holds the registry name.
        tasks: tasks the attack can be run on.
        threat: access to the victim that the attack needs.
        positive: parameters that must be > 0.
        effort: parameters that add strength.
        fixed_step: whether the length of the steps does not depend on the radius.
    """
    fields = {key: value for key, value in locals().items() if key != "cost"}
    return _declaring(Declaration("attack", fields, cost))


def defense(
    *,
    title: str,
    kind: Literal["training", "transform", "detector", "smoothing"],
    summary: str = "",
    source: str = "",
    version: int = 1,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = TASKS,
    positive: tuple[str, ...] = (),
    training: Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a defense. Every argument is a literal: it is read without an import.

    Args:
        title: name on pages and in tables.
        kind: "training" retrains a victim, the others wrap it.
        summary: one sentence.
        source: paper, section, equation.
        version: number to raise when results change.
        aliases: other names in the literature; a case holds the registry name.
        tasks: tasks the defense can be used for.
        positive: parameters that must be > 0, which the function need not check itself.
        training: parameters of a training defense that the training loop uses instead of the
            function: `attack`, the name of the attack to train against, and `every` and `images`,
            how often and on how many images a universal attack is fitted.
    """
    return _declaring(Declaration("defense", dict(locals())))


def model(
    *,
    title: str,
    dataset: str,
    summary: str = "",
    source: str = "",
    family: str = "",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    window: tuple[int, ...] | None = None,
    overlap: float = 0.25,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a victim of one's own: a function without arguments that returns a torch module.

    Args:
        title: what a page or table calls it.
        dataset: registry name of the data it was trained on.
        summary: one sentence.
        source: paper, or where the weights come from.
        family: of architectures.
        mean: that the module expects its input to be normalised with, one number or one a channel.
        std: as `mean`.
        window: of masks: size of the windows that the network reads; None = whole images.
        overlap: of neighbouring windows, in [0, 1).
    """
    return _declaring(Declaration("model", dict(locals())))


def declaration_of(function: object) -> Declaration | None:
    """Return the declaration of a function; None if it has none."""
    return getattr(function, "declaration", None)


def own_card(kind: Literal["attack", "defense"], function: Callable[..., Any]) -> Card:
    """Return the card of a function in a file of the user's own, declared or plain.

    A plain attack is run in every norm and attacks every radius anew, which is right for any
    attack. A plain defense is one that retrains if it takes images and their truth, and else one
    that changes the images.

    Raises:
        SpecError: the function is declared as another kind, does not take what the bench passes to
            it, or has a parameter without a default.
    """
    declaration = declaration_of(function)
    signature = inspect.signature(function).parameters
    if declaration is None:
        title = function.__name__
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        fields: dict[str, Any] = {"title": title, "summary": summary}
        if kind == "attack":
            fields |= {"norms": NORMS, "schedule": "ascend"}
        else:
            fields["kind"] = "training" if {"x", "y"} <= set(signature) else "transform"
        declaration = Declaration(kind, fields)
    if declaration.kind != kind:
        raise SpecError(f"expected {_AN[kind]}, got a function declared with @{declaration.kind}")
    needed = ["problem", "rng"] if kind == "attack" else ["victim"]
    if kind == "defense" and declaration.fields["kind"] == "training":
        needed += ["x", "y", "loss"]
    missing = [name for name in needed if name not in signature]
    if missing:
        names = ", ".join(needed)
        raise SpecError(
            f"expected {_AN[kind]}, a function of {names}, got {function.__name__} without "
            f"{missing[0]}"
        )
    for name, parameter in signature.items():
        given = name in needed or name in _NOT_SETTINGS
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not given and named and parameter.default is parameter.empty:
            raise SpecError(f"expected a default of each parameter, got none of {name!r}")
    return declaration.card(function)


_AN = {"attack": "an attack", "defense": "a defense"}


def passes_of(function: object, parameters: Mapping[str, Any]) -> float:
    """Return the largest number of passes of a declared attack for one image at one radius."""
    declaration = declaration_of(function)
    if declaration is None or declaration.cost is None:
        return 1.0
    needed = inspect.signature(declaration.cost).parameters
    return float(declaration.cost(**{key: parameters[key] for key in needed}))


def read_cards(kind: Literal["attack", "defense"], folder: Path) -> dict[str, Any]:
    """Return the cards of all functions declared in a folder, by name, without importing them."""
    cards = [card for path in sorted(folder.rglob("*.py")) for card in _of_file(kind, folder, path)]
    return {card.name: card for card in cards}


def _declaring(declaration: Declaration) -> Callable[[Callable[P, R]], Callable[P, R]]:
    positive = declaration.fields.get("positive", ())

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for key in positive:
                if not kwargs.get(key, 1) > 0:  # type: ignore[operator]
                    raise SpecError(f"expected {key} > 0, got {kwargs[key]}")
            return function(*args, **kwargs)

        vars(checked)["declaration"] = declaration
        return checked

    return declare


def _of_file(kind: Declared, folder: Path, path: Path) -> Iterator[Card]:
    text = path.read_text(encoding="utf-8")
    if f"\n@{kind}(" not in text:
        return
    module = ".".join(path.relative_to(folder).with_suffix("").parts)
    for node in ast.parse(text).body:
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == kind:
                yield _of_source(kind, module, node, call)  # type: ignore[arg-type]


def _of_source(kind: Declared, module: str, node: ast.FunctionDef, call: ast.Call) -> Card:
    where = f"{module}.{node.name}"
    fields = {str(k.arg): literal(k.value, where) for k in call.keywords if k.arg != "cost"}
    names = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    defaults = {
        argument.arg: value
        for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if value is not None and argument.arg not in _NOT_SETTINGS
    }
    known = {key: literal(value, where) for key, value in defaults.items()}
    path_text, doc = f"{module}:{node.name}", ast.get_docstring(node)
    return _card(kind, node.name, path_text, fields, known, names, doc)


def _card(
    kind: Declared,
    name: str,
    path_text: str,
    fields: Mapping[str, Any],
    defaults: Mapping[str, Any],
    names: Any,  # noqa: ANN401 - whatever holds all names of the signature
    doc: str | None,
) -> Card:
    if kind == "model":
        return ModelCard.model_validate(
            {**fields, "family": fields["family"] or name, "name": name, "builder": path_text}
        )
    declared = {key: value for key, value in fields.items() if key != "training"}
    settings = {key: value for key, value in defaults.items() if key not in _NOT_SETTINGS}
    settings |= fields.get("training") or {}
    meanings = explained(doc)
    values = {
        **declared,
        "name": name,
        "function": path_text,
        "parameters": settings,
        "meanings": {key: meanings[key] for key in settings if key in meanings},
    }
    if kind == "attack":
        return AttackCard.model_validate(values)
    return DefenseCard.model_validate({**values, "fitted": "fitting" in names})


def explained(doc: str | None) -> dict[str, str]:
    """Return the text on each name in the `Args:` of a docstring, as one line.

    >>> explained(explained.__doc__)["doc"]
    'a docstring in Google style.'

    Args:
        doc: a docstring in Google style.
    """
    lines = inspect.cleandoc(doc or "").splitlines()
    if "Args:" not in lines:
        return {}
    block = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        block.append(line)
    entries = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(block)).strip())
    matches = [_ENTRY.fullmatch(entry.strip()) for entry in entries]
    return {match[1]: " ".join(match[2].split()) for match in matches if match}
