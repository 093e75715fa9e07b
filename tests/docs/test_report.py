"""The page on the report: its criteria can be judged, and no metric is left out."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from leaderboard.report.criteria import METRICS, Criterion, read_criteria
from robustbench_med import cli
from robustbench_med.cli.report_command import LEVELS
from tests.docs.pages import CHECKOUT

PAGE = (CHECKOUT / "docs" / "report.md").read_text()


def test_the_criteria_of_the_page_are_judged(tmp_path: Path) -> None:
    block, critical = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "criteria.toml"
    file.write_text(critical)
    assert [criterion.critical for criterion in read_criteria(file).criteria] == [True]
    file.write_text(block)
    assert len(read_criteria(file).criteria) == 2
    example = r"^python -m robustbench_med (report .*--criteria.*)$"
    (line,) = re.findall(example, PAGE, re.MULTILINE)
    line = line.replace("results/quick", str(CHECKOUT / "results" / "quick"))
    words = line.replace("criteria.toml", str(file)).split()
    assert words[-2:] == ["--fail-on", "not_met"]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert "fails on not_met: C2 of fundus_resnet" in done.output
    done = CliRunner().invoke(cli.app, [*words[:-2], "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if re.match(r"C\d", line)]
    assert [line.split(":")[0] for line in lines] == ["C1 met", "C2 not met"]
    assert "low end of its interval" in done.output
    assert (tmp_path / "report-fundus_resnet.html").stat().st_size > 10_000


def test_the_page_names_every_verdict_that_may_fail_and_every_exit_code() -> None:
    assert {f"`{level}`" for level in LEVELS} <= set(re.findall(r"`\w+`", PAGE))
    codes = re.findall(r"^\| (\d) \|", PAGE, re.MULTILINE)
    assert codes == ["0", "1", "2"]
    gate = (CHECKOUT / "docs" / "gate.md").read_text()
    assert f"--fail-on {','.join(LEVELS)}" in gate


def test_the_page_names_every_key_and_metric() -> None:
    named = set(re.findall(r"`(\w+)(?:\[\w+\])?`", PAGE))
    assert set(METRICS) <= named
    assert set(Criterion.model_fields) <= named
