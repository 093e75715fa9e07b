"""What columns are called: the attack, the surrogate, and what tells two settings apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_med.bench.record import Stored

from .text import plain


def titles_of(records: list[Stored]) -> dict[str, str]:
    """Return the title of every victim in `records` by its registry name: surrogates are victims.

    A title that two of them carry is no use for telling surrogates apart, and is left out.
    """
    found = {s.record.case.victim: plain(s.record.model_card.title) for s in records}
    common = list(found.values())
    return {name: title for name, title in found.items() if common.count(title) == 1}


def heading(stored: Stored, titles: Mapping[str, str]) -> str:
    """Return the attack of a record, with the model it was made on where that is not the victim.

    Args:
        stored: the record.
        titles: registry name -> title, of models known by name.
    """
    title, surrogate = plain(stored.record.attack_card.title), stored.record.case.surrogate
    knowledge = stored.record.case.knowledge
    if knowledge != "adaptive":
        return plain(f"{title}, {knowledge_words(knowledge)}")
    if surrogate is None:
        return title
    return f"{title} from {plain(titles.get(surrogate, surrogate))}"


def knowledge_words(knowledge: str) -> str:
    """Return what an attacker knows of a defense, in a heading.

    >>> knowledge_words("oblivious"), knowledge_words("lid(k=20)")
    ('oblivious', 'evading lid')
    """
    return knowledge if knowledge == "oblivious" else f"evading {knowledge.partition('(')[0]}"


def columns_of(group: list[Stored], titles: Mapping[str, str]) -> list[str]:
    """Return the column of each record: its heading, and what tells two settings apart."""
    settings = [_setting(stored) for stored in group]
    attacks = [
        (s.record.case.attack, s.record.case.surrogate, s.record.case.knowledge) for s in group
    ]
    heads = [heading(stored, titles) for stored in group]
    names = []
    for attack, head, own in zip(attacks, heads, settings, strict=True):
        peers = [p for p, a in zip(settings, attacks, strict=True) if a == attack]
        keys = [k for k in own if any(peer.get(k) != own[k] for peer in peers)]
        parts = [plain(f"{k}={own[k]}") for k in keys]
        if any(h == head and a != attack for a, h in zip(attacks, heads, strict=True)):
            parts.insert(0, plain(" ".join(filter(None, attack[:2]))))
        names.append(f"{head} ({', '.join(parts)})" if parts else head)
    return names


def _setting(stored: Stored) -> dict[str, Any]:
    case = stored.record.case
    return {
        **case.parameters,
        "guide": case.guide,
        "seed": case.seed,
        "v": case.attack_version,
        "fit": case.fit,
        "weights": case.surrogate_sha256[:8],
    }
