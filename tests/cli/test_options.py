"""An option is written once, on the Python function: help, command line, Python, job.json and
resume know it, and refuse the same values with the same line."""

import importlib
import json
import math
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pytest

import halfmap
from halfmap.cli import application
from halfmap.cli.application import command_of
from halfmap.cli.main import run
from halfmap.commands import _options
from halfmap.commands._job import open_job
from halfmap.commands._options import OutFolder, Quiet, Resume, Seed
from halfmap.commands._restoring import PER_IMAGE, PER_STACK
from halfmap.commands._signatures import command_signature
from halfmap.errors import InputError
from halfmap.methods.registry import IN_2D, IN_3D
from halfmap.methods.starting_classes import STARTS
from halfmap.options import NamedOption, Option, command, options_of
from halfmap.workspace.job import JobStopped, read_job

SHARED = "--seed --device --threads --overwrite --quiet"
VOLUMES = (
    "--particles --reference --out --method --search --symmetry --diameter --initial-lowpass --mask "
    "--iterations --angular-step --shift-range --shift-step --local --local-range --tau-fudge "
    f"--wiener-constant --ctf --no-ctf --data-dir --memory {SHARED}"
)
# what users have typed since version 0.1: it must go on to work
FLAGS = {
    "demo": f"--out --n {SHARED}",
    "info": "--json",
    "class2d": "--particles --classes --out --method --start --iterations --diameter "
    "--angular-step --shift-range --shift-step --tau-fudge --wiener-constant --ctf --no-ctf "
    f"--pixel-size --data-dir --memory {SHARED}",
    "abinitio": "--particles --out --classes --symmetry --early-symmetry --runs --flip-hand "
    "--iterations --initial-lowpass --final-lowpass --diameter --mask --allow-negative "
    f"--shift-range --ctf --no-ctf --pixel-size --data-dir --memory {SHARED}",
    "refine": VOLUMES,
    "class3d": f"--classes {VOLUMES}",
    "reconstruct": "--particles --out --symmetry --halves --wiener-constant --ctf --no-ctf "
    f"--diameter --mask --data-dir --memory {SHARED}",
    "restore": "--particles --method --out --constant --class --view-tolerance --data-dir --seed "
    "--threads --overwrite --quiet",
    "simulate": "--out --n --snr --box --pixel-size --symmetry --seed --weights --preferred "
    "--shift --per-micrograph --defocus --defocus-spread --astigmatism --voltage --cs "
    "--amplitude-contrast --phase-shift --bfactor --optics-groups --beam-tilt --noise-colour "
    "--junk --overwrite --quiet",
    "project": "--particles --out --ctf --data-dir --threads --overwrite",
    "fsc": "--mask --diameter --out --overwrite",
    "localres": "--out --mask --window --b-factor --overwrite --quiet",
    "orientations": "--out --particles --symmetry --mask --overwrite --quiet",
    "mask": "--out --threshold --lowpass --parts --extend --soft-edge --combine --like "
    "--atom-radius --centred --overwrite",
    "postprocess": "--out --mask --b-factor --fit-from --fit-to --lowpass --fsc-weighting "
    "--no-fsc-weighting --mtf --mtf-pixel-size --overwrite --quiet",
    "select": "--out --classes --resolved-within --overwrite --where --half --optics-group "
    "--share --seed",
    "convert": "--passthrough --relion --data-dir --overwrite",
    "resume": "--device --threads --memory --quiet",
    "ctfrefine": "--particles --out --symmetry --defocus --astigmatism --beam-tilt "
    "--trefoil --spherical-aberration --tetrafoil --magnification "
    "--defocus-range --rounds --diameter --mask --folds --data-dir --seed "
    "--device --threads --memory --overwrite --quiet",
    "expand": "--particles --symmetry --out --data-dir --seed --overwrite",
    "join": "--out --data-dir --overwrite",
    "stack": "--particles --out --box --downsample --pixel-size --normalise "
    "--diameter --float16 --split --data-dir --threads --overwrite",
    "subtract": "--out --mask --reference --box --recentre --diameter --ctf --revert "
    "--data-dir --threads --overwrite",
    "symmetry": "--out --symmetry --particles --resolution --diameter --data-dir --overwrite",
    "volume": "--out --pixel-size --like --flip-hand --centre --box --align-to "
    "--either-hand --symmetry --lowpass --highpass --bfactor --normalise "
    "--difference --mask --diameter --particles --data-dir --overwrite",
    "web": "--port --host --token --root-path --host-name --read-only",
}
POSITIONAL = {
    "info": ["files"],
    "simulate": ["source"],
    "project": ["map"],
    "fsc": ["map1", "map2"],
    "mask": ["source"],
    "postprocess": ["source"],
    "localres": ["source"],
    "orientations": ["source"],
    "select": ["source"],
    "convert": ["source", "out"],
    "resume": ["folder"],
    "join": ["files"],
    "subtract": ["source"],
    "symmetry": ["map"],
    "volume": ["map"],
    "web": ["folder"],
}
COMMANDS = sorted(halfmap._COMMANDS)


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as left:
        run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def flag_of(one: NamedOption) -> str:
    return one.flag.partition("/")[0]


