"""The shipped studies: their numbers stand in the source, their names and rows exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustbench_med import objectives, registry
from robustbench_med.bench.attack_spec import (
    resolve_attack,
    resolve_channels,
    validate_parameters,
)
from robustbench_med.bench.defense_spec import resolve_defenses
from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.spec import number, parse
from robustbench_med.studies.protocols import PROTOCOLS
from robustbench_med.studies.readings import READINGS
from robustbench_med.studies.study import Study, find_studies, read_study, studies

FACTS = Path(__file__).parents[2].parent / "shared" / "studies.md"
ALL = pytest.mark.parametrize("study", studies().values(), ids=studies())


def _digits(value: float) -> set[str]:
    """Return the ways in which a paper writes a share: .94, 0.94, 94, 94.0."""
    texts = {f"{value:.{d}f}" for d in range(7)} | {f"{100 * value:.{d}f}" for d in range(3)}
    texts |= {text.removeprefix("0") for text in texts if text != "0"}
    return {t for t in texts if abs(float(t) - value) < 1e-9 or abs(float(t) - 100 * value) < 1e-9}


@ALL
def test_every_number_stands_in_the_facts_as_it_is_quoted(study: Study) -> None:
    if not FACTS.is_file():
        pytest.skip(f"no {FACTS}")
    facts = " ".join(FACTS.read_text(encoding="utf-8").replace("**", "").split())
    for reference in study.references:
        if reference.value is None:
            continue
        assert reference.quote, reference.id
        assert reference.quote in facts, reference.id
        numbers = set(re.findall(r"\d*\.?\d+", reference.quote))
        # "failed all 10" and "caught all 10" are shares of 1 and 0, whose digits are not printed
        counts_all = reference.value in (0, 1) and re.search(r"\ball \d+", reference.quote)
        assert counts_all or numbers & _digits(reference.value), (reference.id, reference.quote)


@ALL
def test_a_row_names_what_exists_and_its_grids_make_its_case(study: Study) -> None:
    for row in study.rows:
        assert row.published or row.corrected or row.compares
        if row.published:
            assert parse(row.published.protocol).name in PROTOCOLS
            assert parse(row.published.reading).name in READINGS
            registry.find("datasets", row.published.dataset)
            registry.find("models", row.published.victim)
        if row.corrected:
            wanted = row.corrected
            assert any(
                wanted.dataset in grid.datasets
                and wanted.victim in grid.victims
                and (wanted.surrogate in grid.surrogates if wanted.surrogate else True)
                and wanted.objective == grid.objective
                and (" + ".join(wanted.channels) or "all") in grid.channels
                and any(abs(number(eps) - wanted.eps) < 1e-9 for eps in grid.ladder)
                and set(wanted.attacks) <= {parse(attack).name for attack in grid.attacks}
                for grid in study.grids
            ), row.id


@ALL
def test_its_grids_can_be_planned(study: Study) -> None:
    """One grid that cannot be would end the run of all studies."""
    for grid in study.grids:
        attacks = [resolve_attack(text, grid) for text in grid.attacks]
        for name in grid.datasets:
            card: DatasetCard = registry.find("datasets", name)
            resolve_defenses(grid, card)
            objective = objectives.make(grid.objective, card.task, card=card)
            for attack in attacks:
                validate_parameters(attack, card, objective, grid.norm)
            for text in grid.channels:
                resolve_channels(text, card, grid.norm)


def test_a_number_without_a_source_is_refused(tmp_path: Path) -> None:
    text = (Path(registry.CORE) / "studies" / "finlayson_2018.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('certainty = "read"', 'certainty = "unverifiable"'), "utf-8")
    with pytest.raises(SpecError, match="unverifiable"):
        read_study(path)
    path.write_text(text.replace('after = "pgd_white_accuracy"', 'after = "bogus"'), "utf-8")
    with pytest.raises(SpecError, match="bogus"):
        read_study(path)


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(UnknownNameError, match="finlayson_2018"):
        find_studies(("finlayson_2019",))
