"""Checksums of data files, which are compared with the card before a file is used."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.file_state import remembered
from robustbench_med.errors import ChecksumError

CHUNK = 2**20


class Digests:
    """The MD5 and SHA-256 of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def update(self, piece: bytes) -> None:
        """Add bytes."""
        self._md5.update(piece)
        self._sha256.update(piece)

    def result(self) -> tuple[str, str]:
        """Return the MD5 and the SHA-256 in hexadecimal."""
        return self._md5.hexdigest(), self._sha256.hexdigest()


def verify(path: Path, card: DatasetCard) -> None:
    """Check a file against its card; a file that has not changed is hashed once.

    Raises:
        ChecksumError: the card states neither the MD5 nor the SHA-256 of the file.
    """
    stat = path.stat()
    compare(_digests(path, stat.st_ino, stat.st_size, stat.st_mtime_ns), card, str(path))


def compare(digests: tuple[str, str], card: DatasetCard, where: str) -> None:
    """Check an MD5 and a SHA-256 against a card.

    Args:
        digests: MD5 and SHA-256 in hexadecimal.
        card: states the checksums.
        where: file or address, for the error message.

    Raises:
        ChecksumError: the card states neither of them.
    """
    md5, sha256 = digests
    if md5 == card.md5 or sha256 in card.sha256:
        return
    stated = [f"MD5 {card.md5}"] * bool(card.md5) + [f"SHA-256 {known}" for known in card.sha256]
    raise ChecksumError(
        f"{card.name}: expected {' or '.join(stated) or 'a checksum on its card'}, got MD5 {md5}, "
        f"SHA-256 {sha256} in {where}: damaged or another version; download it again, or pass its "
        "path in place of the dataset's name to use it unchecked as your own data"
    )


@cache
def _digests(path: Path, _inode: int, _size: int, _changed: int) -> tuple[str, str]:
    def compute() -> str:
        digests = Digests()
        with path.open("rb") as stream:
            while piece := stream.read(CHUNK):
                digests.update(piece)
        return " ".join(digests.result())

    md5, _, sha256 = remembered(path, "MD5 and SHA-256", compute).partition(" ")
    return md5, sha256
