"""The methods paragraph of a job, with its numbers filled in, and what to cite."""

from collections.abc import Mapping
from typing import Any

_RELION = (
    "Scheres SHW (2012). RELION: implementation of a Bayesian approach to cryo-EM structure "
    "determination. J Struct Biol 180, 519-530."
)
_BAYES = (
    "Scheres SHW (2012). A Bayesian view on cryo-EM structure determination. J Mol Biol 415, "
    "406-418."
)
_FREALIGN = (
    "Grigorieff N (2007). FREALIGN: high-resolution refinement of single particle structures. J "
    "Struct Biol 157, 117-125."
)
_SIGWORTH = (
    "Sigworth FJ (1998). A maximum-likelihood approach to single-particle image refinement. J "
    "Struct Biol 122, 328-339."
)
_CRYOSPARC = (
    "Punjani A, Rubinstein JL, Fleet DJ, Brubaker MA (2017). cryoSPARC: algorithms for rapid "
    "unsupervised cryo-EM structure determination. Nat Methods 14, 290-296."
)
_GOLD = (
    "Scheres SHW, Chen S (2012). Prevention of overfitting in cryo-EM structure determination. Nat "
    "Methods 9, 853-854."
)
_RANDOM_PHASES = (
    "Chen S, et al. (2013). High-resolution noise substitution to measure overfitting and validate "
    "resolution in 3D structure determination by single particle electron cryomicroscopy. "
    "Ultramicroscopy 135, 24-35."
)
_ROSENTHAL = (
    "Rosenthal PB, Henderson R (2003). Optimal determination of particle orientation, absolute "
    "hand, and contrast loss in single-particle electron cryomicroscopy. J Mol Biol 333, 721-745."
)
_CARDONE = (
    "Cardone G, Heymann JB, Steven AC (2013). One number does not fit all: mapping local "
    "variations in resolution in cryo-EM reconstructions. J Struct Biol 184, 226-236."
)
_SAMPLING = (
    "Baldwin PR, Lyumkis D (2020). Non-uniformity of projection distributions attenuates "
    "resolution in cryo-EM. Prog Biophys Mol Biol 150, 160-183."
)
_CTF = (
    "Zivanov J, Nakane T, Forsberg BO, Kimanius D, Hagen WJH, Lindahl E, Scheres SHW (2018). New "
    "tools for automated high-resolution cryo-EM structure determination in RELION-3. eLife 7, "
    "e42166."
)
_ABERRATIONS = (
    "Zivanov J, Nakane T, Scheres SHW (2020). Estimation of high-order aberrations and anisotropic "
    "magnification from cryo-EM data sets in RELION-3.1. IUCrJ 7, 253-267."
)


