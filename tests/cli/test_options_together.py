"""Options that have no effect as the others are: refused in one line that names both, by every
command; and the options that every command which reads particles has."""

from typing import Annotated, Any

import pytest

import halfmap
from halfmap.commands._options import parse_numbers
from halfmap.errors import InputError
from halfmap.options import NamedOption, Option, Setting, check_together, command, options_of

COMMANDS = {
    name: getattr(halfmap, name)
    for name in sorted(halfmap._PUBLIC)
    if halfmap._PUBLIC[name].startswith("halfmap.commands.")
}
# of their commands, those that read no particle file
WITHOUT_PARTICLES = {"demo", "fsc", "localres", "mask", "postprocess", "resume", "simulate", "web"}
# and those that read particles and none of their images; `convert` writes what it is told
WITHOUT_IMAGES = {
    *("expand", "info", "join", "orientations", "project", "select", "symmetry", "volume"),
}


def cases(which: str) -> list[Any]:
    """Command and option of each that `needs` others, or is `idle_beside` them; where what is
    needed must always be given, there is nothing to try."""
    found = []
    for name, function in COMMANDS.items():
        named = {one.name: one for one in options_of(function)}
        for one in named.values():
            others = [o for o in getattr(one.option, which) if o.name in named]
            if any(o.values or o.other_than or not named[o.name].required for o in others):
                found.append(pytest.param(name, one.name, id=f"{name}-{one.flag}"))
    return found


def some_value(one: NamedOption) -> Any:
    """A value that is not the default, and within the limits."""
    if one.option.parse is parse_numbers:
        value = one.option.at_most or max(2, one.option.at_least or 0)
        return ",".join(f"{value:g}" for _ in range(max(2, one.count)))
    if one.count > 1:
        return (2.0,) * one.count
    if one.kind is bool:
        return not one.default
    if one.choices:
        return next(choice for choice in one.choices if choice != one.default)
    if one.option.check is not None:
        return {"G": "D2", "DIR": "."}.get(one.option.metavar, "5px")
    if one.kind in (int, float):
        low = max(x for x in (one.option.at_least, one.option.above, 1) if x is not None)
        value = low + 1
        return value + 1 if value == one.default else value
    return "some.file"


def all_values(function: Any) -> dict[str, Any]:
    return {
        one.name: some_value(one) if one.required else one.default for one in options_of(function)
    }


def value_for(setting: Setting, one: NamedOption, *, holds: bool) -> Any:
    """A value of the other option with which the setting holds, or does not."""
    tried = (*one.choices, some_value(one), one.default, *setting.values, *setting.other_than)
    right = [value for value in tried if setting.holds(one, value) == holds]
    return next((value for value in right if value in one.choices), right[0])


@pytest.mark.parametrize(("name", "option"), cases("needs"))
def test_an_option_without_the_one_it_needs_is_refused(name, option) -> None:
    function = COMMANDS[name]
    named = {one.name: one for one in options_of(function)}
    needed = [o for o in named[option].option.needs if o.name in named]
    values = all_values(function) | {option: some_value(named[option])}
    values |= {o.name: value_for(o, named[o.name], holds=False) for o in needed}
    with pytest.raises(InputError, match="has no effect without") as caught:
        function(**values)
    for one in (named[option], *(named[o.name] for o in needed)):
        assert one.flag.partition("/")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    for o in needed:
        good = values | {o.name: value_for(o, named[o.name], holds=True)}
        check_together([named[option], *(named[o.name] for o in needed)], good)


@pytest.mark.parametrize(("name", "option"), cases("idle_beside"))
def test_an_option_beside_one_that_makes_it_idle_is_refused(name, option) -> None:
    function = COMMANDS[name]
    named = {one.name: one for one in options_of(function)}
    for o in named[option].option.idle_beside:
        if o.name not in named:
            continue
        values = all_values(function) | {option: some_value(named[option])}
        for needed in named[option].option.needs:
            if needed.name in named:
                values[needed.name] = value_for(needed, named[needed.name], holds=True)
        values[o.name] = value_for(o, named[o.name], holds=True)
        with pytest.raises(InputError, match="has no effect beside") as caught:
            function(**values)
        flags = [part for one in (named[option], named[o.name]) for part in one.flag.split("/")]
        assert sum(flag in str(caught.value) for flag in flags) >= 2


def test_there_are_such_options() -> None:
    """The walks above are not empty."""
    assert len(cases("needs")) >= 20
    assert len(cases("idle_beside")) >= 20


def test_a_job_that_goes_on_is_not_asked_again() -> None:
    """One that was begun by an earlier version may have such options."""

    @command
    def one(
        *,
        a: Annotated[int, Option(needs=(Setting("b"),))] = 1,
        b: bool = False,
        resume: bool = False,
    ) -> int:
        return a

    assert one(a=2, resume=True) == one(a=2, b=True) == 2
    with pytest.raises(InputError, match="--a 2: has no effect without --b"):
        one(a=2)


def test_passthrough_and_contrast_are_options_of_every_command_that_has_a_use_for_them() -> None:
    for name, function in COMMANDS.items():
        has = {one.name for one in options_of(function)}
        assert ("passthrough" in has) == (name not in WITHOUT_PARTICLES), name
        reads_images = name not in WITHOUT_PARTICLES | WITHOUT_IMAGES
        assert ("contrast" in has) == reads_images, name
