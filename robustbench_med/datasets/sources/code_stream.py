"""The sides that a JPEG, JPEG-LS or JPEG 2000 code stream states, read before it is decoded.

A decoder allocates what the stream states, whatever the header of the file around it says.
Markers: ISO/IEC 10918-1 table B.1, 14495-1 annex C, 15444-1 annexes A.5.1 and I.4.
"""

from __future__ import annotations

import struct

_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_SIGNATURE = b"\0\0\0\x0cjP  "


def shape_of(stream: bytes) -> tuple[int, int, int] | None:
    r"""Return rows, columns and components of a code stream; None if it states none.

    >>> shape_of(b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x02\x00\x03\x01")
    (2, 3, 1)
    """
    try:
        if stream.startswith(b"\xff\xd8"):
            return _jpeg(stream)
        return _jpeg2000(_unboxed(stream) if stream.startswith(_SIGNATURE) else stream)
    except (struct.error, IndexError):
        return None


def _jpeg(stream: bytes) -> tuple[int, int, int] | None:
    place = 2
    while stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # a byte that fills
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in _FRAMES:
            rows, columns, components = struct.unpack_from(">HHB", stream, place + 5)
            return rows, columns, components
        else:
            place += 2 + max(2, struct.unpack_from(">H", stream, place + 2)[0])
    return None


def _jpeg2000(stream: bytes) -> tuple[int, int, int] | None:
    if not stream.startswith(b"\xff\x4f\xff\x51"):
        return None
    right, below, left, above = struct.unpack_from(">4I", stream, 8)
    (components,) = struct.unpack_from(">H", stream, 40)
    return below - above, right - left, components


def _unboxed(stream: bytes) -> bytes:
    """Return the code stream in the boxes of a JP2 file."""
    place = 0
    while place < len(stream):
        length, kind = struct.unpack_from(">I4s", stream, place)
        if kind == b"jp2c":
            return stream[place + 8 :]
        if length < 8:
            break
        place += length
    return b""
