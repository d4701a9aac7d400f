"""One particle with all that is known of it: image, CTF, the reference beside it, and where it may
have been seen from."""

import base64
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.checkpoint import state_from_arrays
from halfmap.engine.image_model import noise_variance
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.fourier import half_plane, inverse_fourier_transform, largest_radius, shift_phases
from halfmap.pages.pictures import png, to_grey
from halfmap.pages.selection import smoothed
from halfmap.particles import Particles, load_particles
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import direction_pixels, euler_to_matrix, grid_step_deg
from halfmap.symmetries import point_group
from halfmap.transfer_function import ctf as ctf_of_frequencies
from halfmap.workspace.job import load_checkpoint
from halfmap.workspace.progress import Progress
from halfmap.workspace.records import load_record

ORDER = 3  # of the directions that are weighed: 768, 7.5 degrees apart
SHIFT_RANGE_PX = 2.0  # about the shift that was found
_ROWS, _COLUMNS = 60, 120  # of the sphere as it is sent
_SHOWN = 256  # pixels of a picture
_USUAL_RADIUS = 0.45  # of the box, where no diameter was given: the commands' own default


@dataclass(frozen=True)
class Opened:
    """A job's particles, its last state and its parameters."""

    particles: Particles
    state: State
    parameters: dict[str, Any]

    @property
    def radius_px(self) -> float:
        """Radius of the particle."""
        diameter = self.parameters.get("diameter_angstrom")
        if not diameter:
            return _USUAL_RADIUS * self.particles.box
        return float(diameter) / 2 / self.particles.pixel_size_angstrom

    @property
    def dimensions(self) -> int:
        return self.state.references.ndim - 2


@lru_cache(maxsize=2)
def _opened(folder: str, stamp: float) -> Opened:
    place = Path(folder)
    record, saved = load_record(place), load_checkpoint(place)
    if saved is None:
        raise InputError(f"{place}: the job keeps no checkpoint, so there is no model to compare")
    particles = load_particles(
        place / "particles.star",
        check_images=False,
        data_dir=record["parameters"].get("data_dir"),
        use_ctf=bool(record["parameters"].get("ctf", True)),
    )
    return Opened(particles, state_from_arrays(*saved), record["parameters"])


def particle(folder: str, index: int) -> dict[str, Any]:
    """Pictures of a particle as data addresses, its numbers, and its CTF along a radius.

    Raises:
        InputError: no such particle, or a stack that is not there.
    """
    path = Path(folder)
    star = path if path.is_file() else path / "particles.star"
    particles = load_particles(star, check_images=False)
    if not 0 <= index < len(particles):
        raise InputError(f"particle {index + 1}: there are {len(particles)}")
    image = particles.images(np.array([index]))[0]
    told: dict[str, Any] = {
        "index": index,
        "of": len(particles),
        "pixel_angstrom": particles.pixel_size_angstrom,
        "box": particles.box,
        "pictures": {
            "image": _address(to_grey(image)),
            "image, low-passed": _address(to_grey(smoothed(image))),
        },
        "facts": _facts(particles, index),
    }
    if particles.has_ctf:
        told["pictures"]["phases flipped"] = _address(to_grey(smoothed(particles.corrected(index))))
        told["pictures"]["CTF"] = _address(_ctf_picture(particles.ctf(index)))
        told["ctf"] = _ctf_curve(particles, index)
    if path.is_dir() and (path / "checkpoint").exists():
        opened = _opened(folder, (path / "checkpoint").stat().st_mtime)
        projection = best_projection(opened, index)
        told["pictures"]["best projection"] = _address(to_grey(projection))
        seen = particles.corrected(index) if particles.has_ctf else image
        told["correlation"] = _correlation(opened, seen, projection)
        told["weighed"] = opened.dimensions == 3
    return told


