"""JSON from files that anybody may have made."""

from __future__ import annotations

import json
from typing import Any

MAX_DIGITS = 20
"""Of a whole number; those of 64 bits, such as seeds, have no more. Reading a number takes time
that grows with the square of its length."""


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for everything that is none."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(
            f"it holds a number of {len(digits)} digits, expected {MAX_DIGITS} at most"
        )
    return int(digits)
