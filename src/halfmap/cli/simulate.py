"""`halfmap simulate`: particles whose truth is known."""

from typing import Annotated

import typer

from halfmap.cli import options


def simulate(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="MAP|MODEL|phantom...",
            help="MRC map, PDB or mmCIF model, or the word phantom (phantom:1 is its second state).",
        ),
    ],
    out: options.OutFolder,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of particles.")],
    snr: Annotated[
        float,
        typer.Option(
            help="Variance of the image without noise over variance of the noise, all pixels; inf for no noise."
        ),
    ],
    box: Annotated[
        int | None,
        typer.Option(help="Box, pixels. Default: the map's, or 1.25 times the molecule."),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Pixel size, Angstrom. Default: the map's, or 2.")
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Average over this point group; the phantom is C4 or C1.")
    ] = None,
    seed: options.Seed = 1,
    weights: Annotated[
        str | None,
        typer.Option(help="Proportions of several sources, such as 2,1,1. Default: equal."),
    ] = None,
    preferred: Annotated[
        float,
        typer.Option(help="Share of particles seen along the z axis, within about 15 degrees."),
    ] = 0.0,
    shift: Annotated[float, typer.Option(help="Root mean square shift, pixels.")] = 2.0,
    per_micrograph: Annotated[
        int, typer.Option(help="Particles per micrograph; they share defocus and astigmatism.")
    ] = 40,
    defocus: Annotated[
        tuple[float, float], typer.Option(help="Range of the micrographs' defocus, Angstrom.")
    ] = (8000.0, 22000.0),
    defocus_spread: Annotated[
        float, typer.Option(help="Spread of defocus inside a micrograph, Angstrom rms.")
    ] = 100.0,
    astigmatism: Annotated[float, typer.Option(help="Defocus U - V, Angstrom rms.")] = 400.0,
    voltage: Annotated[float, typer.Option(help="kV.")] = 300.0,
    cs: Annotated[float, typer.Option(help="Spherical aberration, mm.")] = 2.7,
    amplitude_contrast: Annotated[float, typer.Option(help="0 to 1.")] = 0.1,
    phase_shift: Annotated[float, typer.Option(help="Of a phase plate, degrees.")] = 0.0,
    bfactor: Annotated[float, typer.Option(help="B-factor of the images, square Angstrom.")] = 0.0,
    optics_groups: Annotated[
        int, typer.Option(help="Micrographs take turns in this many optics groups.")
    ] = 1,
    beam_tilt: Annotated[
        float, typer.Option(help="Beam tilt, mrad, in another direction for each optics group.")
    ] = 0.0,
    noise_colour: Annotated[
        float,
        typer.Option(help="Extra noise amplitude a at low frequency s: 1 + a / (1 + (40 A s)^2)."),
    ] = 0.0,
    junk: Annotated[
        float, typer.Option(help="Share of junk: empty images, ice, overlapping pairs.")
    ] = 0.0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Make particle images with known poses from a map, an atomic model or the built-in phantom.

    Several sources make a mixture of states. particles.star has no poses; truth.star has.

    Example: halfmap simulate phantom --out sim --n 1000 --snr 0.1 --box 96 --pixel-size 2
    """
    from halfmap.commands.simulate import simulate as run
    from halfmap.errors import InputError

    try:
        proportions = None if weights is None else [float(word) for word in weights.split(",")]
    except ValueError:
        raise InputError(
            f"--weights: expected numbers with commas between, such as 2,1,1, got '{weights}'"
        ) from None
    run(
        source,
        out,
        n=n,
        snr=snr,
        box=box,
        pixel_size_angstrom=pixel_size,
        symmetry=symmetry,
        seed=seed,
        weights=proportions,
        preferred_fraction=preferred,
        shift_rms_px=shift,
        particles_per_micrograph=per_micrograph,
        defocus_range_angstrom=defocus,
        defocus_spread_angstrom=defocus_spread,
        astigmatism_angstrom=astigmatism,
        voltage_kv=voltage,
        spherical_aberration_mm=cs,
        amplitude_contrast=amplitude_contrast,
        phase_shift_deg=phase_shift,
        bfactor_angstrom2=bfactor,
        optics_groups=optics_groups,
        beam_tilt_mrad=beam_tilt,
        noise_colour=noise_colour,
        junk_fraction=junk,
        overwrite=overwrite,
        quiet=quiet,
    )
    typer.echo(f"simulate: {n} particles in {out}")
