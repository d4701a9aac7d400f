"""Conditions on the columns of a particle table, as text: `rlnDefocusU < 20000 and not (a = 3)`.
The text is read by a grammar of its own; nothing of it is ever run.

    condition   := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation    := "not" negation | "(" condition ")" | comparison
    comparison  := column operator value          operator: < <= > >= = == !=
"""

import difflib
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from halfmap.errors import InputError
from halfmap.io.relion import ParticleTables

_TOKEN = re.compile(
    r"""\s*(?:(?P<operator><=|>=|==|!=|<|>|=)|(?P<bracket>[()])|"(?P<double>[^"]*)"|"""
    r"""'(?P<single>[^']*)'|(?P<word>[^\s()<>=!"']+))"""
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_WORDS = ("and", "or", "not")


def rows_that_meet(condition: str, tables: ParticleTables) -> np.ndarray:
    """Which particles meet a condition, bool (n,). A column is looked for in the particle table,
    then in the optics table; its name may begin with an underscore. Numbers are compared as
    numbers, other values as text, for = and != only.

    Raises:
        InputError: the text is no condition (what was expected, and where), no such column (those
            with similar names are named), or a cell that is no number where one is needed.
    """
    reader = _Reader(condition, tables)
    found = reader.condition()
    if reader.token is not None:
        raise reader.expected("and, or, or the end")
    return found


class _Reader:
    """Reads a condition from left to right, evaluating it on the way."""

    def __init__(self, text: str, tables: ParticleTables) -> None:
        self.text, self.tables, self.position = text, tables, 0
        self.token: tuple[str, str] | None = None
        self.advance()

    def advance(self) -> tuple[str, str] | None:
        """Go to the next token; the one that was the present one."""
        before = self.token
        rest = self.text[self.position :]
        if not rest.strip():
            self.token = None
            self.position = len(self.text)
            return before
        match = _TOKEN.match(rest)
        if match is None:
            raise InputError(
                f"condition {self.text!r}: cannot be read from {rest.strip()!r} on; a quote is "
                "not closed, or ! stands alone"
            )
        kind = str(match.lastgroup)
        self.token = (kind, match[kind])
        self.position += match.end()
        return before

    def expected(self, what: str) -> InputError:
        found = "the end" if self.token is None else repr(self.token[1])
        return InputError(
            f"condition {self.text!r}: expected {what}, found {found}; for example "
            '"rlnMaxValueProbDistribution > 0.3 and rlnDefocusU < 20000"'
        )

    def is_word(self, word: str) -> bool:
        return self.token is not None and self.token[0] == "word" and self.token[1].lower() == word

    def condition(self) -> np.ndarray:
        found = self.conjunction()
        while self.is_word("or"):
            self.advance()
            found = found | self.conjunction()
        return found

    def conjunction(self) -> np.ndarray:
        found = self.negation()
        while self.is_word("and"):
            self.advance()
            found = found & self.negation()
        return found

    def negation(self) -> np.ndarray:
        if self.is_word("not"):
            self.advance()
            return ~self.negation()
        if self.token == ("bracket", "("):
            self.advance()
            found = self.condition()
            if self.token != ("bracket", ")"):
                raise self.expected(")")
            self.advance()
            return found
        return self.comparison()

    def comparison(self) -> np.ndarray:
        if self.token is None or self.token[0] != "word" or self.token[1].lower() in _WORDS:
            raise self.expected("the name of a column")
        name = self.token[1].removeprefix("_")
        self.advance()
        if self.token is None or self.token[0] != "operator":
            raise self.expected(f"one of {', '.join(_COMPARE)} after {name}")
        sign = self.token[1]
        self.advance()
        if self.token is None or self.token[0] in ("operator", "bracket"):
            raise self.expected(f"a value after {name} {sign}")
        kind, value = self.token
        self.advance()
        return self.compared(name, sign, value, quoted=kind != "word")

    def compared(self, name: str, sign: str, value: str, *, quoted: bool) -> np.ndarray:
        number = None if quoted else _number(value)
        if number is not None:
            return _COMPARE[sign](self.column(name, numbers=True), number)
        if sign not in ("=", "==", "!="):
            raise InputError(
                f"condition {self.text!r}: expected a number after {name} {sign}, found {value!r}; "
                "text can be compared by = and != only"
            )
        return _COMPARE[sign](self.column(name, numbers=False), value)

    def column(self, name: str, *, numbers: bool) -> np.ndarray:
        """Values of a column, one per particle."""
        particles, optics = self.tables.particles, self.tables.optics
        if name in particles:
            return particles.floats(name) if numbers else particles.strings(name)
        if optics is not None and name in optics:
            values = optics.floats(name) if numbers else optics.strings(name)
            return values[self.tables.optics_group]
        there = [*particles.names, *(optics.names if optics is not None else ())]
        near = difflib.get_close_matches(name, there, n=3)
        raise InputError(
            f"{self.tables.path}: no column _{name}, which the condition {self.text!r} asks for; "
            + (f"near it: {', '.join(near)}" if near else f"there are {', '.join(there)}")
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
