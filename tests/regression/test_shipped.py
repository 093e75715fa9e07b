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
    "fundus_resnet fgsm": "ef2d489036a6f41e",
    "chest_resnet deepfool": "692f47af013cc6ce",
}
SLOW = {
    "chest_resnet pgd": "e6db2a1b553db7fb",
    "chest_vit deepfool": "24e9b10d219cb3e6",
    "chest_findings_resnet pgd": "f9893a489a421639",
    "fundus_densenet square": "479b42841233affa",
    "fundus_resnet uap_gradient": "4ca4dfd62c6491b5",
    "dermoscopy_inception mi_fgsm from dermoscopy_resnet": "7a96164980ec1afb",
    "brain_unet segpgd": "d91ffe0cdab1599c",
    "organs_unet apgd": "365ff9834135c42a",
    "volume_unet segpgd": "5fda3c150960c7ce",
}


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_holds_its_record(case: str, robustness: Robustness) -> None:
    robustness.holds(RECORDS / "quick" / case, fails="either")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["6943355eb7ed8a73", "24e9b10d219cb3e6", "365ff9834135c42a"])
def test_saved_images_still_break_what_they_broke(case: str) -> None:
    found = verify(store.read(RECORDS / "quick" / case), images=True)
    assert found.word in ("match", "within rounding")  # the second on a processor of another kind
    assert found.differing == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW)
def test_holds_its_record_too(case: str, robustness: Robustness) -> None:
    robustness.holds(RECORDS / "quick" / case, fails="either")
