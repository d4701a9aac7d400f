"""Options, written once: each stands on the Python function, as the annotation of a parameter.

    diameter_angstrom: Annotated[float, Option("Diameter of the particle", unit="A", above=0)]

The command line, `job.json`, `resume` and forms are made from what `options_of` reads there, and
`command` refuses values outside the limits with the same line wherever they come from.
"""

import functools
import inspect
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from halfmap.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
_UNIT_IN_NAME = r"_(angstrom2?|px|deg|kv|mm|mrad)$"
_UNIT_WORDS = {"px": "pixels", "deg": "degrees", "A^2": "square A"}
_NOUNS = {int: "a whole number", float: "a number", Path: "a file name", str: "text"}


@dataclass(frozen=True)
class Setting:
    """Another option, by its parameter's name: given, or true; or with one of `values`; or with
    none of the values `other_than`."""

    name: str
    values: tuple[object, ...] = ()
    other_than: tuple[object, ...] = ()

    def holds(self, one: "NamedOption", value: Any) -> bool:
        """Whether the option `one` of that name, with this value, is so."""
        if self.values:
            return value in self.values
        if self.other_than:
            return value not in self.other_than
        return is_given(one, value)

    def words(self, one: "NamedOption") -> str:
        """As one types it: `--local`, `--method wiener or wiener-stack`."""
        flag = one.flag.partition("/")[0]
        if self.values:
            known = [value for value in self.values if value in (one.choices or self.values)]
            no = one.flag.partition("/")[2]
            return no if no and known == [False] else f"{flag} {' or '.join(map(_typed, known))}"
        if self.other_than:
            return f"{flag} other than {' or '.join(map(_typed, self.other_than))}"
        return flag


