"""The work of `halfmap restore`: images brought to one view, batch by batch through the filters,
with a checkpoint after each batch."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.commands._corrected_images import restore_images, sums_of_view
from halfmap.engine.batching import in_halves
from halfmap.errors import InputError
from halfmap.fourier import (
    HalfPlane,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    lowpass,
)
from halfmap.io.mrc import open_stack
from halfmap.io.stack_writer import StackWriter, write_stack
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.particles import Particles
from halfmap.plots.tiles import save_class_gallery
from halfmap.resolution import Curve, fourier_shell_correlation
from halfmap.restoration import (
    StackSums,
    aligned_transform,
    in_plane_angles,
    measure_ssnr,
    wiener_ssnr,
    wiener_stack,
)
from halfmap.so3 import euler_to_matrix
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress, drawing

PER_IMAGE = ("divide", "flip", "wiener")
PER_STACK = ("wiener-stack", "wiener-ssnr")
_BATCH_PIXELS = 1 << 23  # 32 MB of float32 images at a time
_SHOWN = 6  # images in the picture of a restored stack, each raw and restored
_PAIR_COLUMNS = 6  # three pairs a row
# in the picture: a particle of 100 A or more is seen in single images at this resolution
SHOWN_TO_ANGSTROM = 15.0


@dataclass(frozen=True)
class View:
    """In-plane angle (degrees) and shift (pixels) of each image, relative to the mean viewing
    direction; 0 for images that are not used."""

    psi_deg: Float[Tensor, " n"]
    shift_px: Float[Tensor, "n 2"]


@dataclass(frozen=True)
class Task:
    """What is to be restored: `half` is 0 or 1 for each image, -1 for one that is not used; without
    a `view` the images are taken as aligned, or are not averaged."""

    data: Particles
    method: str
    constant: float
    view: View | None
    half: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The images used."""
        return np.flatnonzero(self.half >= 0)

    @property
    def plane(self) -> HalfPlane:
        return half_plane(self.data.box, largest_radius(self.data.box))


def common_view(
    data: Particles, chosen: np.ndarray, tolerance: float, *, must_agree: bool
) -> View | None:
    """How to bring the chosen images, of one view, together; None without poses, or where views
    differ and need not agree.

    Raises:
        InputError: views differ by more than `tolerance` degrees and must agree.
    """
    if not (data.has_poses or data.has_in_plane_poses):
        return None
    rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg[chosen]))
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
            f"{data.path}: row {chosen[worst] + 1} looks {away[worst]:.1f} degrees away from the "
            f"mean view, expected one view (within {tolerance:g}); choose one class with --class, "
            "select the images, or use halfmap reconstruct"
        )
    psi_deg = torch.zeros(len(data))
    psi_deg[torch.from_numpy(chosen)] = psi.float()
    return View(psi_deg, torch.from_numpy(data.shift_angstrom / data.pixel_size_angstrom).float())


# ------------------------------------------------------------------ one image from all


def restore_stack(task: Task, job: Job, progress: Progress) -> Curve | None:
    """`restored.mrcs` from all images, and the half images and their FRC where there are enough."""
    data, plane = task.data, task.plane
    sums = _summed(task, job, progress)

    def estimate(one: StackSums) -> Float[Tensor, "N N"]:
        samples = (
            wiener_stack(one, constant=task.constant)
            if task.method == "wiener-stack"
            else wiener_ssnr(one, measure_ssnr(one, plane), plane)
        )
        return inverse_fourier_transform(samples[None], plane)[0].float()

    whole = sums[0] + sums[1]
    restored = estimate(whole)
    write_stack(job.path("restored.mrcs"), restored[None].numpy(), data.pixel_size_angstrom)
    pictures = {
        "raw image": torch.from_numpy(data.images(task.rows[:1])[0]),
        f"{task.method}, {whole.images} images": restored,
    }
    if task.method == "wiener-ssnr":
        _write_ssnr(measure_ssnr(whole, plane).numpy(), data, job)
    curve = None
    if min(one.images for one in sums) >= (2 if task.method == "wiener-ssnr" else 1):
        pair = [estimate(one) for one in sums]
        for name, image in zip(("half1", "half2"), pair, strict=True):
            write_stack(job.path(f"{name}.mrcs"), image[None].numpy(), data.pixel_size_angstrom)
            pictures[name] = image
        curve = fourier_shell_correlation(*pair, pixel_size_angstrom=data.pixel_size_angstrom)
    else:
        progress.note("too few images for two halves: no FRC")
    _show(job, {name: image.numpy() for name, image in pictures.items()}, data.pixel_size_angstrom)
    return curve


def _summed(task: Task, job: Job, progress: Progress) -> list[StackSums]:
    """The sums of both halves, from the checkpoint on."""
    plane, names = task.plane, [f.name for f in fields(StackSums)]
    sums, done = [StackSums.zero(len(plane)) for _ in range(2)], 0
    if (saved := job.load_checkpoint()) is not None:
        arrays, meta = saved
        done = int(meta["iteration"])
        sums = [
            StackSums(
                **{n: torch.from_numpy(arrays[f"half{i}_{n}"]) for n in names if n != "images"},
                images=int(arrays[f"half{i}_images"]),
            )
            for i in (1, 2)
        ]
        progress.note(f"going on after batch {done}")
    number = 0
    for i in range(2):
        for rows in _batches(np.flatnonzero(task.half == i), task.data.box):
            number += 1
            if number > done:
                for _, one in in_halves(rows, partial(_aligned_sums, task)):
                    sums[i] += one
                job.event(iteration=number, images=len(rows), half=i + 1)
                arrays = {
                    f"half{j}_{n}": np.asarray(getattr(one, n))
                    for j, one in enumerate(sums, start=1)
                    for n in names
                }
                job.save_checkpoint(arrays, {"iteration": number})
            progress.advance(len(rows))
    return sums


