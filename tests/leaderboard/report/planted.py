"""A planted pair of attacks whose worst case is known in closed form."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

from leaderboard.report import Written, write_report
from robustbench_med.bench.record import Stored

Maker = Callable[..., Stored]
N = 20  # images, of 7 patients; even ones are healthy, odd ones diseased
LAST = 6  # falls at no rung
VICTIM = "resnet_narrow"
TABLE = """
[[criteria]]
metric = "accuracy"
at_least = 0.1
eps = "2/255"
reason = "<script>alert(1)</script>"
[[criteria]]
name = "4.2"
metric = "sensitivity"
at_least = 0.99
eps = "2/255"
[[criteria]]
metric = "auc"
attack = "gone"
at_least = 0.5
eps = "2/255"
"""


def falls(**rungs: int) -> list[int]:
    """Return the rung each image falls at: `falls(i3=1)` is all but image 3, which falls first."""
    breaks = [LAST] * N
    for image, rung in rungs.items():
        breaks[int(image[1:])] = rung
    return breaks


# one diseased image each at rung 1, and the same diseased one at rung 2; image 0 is never right
FIRST = falls(i0=0, i1=1, i5=2, i2=3)
SECOND = falls(i0=0, i3=1, i5=2, i4=3)
# what stands of the ten diseased under both: 8 at rung 1, 7 from rung 2 on; of the healthy 9, then
# 7 from rung 3 on
SENSITIVITY = (10, 8, 7, 7, 7, 7)
SPECIFICITY = (9, 9, 9, 7, 7, 7)
ACCURACY = tuple(a + b for a, b in zip(SENSITIVITY, SPECIFICITY, strict=True))


def pair(make: Maker, **changes: Any) -> list[Stored]:  # noqa: ANN401 - of make_stored
    """Return the two records of one victim."""
    return [make(FIRST, attack="bim", **changes), make(SECOND, attack="pgd", **changes)]


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return Wilson's interval by its own formula."""
    z = 1.959963984540054
    middle, half = k + z * z / 2, z * (k * (n - k) / n + z * z / 4) ** 0.5
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)


def written_report(
    records: list[Stored],
    out: Path,
    victim: str = VICTIM,
    **changes: Any,  # noqa: ANN401
) -> Written:
    """Write the report of a victim."""
    return write_report(
        records, victim=victim, base=Path(records[0].folder).parent, out=out, **changes
    )


def page(written: Written) -> str:
    """Return the HTML."""
    return written.html.read_text(encoding="utf-8")


def rows(html: str, table: str) -> list[list[str]]:
    """Return the cells of a table of the report, each the text of its parts."""
    inside = html[html.index(f'id="{table}"') :]
    inside = inside[inside.index("<tbody>") : inside.index("</tbody>")]
    samples = []
    for row in re.findall(r"<tr.*?</tr>", inside, flags=re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        samples.append([unescape(re.sub(r"<[^>]+>", " ", cell)).strip() for cell in cells])
    return samples