@dataclass(frozen=True)
class Option:
    """What is to be known of an option beside its name, type and default.

    Args:
        help: one sentence, without unit, limits and default, which are added.
        unit: symbol of the unit. above, below: limits that are not allowed themselves. at_least,
            at_most: limits that are. finite: infinity and not-a-number are refused.
        unset: what None stands for. hint: a way out, said where a value is refused.
        flag: on the command line; of the parameter's name without its unit, if empty. metavar: what
            stands for the value there.
        positional: given without a flag. python_only: not on the command line.
        parse: makes the value of text, or raises ValueError with what is expected. check: raises
            ValueError or InputError for a bad value.
        recorded: part of `job.json`. free_on_resume: a resumed job may have another value.
        needs: settings of other options of which one must hold, else this one has no effect.
        idle_beside: settings beside which it has none. A function without those options takes it.
    """

    help: str = ""
    unit: str = ""
    above: float | None = None
    below: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    finite: bool = True
    unset: str = ""
    hint: str = ""
    flag: str = ""
    metavar: str = ""
    positional: bool = False
    python_only: bool = False
    parse: Callable[[str], object] | None = None
    check: Callable[[Any], object] | None = None
    recorded: bool = True
    free_on_resume: bool = False
    needs: tuple[Setting, ...] = ()
    idle_beside: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class NamedOption:
    """An option of a function, whole: parameter `name`; `kind` of one value (bool, int, float, str,
    Path); `choices` where only these words are allowed; several values where `repeated`, exactly
    `count` otherwise; `default` if not `required`."""

    name: str
    option: Option
    kind: type
    choices: tuple[str, ...]
    repeated: bool
    count: int
    optional: bool
    required: bool
    default: Any

    @property
    def flag(self) -> str:
        """As the user types it: `--shift-range`, `--ctf/--no-ctf`; a positional one by its name."""
        if self.option.positional:
            return self.option.metavar or self.name
        word = re.sub(_UNIT_IN_NAME, "", self.name).replace("_", "-")
        derived = f"--{word}/--no-{word}" if self.default is True else f"--{word}"
        return self.option.flag or derived

    @property
    def limits(self) -> str:
        """The limits and the unit in words: `3 to 30 degrees`, `more than 0 A`; empty without."""
        one = self.option
        if one.at_least is not None and one.at_most is not None:
            words = [f"{one.at_least:g} to {one.at_most:g}"]
        else:
            limits = (
                ("more than {:g}", one.above),
                ("{:g} or more", one.at_least),
                ("at most {:g}", one.at_most),
                ("less than {:g}", one.below),
            )
            words = [text.format(limit) for text, limit in limits if limit is not None]
        unit = _UNIT_WORDS.get(one.unit, one.unit)
        return f"{' and '.join(words)} {unit}".strip() if words else ""

    @property
    def description(self) -> str:
        """The help, with limits or unit: `Largest shift searched (0 or more pixels).`"""
        told = self.limits or _UNIT_WORDS.get(self.option.unit, self.option.unit)
        return f"{self.option.help}{f' ({told})' if told else ''}."

    def checked(self, value: Any) -> Any:
        """The value, read if it is text, if it may be used.

        Raises:
            InputError: of another type, outside the limits, none of the choices.
        """
        if value is None and self.optional:
            return None
        try:
            if isinstance(value, str) and self.option.parse is not None:
                value = self.option.parse(value)
            several = isinstance(value, Sequence) and not isinstance(value, str)
            if self.count > 1 and not (several and len(value) == self.count):
                raise ValueError(f"{self.count} values")
            for one in value if several and (self.repeated or self.count > 1) else [value]:
                self._check_one(one)
            if self.option.check is not None:
                self.option.check(value)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            hint = f"; {self.option.hint}" if self.option.hint else ""
            flag = self.flag.partition("/")[0]
            raise InputError(f"{flag} {_typed(value)}: expected {error}{hint}") from None
        return value

    def _check_one(self, value: Any) -> None:
        if self.choices:
            good = value in self.choices
            raise_unless(good, f"one of {', '.join(self.choices)}")
        elif self.kind is bool:
            raise_unless(isinstance(value, bool), "True or False")
        elif self.kind in (int, float):
            wanted = numbers.Integral if self.kind is int else numbers.Real
            good = isinstance(value, wanted) and not isinstance(value, bool)
            raise_unless(good, self.limits or _NOUNS[self.kind])
            raise_unless(self._within(float(value)), self.limits or "a finite number")
        else:
            good = isinstance(value, str | os.PathLike if self.kind is Path else str)
            raise_unless(good, _NOUNS.get(self.kind, "another value"))

    def _within(self, value: float) -> bool:
        one = self.option
        return (
            (math.isfinite(value) or (not one.finite and not math.isnan(value)))
            and (one.above is None or value > one.above)
            and (one.below is None or value < one.below)
            and (one.at_least is None or value >= one.at_least)
            and (one.at_most is None or value <= one.at_most)
        )