def _aligned_sums(task: Task, rows: np.ndarray) -> StackSums:
    data, view, plane = task.data, task.view, task.plane
    psi = torch.zeros(len(rows)) if view is None else view.psi_deg[rows]
    shift = torch.zeros(len(rows), 2) if view is None else view.shift_px[rows]
    return sums_of_view(data, rows, plane, psi, shift)


def _write_ssnr(ssnr: np.ndarray, data: Particles, job: Job) -> None:
    shells = np.arange(len(ssnr))
    table = {
        "rlnSpectralIndex": shells,
        "rlnResolution": shells / (data.box * data.pixel_size_angstrom),
        "rlnSsnrMap": ssnr,
    }
    write_star(job.path("ssnr.star"), {"ssnr": Table.from_columns(table)})


# ------------------------------------------------------------------ every image by itself


def restore_each(task: Task, job: Job, progress: Progress) -> Curve | None:
    """`restored.mrcs`, an image for each, and `particles.star`; the FRC of the averages of the
    halves where there is a view to average in."""
    data, plane, view = task.data, task.plane, task.view
    averages, done, written = torch.zeros(2, len(plane), dtype=torch.complex128), 0, None
    unfinished = job.path("restored.partial")
    if (saved := job.load_checkpoint()) is not None and unfinished.exists():
        arrays, meta = saved
        done, written = int(meta["iteration"]), arrays["written"]
        averages = torch.from_numpy(arrays["averages"])
        progress.note(f"going on after batch {done}")
    stack = job.path("restored.mrcs")
    with StackWriter(stack, data.pixel_size_angstrom, partial=unfinished, saved=written) as writer:
        for number, rows in enumerate(_batches(task.rows, data.box), start=1):
            if number > done:
                for some, restored in in_halves(rows, partial(_restored, task)):
                    writer.append(restored.numpy())
                    if view is not None:
                        averages += _aligned_averages(restored, some, task.half[some], view, plane)
                job.event(iteration=number, images=len(rows))
                arrays = {"averages": averages.numpy(), "written": writer.save()}
                job.save_checkpoint(arrays, {"iteration": number})
            progress.advance(len(rows))
    _without_ctf(data.take(task.rows), job).write_star(job.path("particles.star"))
    raw = data.images(task.rows[:_SHOWN])
    _show_pairs(job, task, raw, open_stack(stack).read(np.arange(len(raw))))
    if view is None or {0, 1} - set(task.half.tolist()):
        progress.note("no FRC: it needs poses and images of one view, to average two halves")
        return None
    pair = inverse_fourier_transform(averages, plane)
    return fourier_shell_correlation(*pair, pixel_size_angstrom=data.pixel_size_angstrom)


def _restored(task: Task, rows: np.ndarray) -> Float[Tensor, "B N N"]:
    return restore_images(task.data, rows, task.method, task.constant)


def _aligned_averages(
    restored: Float[Tensor, "B N N"],
    rows: np.ndarray,
    half: np.ndarray,
    view: View,
    plane: HalfPlane,
) -> Complex[Tensor, "2 J"]:
    """The sums of the aligned images of each half."""
    sums = torch.zeros(2, len(plane), dtype=torch.complex128)
    for i in range(2):
        inside = half == i
        if inside.any():
            psi, shift = view.psi_deg[rows[inside]], view.shift_px[rows[inside]]
            sums[i] = aligned_transform(
                restored[torch.from_numpy(inside)], plane, psi_deg=psi, shift_px=shift
            ).sum(0)
    return sums


def _without_ctf(data: Particles, job: Job) -> Particles:
    """The data set of the restored stack: its images in their order, and no CTF left to undo."""
    names = [f"{i + 1:06d}@restored.mrcs" for i in range(len(data))]
    data = data.with_transfer(None).stored_as_read()
    return replace(
        data,
        table=data.table.without("csBlobSign").with_columns({"rlnImageName": names}),
        optics=None if data.optics is None else data.optics.without("csBlobSign"),
        files=("restored.mrcs",),
        stack_paths=(job.path("restored.mrcs"),),
        image_file=np.zeros(len(data), np.int64),
        image_index=np.arange(len(data)),
    )


def _show_pairs(job: Job, task: Task, raw: np.ndarray, restored: np.ndarray) -> None:
    """Each raw image beside what was made of it, low-passed, so that an eye sees the particle."""
    pixel = task.data.pixel_size_angstrom
    shown_to = max(SHOWN_TO_ANGSTROM, 4 * pixel)
    pairs = torch.from_numpy(np.stack([raw, restored], 1).reshape(-1, *raw.shape[1:])).float()
    numbers = task.rows[: len(raw)] + 1
    titles = [f"{what} {number}" for number in numbers for what in ("raw", task.method)]
    titles[0] += f", to {shown_to:.0f} Å"
    with drawing("restored.png"):
        save_class_gallery(
            job.path("pictures/restored.png"),
            lowpass(pairs, shown_to, pixel, dimensions=2),
            titles,
            pixel_size_angstrom=pixel,
            columns=_PAIR_COLUMNS,
        )


def _show(job: Job, pictures: dict[str, np.ndarray], pixel: float) -> None:
    with drawing("restored.png"):
        save_class_gallery(
            job.path("pictures/restored.png"),
            np.stack(list(pictures.values())),
            list(pictures),
            pixel_size_angstrom=pixel,
        )


def _batches(rows: np.ndarray, box: int) -> Iterator[np.ndarray]:
    size = max(1, _BATCH_PIXELS // box**2)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
