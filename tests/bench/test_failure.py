"""Failures: labels that name what differs, and what a results folder remembers of earlier runs."""

from __future__ import annotations

from pathlib import Path

from robustbench_med.bench.case import Case
from robustbench_med.bench.failure import Failure, recall, remember, unique_labels

CASE = Case(
    dataset="d",
    data_sha256="0",
    victim="v",
    victim_sha256="1",
    attack="pgd",
    attack_version=1,
    parameters={"steps": 10, "restarts": 1},
    norm="linf",
    ladder=(0.01, 0.02),
)


def case(**fields: object) -> Case:
    return CASE.model_copy(update=fields)


def labels(*cases: Case) -> list[str]:
    known = unique_labels(cases)
    return [known[one.id] for one in cases]


def test_a_label_names_nothing_where_it_is_unique() -> None:
    assert labels(CASE, case(attack="fgsm")) == ["d · v · pgd", "d · v · fgsm"]
    assert labels(CASE, CASE) == ["d · v · pgd"] * 2


def test_a_label_names_what_differs_among_the_cases_that_share_it() -> None:
    other = case(norm="l2", ladder=(0.5,))
    assert labels(CASE, other) == [
        "d · v · pgd (linf, eps 0.01, 0.02)",
        "d · v · pgd (l2, eps 0.5)",
    ]
    drawn = case(objective="targeted(target=1)", parameters={"steps": 20, "restarts": 1})
    assert labels(CASE, drawn) == [
        "d · v · pgd (untargeted, steps=10)",
        "d · v · pgd (targeted(target=1), steps=20)",
    ]
    assert labels(CASE, case(draws=16), case(draws=16, channels={"T1": 0.5})) == [
        "d · v · pgd (channels all, draws 1)",
        "d · v · pgd (channels all, draws 16)",
        "d · v · pgd (channels T1=0.5, draws 16)",
    ]


def test_cases_that_differ_in_their_weights_alone_are_named_by_their_ids() -> None:
    again = case(victim_sha256="2")
    assert labels(CASE, again) == [f"d · v · pgd (case {one.id})" for one in (CASE, again)]


def failed(one: Case, reason: str = "no memory") -> Failure:
    return Failure(label=one.label, reason=reason, case=one)


def test_a_run_forgets_what_it_ran_and_nothing_else(tmp_path: Path) -> None:
    longer = case(parameters={"steps": 40, "restarts": 1})
    both = [failed(CASE, "first"), failed(longer, "second")]
    remember(tmp_path, [CASE, longer], both, finished=[])
    assert [f.reason for f in recall(tmp_path)] == ["first", "second"]
    kept = remember(tmp_path, [longer], [], finished=[longer.id])
    assert [f.reason for f in kept] == ["first"]
    # the same choices with other weights, or of another version, stand for the same case
    later = case(victim_sha256="9", attack_version=2, parameters={"steps": 10, "momentum": 0.5})
    assert remember(tmp_path, [later], [failed(later, "third")], finished=[])[0].reason == "third"
    assert len(recall(tmp_path)) == 1
    assert remember(tmp_path, [later], [], finished=[later.id]) == []
    assert not list(tmp_path.iterdir())


def test_failures_of_two_runs_that_share_a_label_are_told_apart(tmp_path: Path) -> None:
    remember(tmp_path, [CASE], [failed(CASE)], finished=[])
    other = case(norm="l2")
    kept = remember(tmp_path, [other], [failed(other)], finished=[])
    assert [f.label for f in kept] == ["d · v · pgd (linf)", "d · v · pgd (l2)"]