def typed(given: dict[str, Any], options: tuple[NamedOption, ...]) -> list[str]:
    """The command line of these arguments."""
    words: list[str] = []
    for one in options:
        if one.name in given:
            value = given[one.name]
            words += [] if one.option.positional else [flag_of(one)]
            words += map(str, value if isinstance(value, tuple) else [value])
    return words


def required(options: tuple[NamedOption, ...]) -> dict[str, Any]:
    """Some value that may be, for each option that must be given."""
    usual = {Path: "nowhere", int: 7, float: 1.0, str: "C2"}
    needed = [one for one in options if one.required]
    return {one.name: one.choices[0] if one.choices else usual[one.kind] for one in needed}


# --- every command ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_signature_read_without_importing_is_the_functions_own(name: str) -> None:
    read, function = command_signature(name), getattr(halfmap, name)
    assert function.__name__ == name
    assert read.__doc__ == function.__doc__
    assert options_of(read) == options_of(function)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_its_flag_is_in_the_help_of_the_command(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    code, out, _ = call(name, "--help", capsys=capsys)
    assert code == 0
    assert f"Example: halfmap {name}" in " ".join(out.split())
    for one in options_of(getattr(halfmap, name)):
        assert len(one.option.help) > 5, one.name
        assert not one.option.help.endswith("."), f"{one.name}: unit and limits follow the help"
        if not one.option.python_only:
            assert flag_of(one) in out, one.name
            assert one.description.rstrip(".") in " ".join(out.split()), one.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_there_was_is_there(name: str) -> None:
    parameters = command_of(command_signature(name)).params
    flags = {flag for one in parameters for flag in (*one.opts, *one.secondary_opts)}
    positional = POSITIONAL.get(name, [])
    assert set(FLAGS[name].split()) <= flags
    assert [one.name for one in parameters if one.name in flags] == positional


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_value_is_refused_with_the_same_line_in_python_and_on_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(halfmap, name)
    options = options_of(function)
    for one in options:
        bad = bad_values(one)
        for value in bad if not one.option.python_only else []:
            given = {**required(options), one.name: value}
            with pytest.raises(InputError) as refused:
                function(**given)
            shown = f"{value:g}" if isinstance(value, float) else value
            assert str(refused.value).startswith(f"{flag_of(one)} {shown}: expected ")
            code, _, err = call(name, *typed(given, options), capsys=capsys)
            assert (code, err) == (2, f"halfmap: {refused.value}\n")
    assert not list(tmp_path.iterdir())


def bad_values(one: NamedOption) -> list[Any]:
    """Values just outside what is allowed."""
    if one.choices:
        return ["magic"]
    if one.option.parse is not None:
        return ["much"]
    limits, kind = one.option, one.kind
    if kind not in (int, float) or one.count > 1:
        return []
    found = [kind(value) for value in (limits.above, limits.below) if value is not None]
    found += [kind(limits.at_least - 1)] if limits.at_least is not None else []
    found += [kind(limits.at_most + 1)] if limits.at_most is not None else []
    return found + ([math.nan, -math.inf] if kind is float else [])


def test_every_number_is_guarded() -> None:
    """The walk above has something to refuse in every number that computes."""
    free = {"class_number"}  # any number: the file says which classes there are
    for name in COMMANDS:
        for one in options_of(getattr(halfmap, name)):
            if one.kind in (int, float) and one.count == 1 and one.name not in free:
                assert bad_values(one), f"{name} {one.name}"


def test_choices_are_those_that_the_methods_have() -> None:
    assert get_args(_options.Method3D) == IN_3D
    assert get_args(_options.Method2D) == IN_2D
    assert get_args(_options.Start) == STARTS
    method = next(one for one in options_of(halfmap.restore) if one.name == "method")
    assert method.choices == PER_IMAGE + PER_STACK


def test_values_of_another_type_are_refused() -> None:
    for given, told in (
        ({"classes": 2.5}, "--classes 2.5: expected 1 or more"),
        ({"classes": True}, "--classes True: expected 1 or more"),
        ({"classes": None}, "--classes None: expected 1 or more"),
        ({"classes": "two"}, "--classes two: expected 1 or more"),
        ({"diameter_angstrom": "wide"}, "--diameter wide: expected more than 0 A"),
        ({"ctf": "no"}, "--ctf no: expected True or False"),
        ({"data_dir": 3}, "--data-dir 3: expected a file name"),
        ({"symmetry": 4, "function": "refine", "reference": "m"}, "--symmetry 4: expected text"),
    ):
        function = getattr(halfmap, given.pop("function", "class2d"))
        usual = {} if "symmetry" in given else {"classes": 2}
        with pytest.raises(InputError, match=f"^{told}$"):
            function("p.star", out="o", **{**usual, **given})


# --- one option, in one place -------------------------------------------------------------------


@dataclass(frozen=True)
class ToyResult:
    folder: Path
    gain_angstrom: float

    @property
    def summary(self) -> str:
        return f"gain {self.gain_angstrom:g} A"


@command
def toy(
    out: OutFolder,
    *,
    gain_angstrom: Annotated[
        float, Option("Gain of the toy", unit="A", above=0, at_most=9, hint="be modest")
    ] = 1.5,
    colours: Annotated[
        Sequence[Literal["red", "blue"]] | None, Option("Colours of the toy", unset="none")
    ] = None,
    steps: Annotated[int, Option("Steps to run", at_least=1, free_on_resume=True)] = 3,
    stop: Annotated[bool, Option("Stop in the middle", recorded=False)] = False,
    seed: Seed = 1,
    resume: Resume = False,
    quiet: Quiet = False,
) -> ToyResult:
    """Play with a toy.

    Example: halfmap toy --out there
    """
    with open_job(toy, locals(), iterations=steps):
        if stop:
            raise KeyboardInterrupt
    return ToyResult(Path(out), gain_angstrom)


@pytest.fixture
def toy_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`halfmap toy`, for this test alone."""
    module = types.SimpleNamespace(toy=toy)
    monkeypatch.setitem(sys.modules, "a_module_of_this_test", module)
    monkeypatch.setitem(halfmap._PUBLIC, "toy", "a_module_of_this_test")
    monkeypatch.setitem(application.PANELS, "Toys", ("toy",))
    real = command_signature
    signature = lambda name: toy if name == "toy" else real(name)  # noqa: E731
    monkeypatch.setattr(application, "command_signature", signature)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("toy_command")
def test_an_option_of_a_new_command_is_known_everywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "Play with a toy." in call("--help", capsys=capsys)[1]
    shown = " ".join(call("toy", "--help", capsys=capsys)[1].split())
    assert "Gain of the toy (more than 0 A)" not in shown
    for words in ("--gain", "Gain of the toy", "[default: 1.5]", "Steps to run (1 or more)"):
        assert words in shown
    code, out, _ = call("toy", "--out", "a", "--gain", 2.5, "--seed", 5, capsys=capsys)
    assert (code, out) == (0, "toy: gain 2.5 A\n")
    assert read_job("a")["parameters"] == {
        "gain_angstrom": 2.5,
        "colours": None,
        "steps": 3,
        "seed": 5,
        "quiet": False,
    }
    assert toy("b", gain_angstrom=np.float32(2.5)).gain_angstrom == 2.5
    for value in (0.0, 9.5, math.nan):
        line = f"--gain {value:g}: expected more than 0 and at most 9 A; be modest"
        with pytest.raises(InputError, match=f"^{line}$"):
            toy("c", gain_angstrom=value)
        assert call("toy", "--out", "c", "--gain", value, capsys=capsys)[2] == f"halfmap: {line}\n"
    assert not Path("c").exists()


@pytest.mark.usefixtures("toy_command")
def test_an_option_of_a_new_command_survives_resume() -> None:
    with pytest.raises(JobStopped, match="halfmap resume"):
        toy("job", gain_angstrom=4.0, stop=True)
    for changed in ({"gain_angstrom": 5.0}, {"colours": ["red"]}):
        with pytest.raises(InputError, match=f"{next(iter(changed))}.*was started with"):
            toy("job", **{"gain_angstrom": 4.0, **changed}, resume=True)
    with pytest.raises(JobStopped):  # what is free on resume may differ
        toy("job", gain_angstrom=4.0, steps=7, resume=True, stop=True)
    assert read_job("job")["parameters"]["steps"] == 7
    assert halfmap.resume("job").gain_angstrom == 4.0
    assert read_job("job")["status"] == "finished"


@pytest.mark.usefixtures("toy_command")
def test_a_job_started_before_an_option_was_added_goes_on_with_its_default() -> None:
    with pytest.raises(JobStopped):
        toy("job", stop=True)
    record = json.loads(Path("job/job.json").read_text())
    del record["parameters"]["gain_angstrom"]
    Path("job/job.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"gain_angstrom=4\.0: the job .* started with 1.5"):
        toy("job", gain_angstrom=4.0, resume=True)
    assert halfmap.resume("job").gain_angstrom == 1.5


def test_options_tell_a_form_what_it_needs() -> None:
    out, gain, colours, *_ = options_of(toy)
    assert (out.required, out.kind, gain.required, gain.default) == (True, Path, False, 1.5)
    assert (gain.kind, gain.flag, gain.option.unit) == (float, "--gain", "A")
    assert gain.limits == "more than 0 and at most 9 A"
    assert (colours.choices, colours.repeated, colours.optional) == (("red", "blue"), True, True)


# --- text on the command line and in Python -----------------------------------------------------


def test_text_is_read_alike() -> None:
    memory = next(one for one in options_of(halfmap.refine) if one.name == "memory")
    assert memory.checked("8GB") == memory.checked(8_000_000_000) == 8_000_000_000
    weights = next(one for one in options_of(halfmap.simulate) if one.name == "weights")
    assert weights.checked("2,1,1") == [2, 1, 1]
    classes = next(one for one in options_of(halfmap.select) if one.name == "classes")
    assert classes.checked("1,4-6") == [1, 4, 5, 6]
    with pytest.raises(InputError, match=r"^--classes 1,0: expected 1 or more$"):
        classes.checked([1, 0])


# --- the package --------------------------------------------------------------------------------


def test_public_names_are_listed_and_found() -> None:
    names = dir(halfmap)
    assert {*halfmap._COMMANDS, "Particles", "read_map", "ctf", "euler_to_matrix"} <= set(names)
    assert all(getattr(halfmap, name) is not None for name in names)
    for name in sorted(set(halfmap._PUBLIC) - {"InputError", "Particles", "CTFParameters"}):
        assert callable(getattr(halfmap, name))
        assert not isinstance(getattr(halfmap, name), types.ModuleType)


def test_modules_of_the_package_stay_modules() -> None:
    for name in ("reconstruction", "projection", "restoration", "resolution", "options"):
        module = importlib.import_module(f"halfmap.{name}")
        assert isinstance(module, types.ModuleType)
        assert getattr(halfmap, name) is module
    with pytest.raises(AttributeError):
        _ = halfmap.no_such_name