def is_given(one: NamedOption, value: Any) -> bool:
    """Whether an option is there by the user's wish."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    same = tuple(value) == tuple(one.default or ()) if several else value == one.default
    return value is not None and (one.required or not same)


def check_together(options: Sequence[NamedOption], values: Mapping[str, Any]) -> None:
    """Refuse an option that has no effect as the others are (`Option.needs`, `idle_beside`).

    Raises:
        InputError: naming both.
    """
    named = {one.name: one for one in options}
    for one in options:
        if not is_given(one, values[one.name]):
            continue
        flag, value = one.flag.partition("/")[0], values[one.name]
        no = one.flag.partition("/")[2]
        typed = (flag if value else no) if isinstance(value, bool) else f"{flag} {_typed(value)}"
        needed = [other for other in one.option.needs if other.name in named]
        if needed and not any(o.holds(named[o.name], values[o.name]) for o in needed):
            words = " or ".join(other.words(named[other.name]) for other in needed)
            raise InputError(f"{typed}: has no effect without {words}; add that, or leave it out")
        for other in one.option.idle_beside:
            if other.name in named and other.holds(named[other.name], values[other.name]):
                words = other.words(named[other.name])
                raise InputError(f"{typed}: has no effect beside {words}; leave one of them out")


def raise_unless(good: bool, expected: str) -> None:
    """Say what was expected where the value is not good."""
    if not good:
        raise ValueError(expected)


def _typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are checked, and read where they are text, before it runs.

    Raises:
        InputError: by the function, for a bad value: which option, what was expected, what arrived;
            or for an option that has no effect as the others are.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for one in options_of(function):
            bound.arguments[one.name] = one.checked(bound.arguments[one.name])
        if not bound.arguments.get("resume"):  # a job that was begun goes on
            check_together(options_of(function), bound.arguments)
        return function(*bound.args, **bound.kwargs)

    return checked


def options_of(function: Callable[..., Any]) -> tuple[NamedOption, ...]:
    """The options of a function, in order: what a command line, a form or a page of help needs.

    >>> import halfmap
    >>> [one.flag for one in options_of(halfmap.fsc)][:2]
    ['MAP1', 'MAP2']
    """
    return _options_of(inspect.unwrap(function))


@functools.cache
def _options_of(function: Callable[..., Any]) -> tuple[NamedOption, ...]:
    return tuple(_named(one) for one in inspect.signature(function).parameters.values())


def recorded(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a function's arguments, by name, that `job.json` keeps."""
    return {one.name: arguments[one.name] for one in options_of(function) if one.option.recorded}


def command_line(
    function: Callable[..., Any], values: Mapping[str, Any], *, all_values: bool = False
) -> list[str]:
    """The words after `halfmap` that call a function of the command line with these values:
    `["refine", "--particles=p.star", ...]`, the inverse of reading them.

    Values that are defaults are left out, unless `all_values`. A flag and its value are one word,
    and a positional value follows `--`, so that a value is never read as another option.
    """
    words, positional = [function.__name__], []
    for one in options_of(function):
        if one.name not in values or one.option.python_only:
            continue
        value = values[one.name]
        if value is None or (value == one.default and not one.required and not all_values):
            continue
        if one.kind is bool and not one.option.parse:
            yes, _, no = one.flag.partition("/")
            words += [yes] if value else [no] if no else []
            continue
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if several and (one.option.parse is not None and one.repeated):
            value, several = ",".join(map(_typed, value)), False
        each = list(value) if several else [value]
        if one.option.positional:
            positional += [_exactly(v) for v in each]
        elif one.count > 1:
            words += [one.flag, *(_exactly(v) for v in each)]
        else:
            words += [f"{one.flag}={_exactly(v)}" for v in each]
    return [*words, *(["--", *positional] if positional else [])]


def _exactly(value: Any) -> str:
    """A value as text that reads back as the same."""
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def python_call(function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """The call in Python with these values, one to a line; what is a default is left out."""
    given = [
        f"    {one.name}={values[one.name]!r},"
        for one in options_of(function)
        if one.name in values and (one.required or values[one.name] != one.default)
    ]
    return "\n".join([f"halfmap.{function.__name__}(", *given, ")"])


def _named(parameter: inspect.Parameter) -> NamedOption:
    hint, option = parameter.annotation, Option()
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        option = next((note for note in notes if isinstance(note, Option)), option)
    members = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    optional = NoneType in members
    rows = [one for one in members if get_origin(one) in (Sequence, list, tuple)]
    pairs = [get_args(one) for one in rows if get_origin(one) is tuple]
    inner = {one for row in rows for one in _members(get_args(row)[0])}
    single = {one for member in members if member not in rows for one in _members(member)}
    kinds = inner | single
    choices = next((get_args(one) for one in kinds if get_origin(one) is Literal), ())
    known = [kind for kind in (Path, bool, int, float, str) if kind in kinds]
    return NamedOption(
        parameter.name,
        option,
        kind=known[0] if known else str,
        choices=choices,
        repeated=bool(rows) and not pairs,
        count=len(pairs[0]) if pairs else 1,
        optional=optional,
        required=parameter.default is parameter.empty,
        default=None if parameter.default is parameter.empty else parameter.default,
    )


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
