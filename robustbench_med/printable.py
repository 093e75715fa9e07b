"""Foreign texts made fit for a terminal, a page or a file."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    r"""Return `text` on one line without control characters, which could drive a terminal.

    >>> plain("a\x1b[2Jb\nc")
    'a[2Jb c'
    """
    return "".join(c for c in re.sub(r"\s+", " ", text) if c.isprintable()).strip()


def short_spec(victim: str, most: int = 48) -> str:
    """Return the text of a victim without folders; without its parameters too if it is long.

    >>> short_spec("nnunet:/home/me/runs/Trainer__3d(axes='LPS', unpickle=True)")
    "nnunet:Trainer__3d(axes='LPS', unpickle=True)"
    >>> short_spec("/a/b/net.onnx(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2], window=[64, 64])")
    'net.onnx(…)'
    >>> short_spec("http://localhost:8000/v2/models/chest"), short_spec("chest_resnet")
    ('http://localhost:8000/v2/models/chest', 'chest_resnet')
    """
    if victim.startswith(("http://", "https://")):
        return victim
    short = re.sub(r"[^\s()'\"=,:]*/(?=[^/])", "", victim)
    return short if len(short) <= most or "(" not in short else f"{short.partition('(')[0]}(…)"
