"""The job `halfmap simulate`: volumes from maps, models or the phantom; particles drawn from them;
images, STAR and truth written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from halfmap.commands._job import leave_report
from halfmap.commands._options import (
    Annotated,
    Option,
    OutFolder,
    Overwrite,
    Quiet,
    Seed,
    Setting,
    check_symmetry,
    parse_numbers,
)
from halfmap.commands._simulated_images import Scene, of_group, write_images
from halfmap.commands._simulated_tables import image_names, particle_tables
from halfmap.commands._sources import load_volumes
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.io.relion import ctf_columns
from halfmap.io.star import write_star
from halfmap.options import command, recorded
from halfmap.plots.orientations import save_orientation_plot
from halfmap.plots.tiles import save_class_gallery, save_map_picture
from halfmap.simulation.dirt import DirtRecipe, check_dirt, draw_dirt
from halfmap.simulation.forward_model import GOOD, Recipe, draw_truth
from halfmap.simulation.optics_groups import optics_groups_of, with_aberrations
from halfmap.workspace.job import Job
from halfmap.workspace.progress import PROGRESS, Progress, drawing

# What --dirty means: a ramp of a third of the noise, one image in seven junk, one in fifty with a
# hot pixel, and errors of the CTF as estimates from micrographs have them.
DIRTY_JUNK = 0.15
DIRTY = DirtRecipe(
    neighbour_fraction=0.4,
    ramp=0.33,
    hot_pixel_fraction=0.02,
    defocus_error_angstrom=300.0,
    astigmatism_error_angstrom=150.0,
    signal_spread=0.2,
    bfactor_spread_angstrom2=50.0,
    ice_noise_fraction=0.3,
)


@dataclass(frozen=True)
class Simulated:
    """The job folder, and how many particles are in it."""

    folder: Path
    particles: int

    @property
    def summary(self) -> str:
        return f"{self.particles} particles in {self.folder}"


@command
def simulate(
    source: Annotated[
        str | Path | Sequence[str | Path],
        Option(
            "MRC map, PDB or mmCIF model, or the word phantom (phantom:1 is its second state)",
            positional=True,
            metavar="MAP|MODEL|phantom...",
        ),
    ],
    out: OutFolder,
    *,
    n: Annotated[int, Option("Number of particles", at_least=1)],
    snr: Annotated[
        float,
        Option(
            "Variance of the image without noise over variance of the noise, all pixels; inf for "
            "no noise",
            above=0,
            finite=False,
            hint="inf for no noise",
        ),
    ],
    box: Annotated[
        int | None,
        Option(
            "Box width of the images",
            unit="px",
            at_least=8,
            unset="the map's, or 1.25 times the molecule",
        ),
    ] = None,
    pixel_size_angstrom: Annotated[
        float | None, Option("Pixel size", unit="A", above=0, unset="the map's, or 2 A")
    ] = None,
    symmetry: Annotated[
        str | None,
        Option(
            "Average over this point group; the phantom is C4 or C1",
            metavar="G",
            check=check_symmetry,
        ),
    ] = None,
    seed: Seed = 1,
    weights: Annotated[
        Sequence[float] | None,
        Option(
            "Proportions of several sources",
            at_least=0,
            unset="equal",
            metavar="2,1,1",
            parse=parse_numbers,
        ),
    ] = None,
    preferred_fraction: Annotated[
        float,
        Option(
            "Share of particles seen along the z axis, within about 15 degrees",
            at_least=0,
            at_most=1,
            flag="--preferred",
        ),
    ] = 0.0,
    shift_rms_px: Annotated[
        float, Option("Root mean square shift", unit="px", at_least=0, flag="--shift")
    ] = 2.0,
    particles_per_micrograph: Annotated[
        int,
        Option(
            "Particles per micrograph; they share defocus and astigmatism",
            at_least=1,
            flag="--per-micrograph",
        ),
    ] = 40,
    defocus_range_angstrom: Annotated[
        tuple[float, float],
        Option(
            "Range of the micrographs' defocus, the lower first",
            unit="A",
            flag="--defocus",
            metavar="A A",
        ),
    ] = (8000.0, 22000.0),
    defocus_spread_angstrom: Annotated[
        float, Option("Spread of defocus inside a micrograph, rms", unit="A", at_least=0)
    ] = 100.0,
    astigmatism_angstrom: Annotated[
        float, Option("Defocus U - V, rms", unit="A", at_least=0)
    ] = 400.0,
    voltage_kv: Annotated[float, Option("Acceleration voltage", unit="kV", above=0)] = 300.0,
    spherical_aberration_mm: Annotated[
        float, Option("Spherical aberration", unit="mm", flag="--cs")
    ] = 2.7,
    amplitude_contrast: Annotated[float, Option("Amplitude contrast", at_least=0, at_most=1)] = 0.1,
    phase_shift_deg: Annotated[float, Option("Phase shift of a phase plate", unit="deg")] = 0.0,
    bfactor_angstrom2: Annotated[float, Option("B-factor of the images", unit="A^2")] = 0.0,
    optics_groups: Annotated[
        int, Option("Micrographs take turns in this many optics groups", at_least=1)
    ] = 1,
    beam_tilt_mrad: Annotated[
        float, Option("Beam tilt, in another direction for each optics group", unit="mrad")
    ] = 0.0,
    group_pixel_sizes_angstrom: Annotated[
        Sequence[float] | None,
        Option(
            "Pixel size of each optics group; a stack for each",
            unit="A",
            metavar="A,B",
            flag="--group-pixel-size",
            parse=parse_numbers,
            above=0,
            unset="that of all",
            needs=(Setting("optics_groups", other_than=(1,)),),
        ),
    ] = None,
    group_boxes_px: Annotated[
        Sequence[float] | None,
        Option(
            "Box of each optics group",
            unit="px",
            metavar="A,B",
            flag="--group-box",
            parse=parse_numbers,
            at_least=8,
            unset="the same width",
            needs=(Setting("optics_groups", other_than=(1,)),),
        ),
    ] = None,
    group_magnifications: Annotated[
        Sequence[float] | None,
        Option(
            "Anisotropic magnification of each optics group: share by which the scale along one "
            "axis exceeds the other's",
            metavar="A,B",
            flag="--group-magnification",
            parse=parse_numbers,
            at_least=-0.2,
            at_most=0.2,
            unset="0",
            needs=(Setting("optics_groups", other_than=(1,)),),
        ),
    ] = None,
    group_beam_tilts_mrad: Annotated[
        Sequence[float] | None,
        Option(
            "Beam tilt of each optics group, in place of --beam-tilt",
            unit="mrad",
            metavar="A,B",
            flag="--group-beam-tilt",
            parse=parse_numbers,
            unset="--beam-tilt",
            needs=(Setting("optics_groups", other_than=(1,)),),
        ),
    ] = None,
    group_trefoils: Annotated[
        Sequence[float] | None,
        Option(
            "Trefoil of each optics group, the third coefficient of rlnOddZernike: radians at 1 A",
            metavar="A,B",
            flag="--group-trefoil",
            parse=parse_numbers,
            unset="0",
            needs=(Setting("optics_groups", other_than=(1,)),),
        ),
    ] = None,
    noise_colour: Annotated[
        float,
        Option(
            "Extra noise amplitude a at low frequency s: 1 + a / (1 + (40 A s)^2)",
            at_least=0,
            idle_beside=(Setting("snr", values=(float("inf"),)),),
        ),
    ] = 0.0,
    dirty: Annotated[
        bool,
        Option("A little of everything below, as real stacks have; each can be set by itself"),
    ] = False,
    junk_fraction: Annotated[
        float | None,
        Option(
            "Share of junk: empty images, ice, overlapping pairs",
            at_least=0,
            below=1,
            flag="--junk",
            unset="0; with --dirty 0.15",
        ),
    ] = None,
    neighbour_fraction: Annotated[
        float | None,
        Option(
            "Share of images with one or two more particles beside the one in the middle",
            at_least=0,
            at_most=1,
            flag="--neighbours",
            unset="0; with --dirty 0.4",
        ),
    ] = None,
    ramp: Annotated[
        float | None,
        Option(
            "Ramp across each image: its standard deviation over the noise's, rms",
            at_least=0,
            unset="0; with --dirty 0.33",
        ),
    ] = None,
    hot_pixel_fraction: Annotated[
        float | None,
        Option(
            "Share of images with one to three hot or dead pixels",
            at_least=0,
            at_most=1,
            flag="--hot-pixels",
            unset="0; with --dirty 0.02",
        ),
    ] = None,
    defocus_error_angstrom: Annotated[
        float | None,
        Option(
            "Error of each particle's defocus in the STAR, rms",
            unit="A",
            at_least=0,
            unset="0; with --dirty 300 A",
        ),
    ] = None,
    astigmatism_error_angstrom: Annotated[
        float | None,
        Option(
            "Error of each micrograph's astigmatism (a vector) in the STAR, rms",
            unit="A",
            at_least=0,
            unset="0; with --dirty 150 A",
        ),
    ] = None,
    signal_spread: Annotated[
        float | None,
        Option(
            "Spread of the particles' signal: of its logarithm, rms",
            at_least=0,
            at_most=2,
            unset="0; with --dirty 0.2",
        ),
    ] = None,
    bfactor_spread_angstrom2: Annotated[
        float | None,
        Option(
            "B-factor that each particle has more than the STAR says, rms",
            unit="A^2",
            at_least=0,
            unset="0; with --dirty 50 A^2",
        ),
    ] = None,
    ice_noise_fraction: Annotated[
        float | None,
        Option(
            "Share of the noise's variance that passes the CTF, as ice does",
            at_least=0,
            at_most=1,
            flag="--ice-noise",
            unset="0; with --dirty 0.3",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> Simulated:
    """Make particle images with known poses from a map, an atomic model or the built-in phantom.

    Several sources make a K-state mixture in the proportions `weights`. Maps keep their box and
    pixel size unless `box` or `pixel_size_angstrom` ask for others (resampled in Fourier space);
    models default to 2 A and a box 1.25 times as wide as the molecule. All states are brought to
    the grid of the first. `symmetry` averages maps and models over a point group; the phantom is
    C4, or C1 if that is asked.

    snr: the variance over all pixels of the noise-free image (with its CTF; mean over good
    particles, measured on up to 400 of them) divided by the variance over all pixels of the noise.
    `inf` adds no noise, and images keep the volume's grey scale (CTF times line integral); else
    each image's background has mean 0 and standard deviation 1. noise_colour: extra amplitude a of
    the noise at low frequency, 1 + a / (1 + (40 A s)^2).

    Views that are not preferred are uniform. A micrograph of
    `particles_per_micrograph` has one defocus (uniform in the range; each particle's own height
    adds `defocus_spread_angstrom` rms), one astigmatism (U - V, rms) and axis, and one optics
    group; the groups take turns and differ in the direction of `beam_tilt_mrad`. junk_fraction:
    share of empty images, ice and overlapping pairs, by turns.

    Groups may have pixel sizes, boxes and aberrations of their own (`group_...`, a value for each
    of `optics_groups`): the same particles, each group in a stack `particles_1.mrcs` ..., at the
    same SNR.

    dirty: what real stacks bring, all at once: junk, neighbours, ramps, hot pixels, a CTF that was
    estimated wrongly, uneven signal and B-factors, ice noise; each has an option that sets it
    alone, or otherwise. Poses and shifts are those of the clean set of the same seed.

    Writes `particles.mrcs`, `particles.star` (RELION 3.1, no poses), `truth.star` (poses, origins,
    rlnClassNumber, halfmapTruthJunk: 0 good, 1 empty, 2 ice, 3 overlap; the true CTF, and for a
    dirty set halfmapTruthNeighbours, ...Signal, ...RampX, ...RampY, ...HotPixels), the volumes
    `truth_1.mrc`..., and pictures. The same arguments and seed give the same bytes.

    Example: halfmap simulate phantom --out sim --n 1000 --snr 0.1 --box 96 --pixel-size 2

    Raises:
        InputError: an unreadable source, a box that does not hold the molecule, options out of
            range, or a folder in use.
    """
    parameters = recorded(simulate, locals())
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise InputError("source: expected a map, a model or the word phantom, got nothing")
    if weights is not None and len(weights) != len(sources):
        raise InputError(
            f"--weights: expected one for each of the {len(sources)} sources, got {len(weights)}"
        )
    recipe = Recipe(
        n=n,
        seed=seed,
        weights=tuple(weights) if weights else (1.0,) * len(sources),
        preferred_fraction=preferred_fraction,
        shift_rms_px=shift_rms_px,
        particles_per_micrograph=particles_per_micrograph,
        defocus_range_angstrom=(defocus_range_angstrom[0], defocus_range_angstrom[1]),
        defocus_spread_angstrom=defocus_spread_angstrom,
        astigmatism_angstrom=astigmatism_angstrom,
        voltage_kv=voltage_kv,
        spherical_aberration_mm=spherical_aberration_mm,
        amplitude_contrast=amplitude_contrast,
        phase_shift_deg=phase_shift_deg,
        bfactor_angstrom2=bfactor_angstrom2,
        optics_groups=optics_groups,
        beam_tilt_mrad=beam_tilt_mrad,
        junk_fraction=_or_usual(junk_fraction, DIRTY_JUNK, dirty=dirty),
    )
    groups = optics_groups_of(
        optics_groups,
        pixel_sizes=group_pixel_sizes_angstrom,
        boxes=group_boxes_px,
        magnifications=group_magnifications,
        beam_tilts=group_beam_tilts_mrad,
        trefoils=group_trefoils,
    )
    soil = DirtRecipe(
        **{
            name: _or_usual(parameters[name], usual, dirty=dirty)
            for name, usual in asdict(DIRTY).items()
        }
    )
    check_dirt(soil, snr)
    with (
        _one_thread(),
        Job.create("simulate", parameters, out, seed=seed, overwrite=overwrite) as job,
        Progress("simulate", quiet=quiet, file=job.folder / PROGRESS) as progress,
    ):
        volumes, pixel = load_volumes(
            sources, box=box, pixel_size_angstrom=pixel_size_angstrom, symmetry=symmetry
        )
        truth, dirt = draw_dirt(soil, with_aberrations(draw_truth(recipe), groups))
        for k, volume in enumerate(volumes, start=1):
            write_map(job.path(f"truth_{k}.mrc"), volume.numpy(), pixel)
            with drawing(f"truth_{k}.png"):
                save_map_picture(
                    job.path(f"truth_{k}.png"), volume.numpy(), pixel, title=f"state {k}"
                )
        scene = Scene(volumes, pixel, truth, dirt, soil.ice_noise_fraction)
        grids = [groups.grid(g, len(volumes[0]), pixel) for g in range(optics_groups)]
        progress.start_stage("images", n)
        if groups.have_grids:
            every = [
                of_group(
                    scene,
                    g,
                    load_volumes(
                        sources, box=grid[0], pixel_size_angstrom=grid[1], symmetry=symmetry
                    )[0],
                    grid[1],
                )
                for g, grid in enumerate(grids)
            ]
            stacks = [f"particles_{g + 1}.mrcs" for g in range(optics_groups)]
        else:
            every, stacks = [(scene, torch.arange(n))], ["particles.mrcs"]
        written = [
            write_images(job, progress, one, rows, name, snr=snr, noise_colour=noise_colour)
            for (one, rows), name in zip(every, stacks, strict=True)
        ]
        shown, variance = written[0]
        names = image_names([rows for _, rows in every], stacks)
        particles, known, optics = particle_tables(truth, dirt.stated, names, grids, pixel)
        if not soil.is_clean:
            known |= dirt.columns
            known |= ctf_columns(truth.ctf, per_group=False)
        write_star(job.path("particles.star"), {"optics": optics, "particles": particles})
        write_star(
            job.path("truth.star"), {"optics": optics, "particles": particles.with_columns(known)}
        )
        kinds = ("", "empty", "ice", "overlap")
        with drawing("particles.png"):
            save_class_gallery(
                job.path("particles.png"),
                shown,
                [f"{i + 1} {kinds[truth.junk[i]]}" for i in every[0][1][: len(shown)].tolist()],
                pixel_size_angstrom=pixel,
            )
        with drawing("orientations.png"):
            save_orientation_plot(
                job.path("orientations.png"), truth.angles_deg[truth.junk == GOOD].numpy()
            )
        job.update(
            signal_variance=variance,
            noise_variance=variance / snr,
            particles=n,
            box=volumes[0].shape[0],
            pixel_size_angstrom=pixel,
        )
        progress.note(
            f"{n} particles of {len(volumes)} volume{'s' * (len(volumes) > 1)}, box "
            f"{volumes[0].shape[0]}, {pixel:g} A"
        )
    leave_report(Path(out))
    return Simulated(Path(out), n)


def _or_usual(asked: float | None, usual: float, *, dirty: bool) -> float:
    """What was asked for; else what a dirty set has, or 0 in a clean one."""
    return asked if asked is not None else usual if dirty else 0.0


@contextmanager
def _one_thread() -> Iterator[None]:
    """The last bits of FFTs and vectorised functions depend on how work is split; the same seed
    must give the same bytes everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
