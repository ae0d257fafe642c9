"""Numbers and names for people."""

from __future__ import annotations


def size(count: float) -> str:
    """A number of bytes."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def amount(count: float) -> str:
    """A large number in thousands, millions or billions."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {letter}"
    return f"{count:.0f}"


def short(text: str, limit: int) -> str:
    """A text of at most ``limit`` characters, cut at its end."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def elide(text: str, limit: int) -> str:
    """A name of at most ``limit`` characters, cut in the middle: names of nodes differ at their ends."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) * 3 // 5
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"
