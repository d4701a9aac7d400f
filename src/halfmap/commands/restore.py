"""`halfmap restore`: undo the CTF of a stack of particle images by any of the lecture's methods
(see `undo_ctf`)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, half_plane, inverse_fourier_transform, largest_radius
from halfmap.io.mrc import StackWriter, write_stack
from halfmap.io.relion import DEFOCUS
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.particles import Particles, load_particles
from halfmap.plots.curves import save_fsc_plot
from halfmap.plots.tiles import save_class_gallery
from halfmap.resolution import (
    Curve,
    HalfMapCurves,
    fourier_shell_correlation,
    resolution_at,
    write_fsc_star,
)
from halfmap.restoration import (
    StackSums,
    aligned_transform,
    divide,
    in_plane_angles,
    measure_ssnr,
    phase_flip,
    stack_sums,
    turned_ctf,
    wiener_filter,
    wiener_ssnr,
    wiener_stack,
)
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import CTFParameters, beam_tilt_phase, ctf
from halfmap.workspace.job import Job
from halfmap.workspace.machine import use_threads
from halfmap.workspace.progress import Progress, drawing

PER_IMAGE = ("divide", "flip", "wiener")
PER_STACK = ("wiener-stack", "wiener-ssnr")
_BATCH_PIXELS = 1 << 23  # 32 MB of float32 images at a time


@dataclass(frozen=True)
class RestoreResult:
    """What a restore job gives: its folder, the images used, those set aside, and the FRC of two
    independent halves if there is one."""

    folder: Path
    images: int
    set_aside: int
    curve: Curve | None


@dataclass(frozen=True)
class _View:
    """In-plane angle (degrees) and shift (pixels) of each image, relative to the mean viewing
    direction."""

    psi_deg: Float[Tensor, " n"]
    shift_px: Float[Tensor, "n 2"]


def restore(
    particles: str | Path,
    method: str,
    out: str | Path,
    *,
    constant: float = 0.1,
    class_number: int | None = None,
    view_tolerance: float = 3.0,
    data_dir: str | Path | None = None,
    seed: int = 1,
    overwrite: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> RestoreResult:
    """Undo the CTF of particle images: `divide`, `flip`, `wiener` each image; `wiener-stack`,
    `wiener-ssnr` one image from all.

    The per-image methods write `restored.mrcs` and `particles.star`, without the defocus columns,
    so that no program undoes the CTF twice. The stack methods take the images for views of one
    object in one direction, centre them and turn them back by their poses (without poses they are
    taken as aligned), and write `restored.mrcs`, and from independent halves `half1.mrcs`,
    `half2.mrcs` and their FRC, `fsc.star` and `fsc.png`; `wiener-ssnr` also what it measured,
    `ssnr.star`. The per-image methods give the FRC of the averages of two halves, where there are
    poses and the views agree.

    Args:
        particles: STAR, .cs or MRC stack with CTF parameters.
        method: one of `divide`, `flip`, `wiener`, `wiener-stack`, `wiener-ssnr`.
        out: job folder.
        constant: the k of `wiener` and `wiener-stack`, > 0.
        class_number: use the particles of this class only.
        view_tolerance: largest angle between a viewing direction and their mean, degrees, for
            images to be of one view.
        data_dir: further folder to look for the stacks in.
        seed: splits the halves where the file has no half sets (rlnRandomSubset).
        overwrite: replace a job folder.
        threads: CPU threads; default all.
        quiet: no progress line.

    Raises:
        InputError: unknown method, bad constant, no CTF, no usable image, images of different views
            (stack methods), folder in use.
    """
    if method not in PER_IMAGE + PER_STACK:
        raise InputError(f"--method {method}: expected one of {', '.join(PER_IMAGE + PER_STACK)}")
    if not 0 < constant < math.inf:
        raise InputError(
            f"--constant {constant}: expected k > 0; --method divide is the filter without k"
        )
    if not 0 <= view_tolerance <= 180:
        raise InputError(f"--view-tolerance {view_tolerance:g}: expected 0 to 180 degrees")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    use_threads(threads)
    data = load_particles(particles, data_dir=data_dir)
    if not data.has_ctf:
        raise InputError(
            f"{data.path}: no defocus columns (_rlnDefocusU, ...), so there is no CTF to undo; "
            "give the STAR of the CTF estimation"
        )
    file_row = np.arange(len(data)) + 1  # what a user is told
    if class_number is not None:
        chosen = data.class_number == class_number
        if not chosen.any():
            raise InputError(
                f"--class {class_number}: no particle of {data.path} is in it; it has classes "
                f"{_few(np.unique(data.class_number))}"
            )
        data, file_row = data.take(chosen), file_row[chosen]
    view = _common_view(data, file_row, view_tolerance, must_agree=method in PER_STACK)
    parameters = {
        "particles": particles,
        "method": method,
        "constant": constant,
        "class_number": class_number,
        "view_tolerance": view_tolerance,
        "data_dir": data_dir,
        "threads": threads,
    }
    with (
        Job.create("restore", parameters, out, seed=seed, overwrite=overwrite) as job,
        Progress("restore", quiet=quiet) as progress,
    ):
        for note in data.notes:
            progress.note(note)
        bad = data.find_bad_images(np.arange(len(data)))
        if bad:
            job.event(set_aside={int(file_row[row]): reason for row, reason in bad.items()})
            progress.note(
                f"{len(bad)} images set aside, listed in events.jsonl; the first: row "
                f"{file_row[min(bad)]}, {bad[min(bad)]}"
            )
        good = np.setdiff1d(np.arange(len(data)), np.fromiter(bad, np.int64, len(bad)))
        if not len(good):
            raise InputError(
                f"{data.path}: no usable image among {len(data)}; the first: row {file_row[0]}, "
                f"{bad[0]}"
            )
        data = data.take(good)
        view = None if view is None else _View(view.psi_deg[good], view.shift_px[good])
        progress.start_stage(method, len(data))
        halves = _halves(data, seed)
        if method in PER_STACK:
            curve = _restore_stack(data, method, constant, view, halves, job, progress)
        else:
            curve = _restore_each(data, method, constant, view, halves, job, progress)
        if curve is not None:
            write_fsc_star(job.path("fsc.star"), HalfMapCurves(unmasked=curve))
            with drawing("fsc.png"):
                save_fsc_plot(
                    job.path("fsc.png"),
                    {f"{method}, two halves": curve},
                    title="Fourier ring correlation of two halves",
                )
            found = {
                "resolution_angstrom": resolution_at(curve, 0.143),
                "resolution_angstrom_at_0.5": resolution_at(curve, 0.5),
            }
            job.update(**found)
        job.update(images=len(data), set_aside=len(bad))
    return RestoreResult(job.folder, len(data), len(bad), curve)


# ------------------------------------------------------------------ one image from all


def _restore_stack(
    data: Particles,
    method: str,
    constant: float,
    view: _View | None,
    halves: tuple[np.ndarray, np.ndarray],
    job: Job,
    progress: Progress,
) -> Curve | None:
    plane = half_plane(data.box, largest_radius(data.box))
    sums = [StackSums.zero(len(plane)) for _ in halves]
    for i, half in enumerate(halves):
        for rows in _batches(half, data.box):
            sums[i] += _aligned_sums(data, rows, view, plane)
            progress.advance(len(rows))

    def estimate(one: StackSums) -> Float[Tensor, "N N"]:
        samples = (
            wiener_stack(one, constant=constant)
            if method == "wiener-stack"
            else wiener_ssnr(one, measure_ssnr(one, plane), plane)
        )
        return inverse_fourier_transform(samples[None], plane)[0].float()

    whole = sums[0] + sums[1]
    restored = estimate(whole)
    write_stack(job.path("restored.mrcs"), restored[None].numpy(), data.pixel_size_angstrom)
    pictures = {
        "raw image": torch.from_numpy(data.images(np.array([0]))[0]),
        f"{method}, {whole.images} images": restored,
    }
    if method == "wiener-ssnr":
        ssnr = measure_ssnr(whole, plane).numpy()
        shells = np.arange(len(ssnr))
        table = {
            "rlnSpectralIndex": shells,
            "rlnResolution": shells / (data.box * data.pixel_size_angstrom),
            "rlnSsnrMap": ssnr,
        }
        write_star(job.path("ssnr.star"), {"ssnr": Table.from_columns(table)})
    curve = None
    if min(one.images for one in sums) >= (2 if method == "wiener-ssnr" else 1):
        pair = [estimate(one) for one in sums]
        for name, image in zip(("half1", "half2"), pair, strict=True):
            write_stack(job.path(f"{name}.mrcs"), image[None].numpy(), data.pixel_size_angstrom)
            pictures[name] = image
        curve = fourier_shell_correlation(*pair, pixel_size_angstrom=data.pixel_size_angstrom)
    else:
        progress.note("too few images for two halves: no FRC")
    with drawing("restored.png"):
        save_class_gallery(
            job.path("restored.png"),
            np.stack([p.numpy() for p in pictures.values()]),
            list(pictures),
        )
    return curve


def _aligned_sums(
    data: Particles, rows: np.ndarray, view: _View | None, plane: HalfPlane
) -> StackSums:
    images = torch.from_numpy(data.images(rows))
    parameters = CTFParameters.from_particles(data, rows)
    psi = torch.zeros(len(rows)) if view is None else view.psi_deg[rows]
    shift = torch.zeros(len(rows), 2) if view is None else view.shift_px[rows]
    parameters = turned_ctf(parameters, psi)
    frequencies = plane.frequencies(data.pixel_size_angstrom)
    samples = (
        aligned_transform(images, plane, psi_deg=psi, shift_px=shift)
        * beam_tilt_phase(parameters, *frequencies).conj()
    )
    return stack_sums(
        samples, ctf(parameters, *frequencies), torch.from_numpy(data.ctf_premultiplied[rows])
    )


# ------------------------------------------------------------------ every image by itself


def _restore_each(
    data: Particles,
    method: str,
    constant: float,
    view: _View | None,
    halves: tuple[np.ndarray, np.ndarray],
    job: Job,
    progress: Progress,
) -> Curve | None:
    plane = half_plane(data.box, largest_radius(data.box))
    averages = [torch.zeros(len(plane), dtype=torch.complex128) for _ in halves]
    gallery: tuple[np.ndarray, np.ndarray] | None = None
    with StackWriter(job.path("restored.mrcs"), data.pixel_size_angstrom) as writer:
        for rows in _batches(np.arange(len(data)), data.box):
            images = torch.from_numpy(data.images(rows))
            restored = restore_images(data, rows, images, method, constant)
            writer.append(restored.numpy())
            gallery = gallery or (images[:4].numpy(), restored[:4].numpy())
            for i, half in enumerate(halves):
                inside = np.isin(rows, half)
                if view is not None and inside.any():
                    psi, shift = view.psi_deg[rows[inside]], view.shift_px[rows[inside]]
                    averages[i] += aligned_transform(
                        restored[torch.from_numpy(inside)], plane, psi_deg=psi, shift_px=shift
                    ).sum(0)
            progress.advance(len(rows))
    _without_ctf(data, job).write_star(job.path("particles.star"))
    if gallery is not None:
        titles = [f"raw {i + 1}" for i in range(len(gallery[0]))] + [
            f"{method} {i + 1}" for i in range(len(gallery[1]))
        ]
        with drawing("restored.png"):
            save_class_gallery(job.path("restored.png"), np.concatenate(gallery), titles)
    if view is None or min(map(len, halves)) == 0:
        progress.note("no FRC: it needs poses and images of one view, to average two halves")
        return None
    pair = inverse_fourier_transform(torch.stack(averages), plane)
    return fourier_shell_correlation(*pair, pixel_size_angstrom=data.pixel_size_angstrom)


def restore_images(
    data: Particles,
    rows: np.ndarray,
    images: Float[Tensor, "B N N"],
    method: str,
    constant: float = 0.1,
) -> Float[Tensor, "B N N"]:
    """Images `rows` of a data set restored one by one, over their whole transform.

    The CTF of premultiplied images is C^2: division is by C^2, phases are right already, and
    Wiener's `C X` is what is stored.
    """
    box = data.box
    ky, kx = torch.meshgrid(torch.fft.fftfreq(box), torch.fft.rfftfreq(box), indexing="ij")
    frequencies = kx.flatten() / data.pixel_size_angstrom, ky.flatten() / data.pixel_size_angstrom
    parameters = CTFParameters.from_particles(data, rows)
    c = ctf(parameters, *frequencies)
    x: Complex[Tensor, "B J"] = (
        torch.fft.rfft2(images).flatten(1) * beam_tilt_phase(parameters, *frequencies).conj()
    )
    done = torch.from_numpy(data.ctf_premultiplied[rows])[:, None]
    if method == "wiener":
        restored = torch.where(
            done, x / (c.square() + constant), wiener_filter(x, c, constant=constant)
        )
    else:
        restored = {"divide": divide, "flip": phase_flip}[method](
            x, torch.where(done, c.square(), c)
        )
    return torch.fft.irfft2(restored.unflatten(1, ky.shape), s=(box, box))


def _without_ctf(data: Particles, job: Job) -> Particles:
    """The data set of the restored stack: its images in their order, and no CTF left to undo."""
    gone = (*DEFOCUS, "rlnCtfDataAreCtfPremultiplied", "csBlobSign")
    names = [f"{i + 1:06d}@restored.mrcs" for i in range(len(data))]
    return replace(
        data,
        table=data.table.without(*gone).with_columns({"rlnImageName": names}),
        optics=None if data.optics is None else data.optics.without(*gone),
        files=("restored.mrcs",),
        stack_paths=(job.path("restored.mrcs"),),
        image_file=np.zeros(len(data), np.int64),
        image_index=np.arange(len(data)),
    )


# ------------------------------------------------------------------ views, halves, batches


def _common_view(
    data: Particles, file_row: np.ndarray, tolerance: float, *, must_agree: bool
) -> _View | None:
    """How to bring the images of one view together; None without poses, or where views differ and
    need not agree."""
    if not data.has_poses:
        return None
    rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg))
    x, y, z = (
        rotations[:, 2].mean(0).tolist()
    )  # viewing direction in object coordinates: the last row
    mean = torch.tensor(
        [np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(np.hypot(x, y), z)), 0.0],
        dtype=torch.float64,
    )
    psi, away = in_plane_angles(rotations, euler_to_matrix(mean))
    worst = int(away.argmax())
    if away[worst] > tolerance:
        if not must_agree:
            return None
        raise InputError(
            f"{data.path}: row {file_row[worst]} looks {away[worst]:.1f} degrees away from the "
            "mean view, expected one view "
            f"(within {tolerance:g}); choose one class with --class, select the images, or use "
            "halfmap reconstruct"
        )
    return _View(
        psi.float(), torch.from_numpy(data.shift_angstrom / data.pixel_size_angstrom).float()
    )


def _halves(data: Particles, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two independent halves: the file's half sets, or a random split."""
    if set(np.unique(data.half_set)) == {1, 2}:
        return np.flatnonzero(data.half_set == 1), np.flatnonzero(data.half_set == 2)
    order = np.random.default_rng(seed).permutation(len(data))
    return np.sort(order[: (len(data) + 1) // 2]), np.sort(order[(len(data) + 1) // 2 :])


def _batches(rows: np.ndarray, box: int) -> Iterator[np.ndarray]:
    size = max(1, _BATCH_PIXELS // box**2)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
