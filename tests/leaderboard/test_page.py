"""The page: self-contained, escaped, under a strict policy, and it works in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboard
from leaderboard.gallery import SHOWN, gallery
from leaderboard.page import TEMPLATES
from robustbench_med.bench import store
from robustbench_med.bench.record import Check, Flag, LadderAudit, Stored, UniversalResult

from .browser import Tags
from .field import spread

Maker = Callable[..., Stored]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def published(records: list[Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "quick"
    return leaderboard.publish(records, folder, title="Robustness bench")


@pytest.fixture(scope="module", params=["plain", "every threat", "masks", "shields"])
def page(
    request: pytest.FixtureRequest, published: Path, suite: Path, mask_suite: Path, shields: Path
) -> str:
    pages = {"plain": published, "every threat": suite, "masks": mask_suite, "shields": shields}
    return pages[request.param].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain_page(published: Path) -> str:
    return published.read_text(encoding="utf-8")


def test_publish_writes_three_files_and_nothing_else(
    published: Path, records: list[Stored]
) -> None:
    names = sorted(path.name for path in published.parent.iterdir())
    assert names == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]
    before = published.read_bytes()
    assert leaderboard.publish(records, published.parent, title="Robustness bench") == published
    assert published.read_bytes() == before
    assert len(before) < 5_000_000


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert "http://" not in page
    assert "url(http" not in page
    assert "@import" not in page
    for tag, attributes in Tags(page).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or tag != "img"
        assert "src" not in attributes or tag == "img"
        href = attributes.get("href", "#")
        assert href.startswith("#") or (tag == "a" and href.startswith("https://"))


def test_the_policy_allows_our_script_and_style_by_hash_only(page: str) -> None:
    tags = Tags(page).tags
    (policy,) = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    inline = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, flags=re.DOTALL)
    assert len(inline) == 3
    for text in inline:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for _, attributes in tags:
        assert "style" not in attributes  # the policy would block it
        assert not any(key.startswith("on") for key in attributes)


def test_hostile_names_stay_text(make_stored: Maker, tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)>' + HOSTILE
    stored = make_stored(
        [6, 1, 1],
        victim=("m", evil, evil),
        pictures=1,
        case={"parameters": {"steps": evil}, "defense": evil},
        record={"notes": (evil,), "threshold": ()},
    )
    record = stored.record.model_copy(
        update={
            "provenance": stored.record.provenance.model_copy(update={"command": evil}),
            "dataset_card": stored.record.dataset_card.model_copy(
                update={"title": evil, "url": "javascript:alert(1)", "classes": (evil, "b")}
            ),
            "attack_card": stored.record.attack_card.model_copy(update={"title": evil}),
        }
    )
    path = leaderboard.publish([stored._replace(record=record)], tmp_path / evil[:4], title=evil)
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "javascript:" not in page
    assert page.count("<script>") == 2
    assert {a.get("src", "")[:5] for t, a in Tags(page).tags if t == "img"} == {"data:"}


def test_hostile_surrogates_and_flags_stay_text(make_stored: Maker, tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)>' + HOSTILE
    flag = Flag(name=evil, meaning=evil, value=1, threshold=0)
    check = Check(name=evil, value=1, threshold=0)
    hostile = {"flags": (flag,), "checks": (check,)}
    records = [
        make_stored([6, 1], surrogate=(evil, evil, evil), record=hostile),
        make_stored([6, 1], victim=(evil, evil, evil), record={"universal": _spread(evil)}),
    ]
    page = leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
    assert 'class="matrix"' in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 2


def _spread(file: str) -> UniversalResult:
    return spread().model_copy(update={"file": file})


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    tags = Tags(page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for key in ("href", "aria-controls", "aria-labelledby"):
            target = attributes.get(key, "")
            if target and not target.startswith("https:"):
                assert target.removeprefix("#") in ids
        if clip := re.match(r"url\(#(.+)\)", attributes.get("clip-path", "")):
            assert clip[1] in ids


def test_no_records_still_make_a_page(tmp_path: Path) -> None:
    path = leaderboard.publish([], tmp_path, title="")
    assert "No records yet" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("audit", "words"),
    [
        (
            LadderAudit(inferred=9, checked=3, success=0, reran=False, miss_bound=0.63),
            "without a success: at most 63.0 % of the inferred pairs would",
        ),
        (
            LadderAudit(inferred=9, checked=3, success=2, reran=True, miss_bound=0),
            "the attack succeeded on 2 of them, so all were",
        ),
    ],
)
def test_audits_are_told_in_words(
    make_stored: Maker, tmp_path: Path, audit: LadderAudit, words: str
) -> None:
    stored = make_stored([6, 1], over_budget=2, record={"ladder_audit": audit, "cost": None})
    page = leaderboard.publish([stored], tmp_path, title="t").read_text(encoding="utf-8")
    assert words in page
    assert "2 images exceed their radius" in page


def test_gallery_keeps_to_its_budget_and_its_folder(make_stored: Maker) -> None:
    stored = make_stored([6] * 6, pictures=8)
    board = leaderboard.make_boards([stored])[0]
    every = gallery(board, budget=10**7)
    assert len(every) == SHOWN
    assert len({picture.example.sample for picture in every}) == SHOWN
    half = gallery(board, budget=sum(picture.size for picture in every[:3]))
    assert 1 <= len(half) <= 3
    folder = Path(stored.folder)
    shutil.copy(folder / "0_clean.png", folder.parent / "outside.png")
    (folder / "text.png").write_text("no picture")
    for clean in ("../outside.png", "missing.png", "text.png", "", "/etc/passwd"):
        example = stored.record.examples[0].model_copy(update={"clean": clean})
        record = stored.record.model_copy(update={"examples": (example,)})
        assert (
            gallery(leaderboard.make_boards([stored._replace(record=record)])[0], budget=10**7)
            == []
        )


@pytest.mark.skipif(not shutil.which("node"), reason="needs node to check the script's syntax")
def test_the_script_is_valid() -> None:
    subprocess.run(["node", "--check", str(TEMPLATES / "script.js")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quick", "attacks", "medmnist", "segmentation"])
def test_the_committed_records_make_a_page_of_at_most_5_mb(suite: str, tmp_path: Path) -> None:
    records, broken = store.read_all(Path(__file__).parents[2] / "results" / suite)
    assert records
    assert not broken
    path = leaderboard.publish(records, tmp_path / suite, title=suite)
    assert path.stat().st_size <= 5_000_000
    text = path.read_text(encoding="utf-8")
    synthetic = {
        one.record.dataset_card.title for one in records if one.record.dataset_card.synthetic
    }
    for title in synthetic:
        assert f"<h2>{title} (synthetic phantom)</h2>" in text