def methods(record: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """One paragraph that a methods section can begin with; empty for a job that makes nothing to
    publish."""
    writer = _WRITERS.get(record["command"])
    if writer is None or record["status"] != "finished":
        return ""
    version = record.get("versions", {}).get("halfmap", "")
    words = writer(record["parameters"], data)
    return f"{words} All was done with halfmap {version} (seed {record.get('seed')})."


def references(record: Mapping[str, Any]) -> list[str]:
    """The papers that the job rests on."""
    matched = record["parameters"].get("method")
    by_likelihood = [_SIGWORTH, _BAYES, _RELION]
    engine = [_FREALIGN] if matched in ("projection-matching", "template") else by_likelihood
    found = {
        "class2d": engine,
        "class3d": engine,
        "refine": [*engine, _GOLD, _RANDOM_PHASES, _ROSENTHAL],
        "abinitio": [_CRYOSPARC],
        "reconstruct": [_GOLD, _RANDOM_PHASES, _ROSENTHAL],
        "fsc": [_ROSENTHAL, _RANDOM_PHASES],
        "postprocess": [_ROSENTHAL, _RANDOM_PHASES],
        "localres": [_CARDONE],
        "orientations": [_SAMPLING],
        "ctfrefine": [_CTF, _ABERRATIONS],
    }
    return found.get(record["command"], [])


def _matched(parameters: Mapping[str, Any]) -> str:
    how = parameters.get("method")
    if how in ("projection-matching", "template"):
        return "by best correlation (projection matching)"
    return "by maximum likelihood, each image weighing all poses by their posterior probability"


def _symmetry(parameters: Mapping[str, Any]) -> str:
    symmetry = parameters.get("symmetry") or "C1"
    return "without symmetry (C1)" if symmetry == "C1" else f"with {symmetry} symmetry imposed"


def _size(resolution: Any) -> str:
    if not isinstance(resolution, int | float):
        return "an undetermined resolution"
    return f"{resolution:.{1 if resolution >= 5 else 2}f} A"


def _counted(data: Mapping[str, Any]) -> str:
    n = data.get("particles")
    return f"{n:,} particle images" if n else "Particle images"


def _class2d(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    found = [one for one in data["classes2d"] if one["size"] and one["resolution_angstrom"]]
    best = min((one["resolution_angstrom"] for one in found), default=None)
    reached = f"; the best class reached {_size(best)} (FRC 0.5)" if best else ""
    return (
        f"{_counted(data)} were sorted into {data['classes']} two-dimensional classes "
        f"{_matched(parameters)}, in {data['iteration']} iterations{reached}."
    )


def _abinitio(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    several = (data.get("classes") or 1) > 1
    maps = f"{data['classes']} starting maps were" if several else "A starting map was"
    return (
        f"{maps} made from {_counted(data).lower()} without a reference, by stochastic gradient "
        f"ascent of the posterior probability from a random start, {_symmetry(parameters)}."
    )


def _class3d(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    sizes = data["results"].get("sizes") or []
    told = f" with {', '.join(f'{n:,}' for n in sizes)} particles" if 0 < len(sizes) <= 8 else ""
    return (
        f"{_counted(data)} were sorted into {data['classes']} three-dimensional classes{told} "
        f"{_matched(parameters)}, {_symmetry(parameters)}, in {data['iteration']} iterations."
    )


def _refine(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    lowpass = parameters.get("initial_lowpass_angstrom") or 60
    unmasked = ""
    for one in data["fsc"][:1]:
        first = one["curves"].get("unmasked")
        if first:
            shell = next((s for s, c in enumerate(first) if s and c < 0.143), None)
            if shell:
                unmasked = f"; unmasked, {_size(1 / one['frequency'][max(1, shell - 1)])}"
    return (
        f"{_counted(data)} were refined against a starting map low-passed to {lowpass:g} A, in two "
        f"halves that share nothing after it (gold standard), {_matched(parameters)}, "
        f"{_symmetry(parameters)}, in {data['iteration']} iterations. The resolution is "
        f"{_size(data['resolution_angstrom'])} at a Fourier shell correlation of 0.143, corrected "
        f"for the effects of the mask by phase randomisation{unmasked}."
    )


def _reconstruct(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    return f"A map was reconstructed at known poses, {_symmetry(parameters)}."


def _postprocess(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    b = data["results"].get("b_factor_angstrom2")
    given = parameters.get("b_factor") is not None
    how = "" if given else ", estimated from the Guinier plot"
    sharpened = f"sharpened with a B-factor of {b:.0f} A^2{how}" if b else "not sharpened"
    weighted = ", weighted by its FSC" if parameters.get("fsc_weighting", True) else ""
    return (
        f"The averaged half maps were {sharpened}{weighted} and low-passed at "
        f"{_size(parameters.get('lowpass_angstrom') or data['resolution_angstrom'])}. The "
        f"resolution is {_size(data['resolution_angstrom'])} at a Fourier shell correlation of "
        "0.143, corrected for the effects of the mask by phase randomisation."
    )


def _localres(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    found = data["results"]
    return (
        "Local resolution was estimated by Fourier shell correlation of the half maps in windows; "
        f"inside the mask it runs from {_size(found.get('best_angstrom'))} to "
        f"{_size(found.get('worst_angstrom'))} (5 % to 95 %), with a median of "
        f"{_size(found.get('median_angstrom'))}."
    )


def _orientations(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    found = data["results"]
    scf = found.get("scf_star")
    sampling = f"; the sampling compensation factor SCF* of the views is {scf:.2f}" if scf else ""
    return (
        "The Fourier shell correlation was taken in cones of 20 degrees; the ratio of the smallest "
        f"area to the largest (cFAR) is {found.get('cfar') or 0:.2f}{sampling}."
    )


def _ctfrefine(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    defocus = parameters.get("defocus", "particle")
    wanted = [] if defocus == "none" else [f"the defocus of each {defocus}"]
    names = {
        "astigmatism": "the astigmatism of each micrograph",
        "beam_tilt": "beam tilt",
        "trefoil": "trefoil",
        "spherical_aberration": "spherical aberration",
        "tetrafoil": "tetrafoil",
        "magnification": "anisotropic magnification",
    }
    wanted += [words for name, words in names.items() if parameters.get(name)]
    told = ", ".join(wanted[:-1]) + (" and " if len(wanted) > 1 else "") + wanted[-1]
    verb = "were" if len(wanted) > 1 else "was"
    return (
        f"{told[0].upper()}{told[1:]} {verb} refined at known poses, each image "
        "compared with a map of its half that it is no part of."
    )


_WRITERS = {
    "class2d": _class2d,
    "abinitio": _abinitio,
    "class3d": _class3d,
    "refine": _refine,
    "reconstruct": _reconstruct,
    "postprocess": _postprocess,
    "localres": _localres,
    "orientations": _orientations,
    "ctfrefine": _ctfrefine,
}
