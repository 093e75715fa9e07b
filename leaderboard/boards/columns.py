"""Columns: the names of a board's attacks, with the parameters that distinguish two settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse

from ..wording.text import plain


class AttackRequest(NamedTuple):
    """An attack with its setting in a case."""

    case: Case
    attack: AttackCard

    @classmethod
    def of(cls, stored: Stored) -> AttackRequest:
        """Return the attack of a record's case."""
        return cls(stored.record.case, stored.record.attack_card)

    @property
    def trains(self) -> bool:
        """Whether the attack, or the unit of its radii, depends on training images."""
        return self.attack.schedule == "universal" or self.case.budget == "mean_norm"


def heading(stored: Stored) -> str:
    """Return the title of a record's attack, with the surrogate if it was crafted on one.

    The surrogate has the name that `--surrogate` takes.
    """
    return _heading(AttackRequest.of(stored))


def _heading(request: AttackRequest) -> str:
    title, surrogate = plain(request.attack.title), request.case.surrogate
    knowledge = request.case.knowledge
    if request.case.threat == "shift":
        return f"{title}, {_search_words(request.case.parameters)}"
    if knowledge != "adaptive":
        return plain(f"{title}, {knowledge_words(knowledge)}")
    if surrogate is None:
        return title
    return f"{title} from {plain(surrogate)}"


# search of a shift -> parameters that the heading says, or that it does not use
_UNUSED = {
    "random": ("search", "draws", "steps"),
    "worst_of": ("search", "draws", "steps"),
    "climbed": ("search",),
    "local": ("search",),
}


def _search_words(parameters: Mapping[str, Any]) -> str:
    """Return how the parameters of a shift were found, for a heading."""
    search = str(parameters.get("search", ""))
    draws = parameters.get("draws", 1)
    words = {"random": "random draw", "worst_of": f"worst of {draws}", "local": "local search"}
    return plain(words.get(search, search))


def knowledge_words(knowledge: str) -> str:
    """Return what an attacker knows about a defense, for a heading.

    >>> knowledge_words("oblivious"), knowledge_words("lid(k=20)")
    ('oblivious', 'evading lid')
    """
    return knowledge if knowledge == "oblivious" else f"evading {knowledge.partition('(')[0]}"


def attack_columns(group: list[Stored]) -> list[str]:
    """Return the column name of each record: its heading, and how its setting differs."""
    return column_names([AttackRequest.of(stored) for stored in group])


def column_names(requests: list[AttackRequest]) -> list[str]:
    """Return the column name of each requested attack, as `attack_columns` does."""
    settings = [_setting(request) for request in requests]
    attacks = [(r.case.attack, r.case.surrogate, _evaded(r.case)[0]) for r in requests]
    heads = [_heading(request) for request in requests]
    names = []
    for attack, head, setting in zip(attacks, heads, settings, strict=True):
        peers = [p for p, a in zip(settings, attacks, strict=True) if a == attack]
        keys = [k for k in setting if any(peer.get(k) != setting[k] for peer in peers)]
        words = [plain(f"{k}={setting[k]}") for k in keys]
        if any(h == head and a != attack for a, h in zip(attacks, heads, strict=True)):
            words.insert(0, plain(" ".join(filter(None, attack[:2]))))
        names.append(f"{head} ({', '.join(words)})" if words else head)
    return names


def _evaded(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the detector that an attacker evades, or the knowledge; with its parameters."""
    if not case.evaded_detector:
        return case.knowledge, {}
    try:
        return parse(case.evaded_detector)
    except SpecError:
        return case.evaded_detector, {}


def _setting(request: AttackRequest) -> dict[str, Any]:
    case = request.case
    name, evaded = _evaded(case)
    fields = {
        "guide": case.guide,
        "v": case.attack_version,
        "code": case.attack_sha256[:8],
        "n_fit": case.n_fit,
        "weights": case.surrogate_sha256[:8],
        "train": case.train_sha256[:8] if request.trains else "",
    }
    shown = _UNUSED.get(str(case.parameters.get("search")), ()) if case.threat == "shift" else ()
    # if a parameter of the attack has the name of a field, both are listed
    stated = {
        f"attack {k}" if k in fields else k: v for k, v in case.parameters.items() if k not in shown
    }
    return stated | {f"{name} {key}": value for key, value in evaded.items()} | fields