def particle_posterior(folder: str, index: int) -> dict[str, Any]:
    """`posterior` of a particle of a 3D job.

    Raises:
        InputError: no such particle, or no 3D job.
    """
    opened = _opened(folder, (Path(folder) / "checkpoint").stat().st_mtime)
    if opened.dimensions != 3 or not 0 <= index < len(opened.particles):
        raise InputError(f"particle {index + 1}: nothing to weigh")
    return posterior(opened, index)


def _pose(opened: Opened, index: int) -> tuple[Tensor, Tensor, int]:
    rows = np.array([index])
    particles = opened.particles
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg[rows])).float()
    shift_px = torch.from_numpy(particles.shift_angstrom[rows] / particles.pixel_size_angstrom)
    return rotations, shift_px.float(), int(particles.class_number[index]) - 1


def _references(opened: Opened, index: int) -> Float[Tensor, "K *box"]:
    """Those of the particle's own half, which it was compared with, or the ones that are shared."""
    references = opened.state.references
    half = int(opened.particles.half_set[index])
    if len(references) < 2 or half not in (1, 2):
        return references.mean(0)
    parts = len(references) // 2
    return references[(half - 1) * parts : half * parts].mean(0)


def best_projection(opened: Opened, index: int) -> np.ndarray:
    """`S_t P_phi A`: the reference as the particle shows it, without CTF and noise."""
    box = opened.particles.box
    rotations, shift_px, k = _pose(opened, index)
    plane = half_plane(box, (box - 1) // 2)
    references = _references(opened, index)
    k = min(max(k, 0), len(references) - 1)
    if opened.dimensions == 2:
        return _class_image(opened, references, index)
    prepared = prepare_references(references[k][None], plane.radius)
    samples = extract_slices(prepared, rotations, plane) * shift_phases(-shift_px, plane)
    return inverse_fourier_transform(samples, plane)[0].numpy()


def _class_image(opened: Opened, references: Tensor, index: int) -> np.ndarray:
    """The class average turned and moved onto the particle."""
    from scipy.ndimage import affine_transform

    sizes = torch.bincount(opened.state.poses.classes, minlength=len(references))
    order = torch.argsort(sizes, descending=True, stable=True)  # class 1 is the largest
    number = min(max(int(opened.particles.class_number[index]) - 1, 0), len(order) - 1)
    average = references[order[number]].numpy()
    psi = np.radians(opened.particles.rotations_deg[index, 2])
    x, y = opened.particles.shift_angstrom[index] / opened.particles.pixel_size_angstrom
    # of view coordinates v (rows y, x), the object's are A^T (v + shift), A the rotation by psi
    turn = np.array([[np.cos(psi), np.sin(psi)], [-np.sin(psi), np.cos(psi)]])  # x, y
    backwards = turn.T[::-1, ::-1]
    centre = np.full(2, average.shape[0] // 2)
    offset = centre - backwards @ (centre - np.array([y, x]))
    return affine_transform(average, backwards, offset, order=1)


def posterior(opened: Opened, index: int) -> dict[str, Any]:
    """The lecture's P(phi | X, V) over viewing directions, rows of tilt and columns of rot, as a
    share of the largest; and over how many directions it is spread."""
    # loaded when first needed: the pictures of a particle need not wait for it
    from halfmap.commands._setup import image_settings
    from halfmap.engine.preprocessing import load_batch
    from halfmap.pose_search.direction_posterior import direction_posterior, effective_number
    from halfmap.pose_search.sampling import radius_of_step

    particles, state = opened.particles, opened.state
    symmetry = str(opened.parameters.get("symmetry") or "C1")
    group = point_group(symmetry)
    radius_px = opened.radius_px
    resolved = radius_of_step(grid_step_deg(ORDER), particles.box, radius_px)
    radius = int(min(state.radius, largest_radius(particles.box), max(4, resolved)))
    plane = half_plane(particles.box, radius)
    rows = torch.tensor([index])
    half = torch.zeros(len(particles), dtype=torch.long)
    quiet = Progress("particle", quiet=True)
    use_ctf = bool(opened.parameters.get("ctf", True))
    settings = image_settings(
        particles, half, radius_px, quiet, ctf=use_ctf, device=torch.device("cpu")
    )
    _, shift_px, _ = _pose(opened, index)
    batch = load_batch(
        particles,
        rows,
        plane,
        noise_variance(state),
        shift_px,
        settings,
        norm=_column(particles, "rlnNormCorrection", index),
        scale=_column(particles, "rlnGroupScaleCorrection", index),
    )
    density = direction_posterior(
        prepare_references(_references(opened, index), radius),
        batch.scored,
        plane,
        radius=radius,
        symmetry=group.rotations,
        order=ORDER,
        shift_range_px=SHIFT_RANGE_PX,
        centre_px=shift_px,
    )
    tilt = (torch.arange(_ROWS) + 0.5) * 180 / _ROWS
    rot = -180 + (torch.arange(_COLUMNS) + 0.5) * 360 / _COLUMNS
    angles = torch.stack(
        [rot.repeat(_ROWS), tilt.repeat_interleave(_COLUMNS), torch.zeros(_ROWS * _COLUMNS)], dim=1
    )
    pixels = direction_pixels(euler_to_matrix(angles.double()).float(), ORDER)
    shown = density[0][pixels] / density[0].max()
    found = particles.rotations_deg[index, :2]
    return {
        "index": index,
        "posterior": [[round(v, 3) for v in row] for row in shown.view(_ROWS, _COLUMNS).tolist()],
        "directions": float(effective_number(density)[0]) / len(group),
        "scored_to_angstrom": particles.box * particles.pixel_size_angstrom / radius,
        "found": [float(a) for a in found],
        "symmetry": symmetry,
    }


def _column(particles: Particles, name: str, index: int) -> Float[Tensor, " 1"] | None:
    if name not in particles.table:
        return None
    return torch.tensor([float(particles.table.floats(name)[index])])


def _correlation(opened: Opened, image: np.ndarray, projection: np.ndarray) -> float:
    """Correlation of the phase-flipped image with the projection, inside the particle."""
    box = len(image)
    y, x = np.mgrid[:box, :box] - box // 2
    inside = np.hypot(y, x) < opened.radius_px
    index = (image - image[inside].mean())[inside], (projection - projection[inside].mean())[inside]
    norm = np.sqrt((index[0] ** 2).sum() * (index[1] ** 2).sum())
    return float((index[0] * index[1]).sum() / norm) if norm > 0 else 0.0


def _facts(particles: Particles, index: int) -> dict[str, Any]:
    """All columns of the particle's row, as the file has them."""
    row = particles.table.take(np.array([index]))
    return {name: str(row.strings(name)[0]) for name in row.names}


def _ctf_picture(half: np.ndarray) -> np.ndarray:
    """The whole CTF, its centre in the middle, from the half that rfft2 has."""
    right = np.fft.fftshift(half, axes=0)
    box, width = right.shape
    left = np.roll(right[::-1, ::-1], 1 - box % 2, axis=0)[:, : box - width]
    return np.clip((np.concatenate([left, right], axis=1) + 1) * 127.5, 0, 255).astype(np.uint8)


def _ctf_curve(particles: Particles, index: int) -> dict[str, Any]:
    """The CTF from the centre to Nyquist along the direction of the larger defocus."""
    n = 200
    k = torch.arange(n) / n / 2 / particles.pixel_size_angstrom
    one = particles.transfer.take(np.array([index]))
    angle = float(np.radians(np.asarray(one.defocus_angle_deg).ravel()[0]))
    values = ctf_of_frequencies(one, k * math.cos(angle), k * math.sin(angle))
    return {"frequency": k.tolist(), "ctf": values.flatten().tolist()}


def _address(grey: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(grey, _SHOWN)).decode()}"
