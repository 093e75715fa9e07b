"""What columns are called: the attack, the surrogate, and what tells two settings apart."""

from __future__ import annotations

from typing import Any, NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse

from ..wording.text import plain


class Asked(NamedTuple):
    """An attack as a case asks for it."""

    case: Case
    attack: AttackCard

    @classmethod
    def of(cls, stored: Stored) -> Asked:
        """Return what the case of a record asked for."""
        return cls(stored.record.case, stored.record.attack_card)

    @property
    def trains(self) -> bool:
        """Whether the attack, or what its radii are counted in, takes training images."""
        return self.attack.schedule == "universal" or self.case.budget == "mean_norm"


def heading(stored: Stored) -> str:
    """Return the attack of a record, with the model it was made on where that is not the victim.

    The model is called by the name that `--surrogate` takes.
    """
    return _heading(Asked.of(stored))


def _heading(asked: Asked) -> str:
    title, surrogate = plain(asked.attack.title), asked.case.surrogate
    knowledge = asked.case.knowledge
    if knowledge != "adaptive":
        return plain(f"{title}, {knowledge_words(knowledge)}")
    if surrogate is None:
        return title
    return f"{title} from {plain(surrogate)}"


def knowledge_words(knowledge: str) -> str:
    """Return what an attacker knows of a defense, in a heading.

    >>> knowledge_words("oblivious"), knowledge_words("lid(k=20)")
    ('oblivious', 'evading lid')
    """
    return knowledge if knowledge == "oblivious" else f"evading {knowledge.partition('(')[0]}"


def columns_of(group: list[Stored]) -> list[str]:
    """Return the column of each record: its heading, and what tells two settings apart."""
    return named([Asked.of(stored) for stored in group])


def named(group: list[Asked]) -> list[str]:
    """Return the column of each attack asked for, as `columns_of`."""
    settings = [_setting(asked) for asked in group]
    attacks = [(a.case.attack, a.case.surrogate, _rival(a.case)[0]) for a in group]
    heads = [_heading(asked) for asked in group]
    names = []
    for attack, head, own in zip(attacks, heads, settings, strict=True):
        peers = [p for p, a in zip(settings, attacks, strict=True) if a == attack]
        keys = [k for k in own if any(peer.get(k) != own[k] for peer in peers)]
        parts = [plain(f"{k}={own[k]}") for k in keys]
        if any(h == head and a != attack for a, h in zip(attacks, heads, strict=True)):
            parts.insert(0, plain(" ".join(filter(None, attack[:2]))))
        names.append(f"{head} ({', '.join(parts)})" if parts else head)
    return names


def _rival(case: Case) -> tuple[str, dict[str, Any]]:
    """Return what an attacker knows of the defense: one word, and its parameters."""
    if not case.evaded_detector:
        return case.knowledge, {}
    try:
        return parse(case.evaded_detector)
    except SpecError:
        return case.evaded_detector, {}


def _setting(asked: Asked) -> dict[str, Any]:
    case = asked.case
    name, evaded = _rival(case)
    own = {
        "guide": case.guide,
        "v": case.attack_version,
        "n_fit": case.n_fit,
        "weights": case.surrogate_sha256[:8],
        "train": case.train_sha256[:8] if asked.trains else "",
    }
    # a parameter of the attack may be called as one of ours: then both are kept
    stated = {f"attack {k}" if k in own else k: v for k, v in case.parameters.items()}
    return stated | {f"{name} {key}": value for key, value in evaded.items()} | own
