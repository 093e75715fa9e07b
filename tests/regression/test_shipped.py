"""The shipped models and attacks held to their committed records.

A score that drops means a model that got weaker; one that rises, an attack that did. A change that
is meant comes with new records: `make results`, or one by one with --robustness-update.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med.bench import store
from robustbench_med.bench.verify.verify import verify
from robustbench_med.gate.fixture import Robustness

RECORDS = Path(__file__).parents[2] / "results"

QUICK = {
    "fundus_resnet fgsm": "ecfdedf7e71ab8d9",
    "chest_resnet deepfool": "777b754755782482",
}
SLOW = {
    "chest_resnet pgd": "986edf8cb089bbaf",
    "chest_vit deepfool": "cdb4daf56a23ff13",
    "chest_findings_resnet pgd": "bb039d5d718a72a6",
    "fundus_densenet square": "88d88ef42a95dc03",
    "fundus_resnet uap_gradient": "a2d430c938ab91a9",
    "dermoscopy_inception mi_fgsm from dermoscopy_resnet": "78f98e7c0df9a21c",
    "brain_unet segpgd": "816cd6e3a729e4ff",
    "organs_unet apgd": "e8c5b2f336cf0663",
    "volume_unet segpgd": "c7b426f6a429af18",
}


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_holds_its_record(case: str, robustness: Robustness) -> None:
    robustness.holds(RECORDS / "quick" / case, fails="either")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["3d11789023ae4c13", "9ad8dace13df91bb", "cdb4daf56a23ff13", "e8c5b2f336cf0663"]
)
def test_saved_images_still_break_what_they_broke(case: str) -> None:
    found = verify(store.read(RECORDS / "quick" / case), images=True)
    assert found.word in ("match", "within rounding")  # the second on a processor of another kind
    assert found.differing == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW)
def test_holds_its_record_too(case: str, robustness: Robustness) -> None:
    robustness.holds(RECORDS / "quick" / case, fails="either")
