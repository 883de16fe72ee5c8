"""Texts of the cache that carry their own digest, so that a damaged one is noticed and made again."""

from __future__ import annotations

import hashlib


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def seal(text: str) -> bytes:
    """A text under a line with its digest."""
    content = text.encode("utf-8")
    return digest(content).encode("ascii") + b"\n" + content


def unseal(sealed: bytes) -> str:
    """The text of `seal`. Raises ValueError if one byte of it is not as it was."""
    line, _, content = sealed.partition(b"\n")
    if line.decode("ascii", "replace") != digest(content):
        raise ValueError("not the text that was sealed")
    return content.decode("utf-8")
