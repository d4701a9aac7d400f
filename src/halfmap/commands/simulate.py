"""The job `halfmap simulate`: volumes from maps, models or the phantom; particles drawn from them;
images, STAR and truth written."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
from halfmap.errors import InputError
from halfmap.io.mrc import StackWriter, read_density, write_map
from halfmap.io.relion import ctf_columns
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.options import command, recorded
from halfmap.plots.orientations import save_orientation_plot
from halfmap.plots.tiles import save_class_gallery, save_map_picture
from halfmap.resampling import resample_volume
from halfmap.simulation.atomic_models import Atoms, density_from_atoms, read_atoms
from halfmap.simulation.dirt import (
    Dirt,
    DirtRecipe,
    add_hot_pixels,
    add_neighbours,
    check_dirt,
    draw_dirt,
    mixed_noise,
    ramps,
)
from halfmap.simulation.forward_model import (
    GOOD,
    Recipe,
    Truth,
    clean_images,
    draw_truth,
    noise_amplitude,
    normalise,
    symmetrise_volume,
)
from halfmap.simulation.optics_groups import optics_groups_of, with_aberrations
from halfmap.simulation.phantom import phantom_atoms
from halfmap.symmetries import symmetry_matrices
from halfmap.transfer_function import CTFParameters
from halfmap.workspace.job import Job
from halfmap.workspace.progress import PROGRESS, Progress, drawing

PHANTOM = "phantom"
DEFAULT_PIXEL_ANGSTROM = 2.0
_MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".pdb.gz", ".ent.gz", ".cif.gz", ".mmcif.gz")
_BATCH_SAMPLES = 4_000_000  # Fourier samples at a time: about 0.5 GB
_PILOT = 400  # good particles on which the signal's variance is measured
_SHOWN = 24
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


@dataclass(frozen=True)
class Scene:
    """What is seen, and the truth of each image."""

    volumes: Sequence[Tensor]
    pixel_size_angstrom: float
    truth: Truth
    dirt: Dirt
    ice_noise_fraction: float


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
                _of_group(
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
            _write_images(job, progress, one, rows, name, snr=snr, noise_colour=noise_colour)
            for (one, rows), name in zip(every, stacks, strict=True)
        ]
        shown, variance = written[0]
        names = _image_names([rows for _, rows in every], stacks)
        particles, known, optics = _tables(truth, dirt.stated, names, grids, pixel)
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


def load_volumes(
    sources: Sequence[str | Path],
    *,
    box: int | None = None,
    pixel_size_angstrom: float | None = None,
    symmetry: str | None = None,
) -> tuple[list[Tensor], float]:
    """Volumes `(N, N, N)` of all sources on the grid of the first (or the one asked for), and their
    pixel size, A."""
    matrices = symmetry_matrices(symmetry or "C1")
    volumes: list[Tensor] = []
    for source in sources:
        atoms = _atoms(source, symmetry)
        if atoms is None:
            volume, own_pixel = _map(Path(source), pixel_size_angstrom)
            pixel_size_angstrom = pixel_size_angstrom or own_pixel
            box = box or _same_extent(len(volume), own_pixel, pixel_size_angstrom)
            volume = resample_volume(
                volume, own_pixel, box=box, new_pixel_size_angstrom=pixel_size_angstrom
            )
        else:
            pixel_size_angstrom = pixel_size_angstrom or DEFAULT_PIXEL_ANGSTROM
            box = box or 8 * math.ceil(2.5 * atoms.radius_angstrom() / pixel_size_angstrom / 8)
            volume = density_from_atoms(atoms, box=box, pixel_size_angstrom=pixel_size_angstrom)
        volumes.append(
            symmetrise_volume(volume, matrices)
            if len(matrices) > 1 and not _is_phantom(source)
            else volume
        )
    assert pixel_size_angstrom is not None  # there is at least one source
    return volumes, pixel_size_angstrom


def _same_extent(box: int, pixel: float, new_pixel: float) -> int:
    return box if new_pixel == pixel else 2 * round(box * pixel / new_pixel / 2)


def _is_phantom(source: str | Path) -> bool:
    return str(source).partition(":")[0] == PHANTOM


def _atoms(source: str | Path, symmetry: str | None) -> Atoms | None:
    """Atoms about the origin of a model or of the phantom; None where the source is a map."""
    if _is_phantom(source):
        state = str(source).partition(":")[2] or "0"
        if state not in ("0", "1"):
            raise InputError(
                f"source: the phantom's states are phantom:0 and phantom:1, got {source}"
            )
        group = (symmetry or "C4").upper()
        if group not in ("C4", "C1"):
            raise InputError(f"--symmetry: the phantom exists as C4 and C1, got {symmetry}")
        return phantom_atoms(symmetry=group, state=int(state))
    return read_atoms(source).centred() if str(source).lower().endswith(_MODEL_SUFFIXES) else None


def _map(path: Path, pixel_size_angstrom: float | None) -> tuple[Tensor, float]:
    volume, pixel = read_density(path)
    if pixel <= 0 and pixel_size_angstrom is None:
        raise InputError(f"{path}: the header has no voxel size; say it with --pixel-size")
    return torch.from_numpy(volume), pixel if pixel > 0 else float(pixel_size_angstrom or 0)


def _write_images(
    job: Job,
    progress: Progress,
    scene: Scene,
    rows: Int[Tensor, " M"],
    name: str,
    *,
    snr: float,
    noise_colour: float,
) -> tuple[np.ndarray, float]:
    """Write the stack of some particles batch by batch; returns the first images and the signal's
    variance."""
    volumes, pixel, truth = scene.volumes, scene.pixel_size_angstrom, scene.truth
    box = volumes[0].shape[0]
    batch = max(1, min(1000, int(_BATCH_SAMPLES / (math.pi / 8 * box**2))))
    good = rows[truth.junk[rows] == GOOD]
    pilot = good[torch.linspace(0, len(good) - 1, min(_PILOT, len(good))).round().long()]
    variances = [
        clean_images(volumes, truth, part, pixel).var(dim=(1, 2), correction=0)
        for part in pilot.split(batch)
    ]
    variance = float(torch.cat(variances).mean())
    amplitude = noise_amplitude(box, pixel, noise_colour) * math.sqrt(variance / snr)
    shown: list[Tensor] = []
    with StackWriter(job.path(name), pixel) as stack:
        for indices in rows.split(batch):
            images = _images(scene, indices, amplitude, math.sqrt(variance / snr))
            stack.append(images.numpy())
            shown.extend(images[: max(0, _SHOWN - len(shown))].clone())
            progress.advance(len(indices))
    return torch.stack(shown).numpy(), variance


def _images(
    scene: Scene, indices: Int[Tensor, " B"], amplitude: Float[Tensor, "N H"], noise_sd: float
) -> Float[Tensor, "B N N"]:
    """Images as a program that extracts particles writes them; those without noise on the volume's
    grey scale."""
    truth, dirt, pixel = scene.truth, scene.dirt, scene.pixel_size_angstrom
    images = clean_images(scene.volumes, truth, indices, pixel)
    images = images * dirt.signal[indices][:, None, None]
    images = add_neighbours(images, scene.volumes, truth, dirt, indices, pixel)
    if noise_sd == 0:
        return images
    images = images + mixed_noise(indices, truth, amplitude, pixel, scene.ice_noise_fraction)
    images = images + noise_sd * ramps(dirt, indices, images.shape[-1])
    return normalise(add_hot_pixels(images, truth, dirt, indices, noise_sd))


def _or_usual(asked: float | None, usual: float, *, dirty: bool) -> float:
    """What was asked for; else what a dirty set has, or 0 in a clean one."""
    return asked if asked is not None else usual if dirty else 0.0


def _of_group(
    scene: Scene, group: int, volumes: list[Tensor], pixel_size_angstrom: float
) -> tuple[Scene, Int[Tensor, " M"]]:
    """The scene on the grid of an optics group, and its particles: their shifts in Angstrom are
    those of the set."""
    shift_px = scene.truth.shift_px * (scene.pixel_size_angstrom / pixel_size_angstrom)
    own = replace(
        scene,
        volumes=volumes,
        pixel_size_angstrom=pixel_size_angstrom,
        truth=replace(scene.truth, shift_px=shift_px),
    )
    return own, torch.nonzero(scene.truth.optics_group == group).flatten()


def _image_names(rows: Sequence[Tensor], stacks: Sequence[str]) -> list[str]:
    """The image name of each particle, of those that lie in each stack in their order."""
    names = [""] * sum(map(len, rows))
    for own, stack in zip(rows, stacks, strict=True):
        for place, row in enumerate(own.tolist(), start=1):
            names[row] = f"{place:06d}@{stack}"
    return names


def _tables(
    truth: Truth,
    stated: CTFParameters,
    names: Sequence[str],
    grids: Sequence[tuple[int, float]],
    pixel: float,
) -> tuple[Table, dict[str, np.ndarray], Table]:
    """The particles without their poses, with the CTF `stated`; the columns of the truth, and the
    optics table."""
    groups = int(truth.optics_group.max()) + 1
    boxes, sizes = (np.array(column[:groups]) for column in zip(*grids, strict=True))
    first = torch.tensor([int(torch.nonzero(truth.optics_group == g)[0]) for g in range(groups)])
    optics: dict[str, Iterable[object]] = {
        "rlnOpticsGroup": np.arange(1, groups + 1),
        "rlnOpticsGroupName": [f"opticsGroup{g}" for g in range(1, groups + 1)],
        "rlnImagePixelSize": sizes,
        "rlnMicrographOriginalPixelSize": sizes,
        "rlnImageSize": boxes,
        "rlnImageDimensionality": np.full(groups, 2),
        **ctf_columns(stated.take(first), per_group=True),
    }
    particles: dict[str, Iterable[object]] = {
        "rlnImageName": names,
        "rlnMicrographName": [f"mic{m + 1:05d}.mrc" for m in truth.micrograph.tolist()],
        "rlnOpticsGroup": truth.optics_group.numpy() + 1,
        **ctf_columns(stated, per_group=False),
    }
    known = {
        "rlnAngleRot": truth.angles_deg[:, 0].numpy(),
        "rlnAngleTilt": truth.angles_deg[:, 1].numpy(),
        "rlnAnglePsi": truth.angles_deg[:, 2].numpy(),
        "rlnOriginXAngst": truth.shift_px[:, 0].numpy() * pixel,
        "rlnOriginYAngst": truth.shift_px[:, 1].numpy() * pixel,
        "rlnClassNumber": truth.state.numpy() + 1,
        "halfmapTruthJunk": truth.junk.numpy(),
    }
    return Table.from_columns(particles), known, Table.from_columns(optics)


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
