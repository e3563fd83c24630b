"""Numbers of JSON texts, exactly.

JSON sets no bound to a number; ``jsonb`` keeps a ``numeric``, Python and orjson a double unless it is an integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

# jsonb's numeric ends at 131,072 digits before and 16,383 after the point; nothing sensible comes near a tenth of it.
MAX_DIGITS: Final = 1_000
_DIGITS: Final = bytes.maketrans(b"0123456789.", b"00000000000")
# With signs as digits and either E as one, one look tells of nearly all texts that there is no far exponent.
_COARSE: Final = bytes.maketrans(b"0123456789.+-E", b"0000000000000e")
_LONG_NUMBER: Final = b"0" * 16
_FAR_EXPONENT: Final = b"0e000"
_WORD: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.")


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as the token it was written with."""

    token: str

    @property
    def is_integer(self) -> bool:
        """Whether the token has neither a fraction nor an exponent."""
        return not any(c in self.token for c in ".eE")

    def plain(self) -> str | None:
        """Write it without an exponent, an integer as an integer and a fraction as a fraction; None if too long."""
        if len(self.token) > MAX_DIGITS:
            return None
        if self.is_integer:
            return "0" if self.token == "-0" else self.token
        try:
            value = Decimal(self.token)
        except InvalidOperation:
            return None
        if abs(value.adjusted()) > MAX_DIGITS:
            return None
        text = format(value, "f")
        text = text if "." in text else text + ".0"
        return text if len(text) <= MAX_DIGITS else None

    def canonical(self) -> str:
        """Write it so that equal values, and only those, have equal texts.

        Two exponents of more than a thousand digits are equal only where they are written in the same way.
        """
        if self.is_integer:
            return "0" if self.token == "-0" else self.token
        # By hand: Decimal refuses exponents of more than 18 digits.
        sign = "-" if self.token.startswith("-") else ""
        mantissa, _, exponent = self.token.lower().partition("e")
        whole, _, fraction = mantissa.lstrip("-").partition(".")
        digits = (whole + fraction).lstrip("0")
        if not digits:
            return f"{sign}0.0"
        stripped = digits.rstrip("0")
        if len(exponent) > MAX_DIGITS:
            return f"{sign}{whole}.{fraction}e{exponent}"
        return f"{sign}{stripped}e{int(exponent or 0) - len(fraction) + len(digits) - len(stripped)}"


def number_text(value: int | float) -> str:
    """Write a finite number as a JSON number that ``jsonb`` gives back with its type."""
    if isinstance(value, int):
        return str(value)
    text = Number(repr(value)).plain()
    assert text is not None  # noqa: S101 - a double has at most 309 digits before and 1,074 after the point
    return text


def has_long_number(text: bytes) -> bool:
    """Whether `text` may hold a number that a double does not hold exactly: of 16 digits, or an exponent of three."""
    coarse = text.translate(_COARSE)
    if _LONG_NUMBER in coarse and _LONG_NUMBER in text.translate(_DIGITS):
        return True
    at = coarse.find(_FAR_EXPONENT)
    while at >= 0:
        # Digits within a word, such as a hexadecimal id, are no number.
        before = text[max(0, at - MAX_DIGITS) : at + 1].rstrip(b"0123456789.")
        if not before or before[-1] not in _WORD:
            return True
        at = coarse.find(_FAR_EXPONENT, at + 1)
    return False


def value_of_number(number: int | float | Number) -> int | float:
    """Return the Python number of a parsed JSON number; infinity for integers longer than any that we write."""
    if not isinstance(number, Number):
        return number
    is_integer = number.is_integer and len(number.token) <= MAX_DIGITS
    return int(number.token) if is_integer else float(number.token)
