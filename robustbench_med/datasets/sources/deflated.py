"""Deflated DICOM files: how much they unpack to, found out before a library unpacks them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from robustbench_med.datasets.sources.refs import UnreadableError

MOST = 2**27  # bytes that are unpacked; a CT of 250 slices in one file
SYNTAX = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian
_LENGTH = 132  # where the group of the file's meta information begins: its length comes first
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_CHUNK = 2**20


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the dataset of a deflated file unpacks to; nothing of it is kept.

    Source: PS3.5 annex A.5: a raw stream of deflate (RFC 1951) after the meta information, whose
    length PS3.10 section 7.1 states.

    Raises:
        UnreadableError: they are more than `MOST`, or the stream is cut or damaged.
    """
    with path.open("rb") as file:
        file.seek(_LENGTH)
        head = file.read(len(_GROUP_LENGTH) + 4)
        if len(head) < len(_GROUP_LENGTH) + 4 or not head.startswith(_GROUP_LENGTH):
            raise UnreadableError("it is cut or damaged")
        file.seek(struct.unpack("<I", head[-4:])[0], 1)
        stream, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not stream.eof:
            packed = stream.unconsumed_tail or file.read(_CHUNK)
            made = len(stream.decompress(packed, _CHUNK))
            if not packed and not made:
                raise UnreadableError("it is cut or damaged")
            count += made
            if count > MOST:
                raise UnreadableError(
                    f"it is deflated and unpacks to more than {MOST // 2**20} MiB: save it as "
                    "Explicit VR Little Endian"
                )
    return count
