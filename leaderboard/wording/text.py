"""Format numbers and names as readable text: percent, intervals, radii, safe text."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from robustbench_med.printable import plain as plain
from robustbench_med.stats import Estimate

DASH = "–"
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0", "severity": "severity"}
THREATS = {
    "white_box": "white box",
    "universal": "one perturbation for all images",
    "transfer": "transfer from another model",
    "no_box": "no box: a model trained on other data",
    "query": "black box by queries",
    "label": "black box by labels alone",
    "control": "control: no attack",
    "shift": "acquisition shift, nobody attacks",
}
# threat model -> sentence above the board on the attacker's access
KNOWS = {
    "white_box": "The attacker knows the whole model, its gradients included.",
    "universal": "The attacker knows the whole model, but must find one perturbation for all "
    "images, fitted on training images and applied to others.",
    "transfer": "The attacker owns another model trained on the same data and never queries the "
    "victim: images crafted on that model are shown to the victim.",
    "no_box": "The attacker owns a model trained on other data, and has neither the victim nor "
    "its data.",
    "query": "The attacker sees only the model's outputs, and queries them many times.",
    "label": "The attacker sees only what the model decides (the class, the findings or the mask) "
    "and no score, and asks many times.",
    "control": "A control is no attack: noise and shuffled perturbations show the effect of a "
    "change of this size without any goal, so no model is ranked here. If a control succeeds on "
    "images that an attack missed, the row of that attack is flagged.",
    "shift": "Nobody attacks here. An ordinary scanner, operator or archive changes the image in a "
    "way that has a name. A random draw shows what happens by chance; the worst of several draws, "
    "or a climb from there, shows how bad it can get.",
}
FAILURES_MEAN = (
    "The worst case of a model covers only the attacks that were scored: if one is missing, "
    "it may be too high."
)
BLIND = (
    "An oblivious attacker does not know the defense and attacks the model without it: the result "
    "is shown, but never ranks."
)
# kind of a value -> its factor and number of decimals
SCALE = {
    "percent": (100.0, 1),
    "unit": (1.0, 3),
    "fine": (1.0, 2),
    "plain": (1.0, 1),
    "grey": (255.0, 2),
    "count": (1.0, 0),
}

UNITS = {"percent": "%", "grey": "/255", "count": ""}  # kind of a value -> sign beside a number


def number(value: float, kind: str = "percent") -> str:
    """Return `value` written as `kind` (a key of SCALE); a dash if it is undefined.

    >>> number(0.8725), number(float("nan")), number(0.5, "unit")
    ('87.2', '–', '0.500')
    """
    factor, digits = SCALE[kind]
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return DASH if math.isnan(value) else f"{value * factor:.{digits}f}"


def measured(value: float, kind: str, short: str = "") -> str:
    r"""Return `value` with its unit: `short`, the name of the score, or a percent sign.

    >>> measured(0.875, "percent"), measured(0.5, "unit", "Dice"), measured(float("nan"), "unit")
    ('87.5\xa0%', '0.500\xa0Dice', '–')
    """
    unit = sign(kind, short) if math.isfinite(value) else ""
    return f"{number(value, kind)}\N{NO-BREAK SPACE}{unit}" if unit else number(value, kind)


def sign(kind: str, short: str = "") -> str:
    """Return the sign after a number of a kind: "%", or `short`, the name of the score."""
    unit = UNITS.get(kind, short)
    return f"({unit})" if unit[:1].isdigit() else unit


def interval(estimate: Estimate, kind: str = "percent") -> str:
    """Return the 95 % interval as `low–high`; empty if it is undefined.

    >>> interval(Estimate(value=0.5, low=0.25, high=0.75))
    '25.0–75.0'
    """
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{number(estimate.low, kind)}–{number(estimate.high, kind)}"


def short(estimate: Estimate, kind: str = "percent") -> str:
    """Return value and interval for a terminal or Markdown table.

    >>> half = Estimate(value=0.5, low=0.251, high=0.749)
    >>> short(half), short(half, "unit")
    ('50.0 [25–75]', '0.500 [0.25–0.75]')
    """
    if not math.isfinite(estimate.value):
        return DASH
    factor, digits = SCALE[kind]
    bounds = (bound for bound in (estimate.low, estimate.high) if math.isfinite(bound))
    inside = "–".join(f"{factor * bound:.{max(digits - 1, 0)}f}" for bound in bounds)
    value = number(estimate.value, kind)
    return f"{value} [{inside}]" if inside else value


def radius(eps: float, norm: str, budget: str = "absolute") -> str:
    """Return a radius in its usual form: L∞ in parts of 255, a ratio in percent.

    >>> radius(2 / 255, "linf"), radius(0.5, "l2"), radius(0.02, "l2", "mean_norm")
    ('2/255', '0.5', '2 %')
    """
    if budget == "mean_norm":
        return f"{100 * eps:.3g} %"
    if norm == "l0":
        return f"{eps:,.0f}"
    return f"{eps * 255:.3g}/255" if norm == "linf" else f"{eps:.3g}"


def sign_of(norm: str) -> str:
    """Return the word before a radius, "ε =", or before a severity.

    >>> sign_of("linf"), sign_of("severity")
    ('ε =', 'severity')
    """
    return "severity" if norm == "severity" else "ε ="


def listed(ladder: tuple[float, ...], norm: str, budget: str = "absolute") -> str:
    """Return all radii or severities of a ladder with the word before them.

    >>> listed((1 / 255, 2 / 255), "linf"), listed((0.5, 1.0), "severity")
    ('ε ∈ {1, 2}/255', 'severities 0.5, 1')
    """
    each = radii(ladder, norm, budget)
    return f"severities {each.strip('{}')}" if norm == "severity" else f"ε ∈ {each}"


def unit(norm: str, budget: str = "absolute") -> str:
    """Return the unit of a board's radii; empty for plain image units."""
    if budget == "mean_norm":
        return "% of the mean norm"
    return {"linf": "/255", "l0": "values"}.get(norm, "")


def radii(ladder: tuple[float, ...], norm: str, budget: str = "absolute") -> str:
    """Return all radii of a ladder as text.

    >>> radii((1 / 255, 2 / 255), "linf"), radii((0.02, 0.04), "l2", "mean_norm")
    ('{1, 2}/255', '{2, 4} %')
    """
    each = [radius(eps, norm, budget) for eps in ladder]
    tail = next((t for t in ("/255", " %") if each and each[0].endswith(t)), "")
    return "{" + ", ".join(text.removesuffix(tail) for text in each) + "}" + tail


def https(url: str) -> str:
    """Return `url` if it is a plain https address with a host, else an empty string.

    >>> https("https://medmnist.com/"), https("javascript:alert(1)")
    ('https://medmnist.com/', '')
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    safe = parts.scheme == "https" and parts.hostname and "@" not in parts.netloc
    return url if safe and url.isprintable() and " " not in url else ""
