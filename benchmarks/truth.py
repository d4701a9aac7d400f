"""Figures against the truth, by code that shares nothing with halfmap: numpy, scipy, mrcfile and
starfile only.

Conventions are RELION's: `A` takes object to view coordinates, origins centre the image. A refined
map may lie in a frame of its own, turned by G and moved by t against the truth; the truth's mate by
symmetry is as good as the truth:

    A_est = A_true S G,        origin_est = origin_true + (A_est t)_xy.

Both are estimated from all poses, robustly, and removed before errors are quoted; their size is
reported.
"""

from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import mrcfile
import numpy as np
import starfile
from scipy.ndimage import affine_transform


@dataclass(frozen=True)
class Poses:
    """Rotations (n, 3, 3), origins (n, 2) in Angstrom, class numbers (n,), the images' numbers in
    their stack (n,), ascending."""

    rotations: np.ndarray
    origins_angstrom: np.ndarray
    classes: np.ndarray
    numbers: np.ndarray

    def only(self, numbers: np.ndarray) -> "Poses":
        """The rows of some images.

        Raises:
            ValueError: an image is not here.
        """
        if not np.isin(numbers, self.numbers).all():
            raise ValueError("the poses to compare are not of the same images")
        rows = np.searchsorted(self.numbers, numbers)
        return Poses(
            self.rotations[rows],
            self.origins_angstrom[rows],
            self.classes[rows],
            self.numbers[rows],
        )

    def other_hand(self) -> "Poses":
        """Poses that show the same projections of the mirror image: turned by 180 degrees in the
        plane."""
        return Poses(
            np.diag([-1.0, -1.0, 1.0]) @ self.rotations,
            self.origins_angstrom,
            self.classes,
            self.numbers,
        )


@dataclass(frozen=True)
class PoseErrors:
    """Errors of n poses after the global frame is removed, and the frame: the angle of G and the
    length of t."""

    angle_deg: np.ndarray
    shift_angstrom: np.ndarray
    frame: np.ndarray
    frame_angle_deg: float
    frame_shift_angstrom: np.ndarray


def read_poses(path: Path) -> Poses:
    """Poses of a RELION 3.1 STAR, in order of the images' numbers, so that files of one stack can
    be compared row by row."""
    tables = starfile.read(path, always_dict=True)
    table = tables["particles"]
    n = len(table)

    def column(name: str) -> np.ndarray:
        return table[name].to_numpy(float) if name in table else np.zeros(n)

    numbers = np.array([int(str(name).split("@")[0]) for name in table["rlnImageName"]])
    order = np.argsort(numbers, kind="stable")
    rotations = euler_matrices(column("rlnAngleRot"), column("rlnAngleTilt"), column("rlnAnglePsi"))
    origins = np.stack([column("rlnOriginXAngst"), column("rlnOriginYAngst")], -1)
    return Poses(
        rotations[order],
        origins[order],
        column("rlnClassNumber").astype(int)[order],
        numbers[order],
    )


def read_volume(path: Path) -> tuple[np.ndarray, float]:
    """Map (z, y, x) and its pixel size, Angstrom."""
    with mrcfile.open(path, permissive=True) as file:
        return file.data.astype(np.float32), float(file.voxel_size.x)


def euler_matrices(rot_deg: np.ndarray, tilt_deg: np.ndarray, psi_deg: np.ndarray) -> np.ndarray:
    """`A = Rz(psi) Ry(tilt) Rz(rot)`, each a rotation of the axes: (n, 3, 3)."""
    return _about_z(psi_deg) @ _about_y(tilt_deg) @ _about_z(rot_deg)


def _about_z(angle_deg: np.ndarray) -> np.ndarray:
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    zero, one = np.zeros_like(c), np.ones_like(c)
    return np.moveaxis(np.array([[c, s, zero], [-s, c, zero], [zero, zero, one]]), (0, 1), (-2, -1))


def _about_y(angle_deg: np.ndarray) -> np.ndarray:
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    zero, one = np.zeros_like(c), np.ones_like(c)
    return np.moveaxis(np.array([[c, zero, -s], [zero, one, zero], [s, zero, c]]), (0, 1), (-2, -1))


def point_group(symmetry: str) -> np.ndarray:
    """The n rotations of Cn about z; for Dn also those by 180 degrees about n axes in the plane,
    the first of them x; for O the 24 that take the axes to axes."""
    if symmetry.upper() == "O":
        return _axes_to_axes()
    n = int(symmetry.upper()[1:])
    turns = _about_z(np.arange(n) * 360 / n)
    return (
        turns
        if symmetry.upper().startswith("C")
        else np.concatenate([turns, turns @ np.diag([1.0, -1.0, -1.0])])
    )


def _axes_to_axes() -> np.ndarray:
    """Permutations of the axes with signs whose determinant is 1, (24, 3, 3), the identity
    first."""
    signed = [
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    return np.stack([matrix for matrix in signed if np.linalg.det(matrix) > 0])


def angle_of(rotations: np.ndarray) -> np.ndarray:
    """Angle of rotation matrices (..., 3, 3), degrees, accurate near 0 as well."""
    skew = np.stack(
        [rotations[..., i, j] - rotations[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1
    )
    return np.rad2deg(
        np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(rotations, axis1=-2, axis2=-1) - 1)
    )


def rotation_vector(rotations: np.ndarray) -> np.ndarray:
    """Axis times angle, degrees, of rotations by less than 180 degrees."""
    skew = np.stack(
        [rotations[..., i, j] - rotations[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1
    )
    length = np.linalg.norm(skew, axis=-1, keepdims=True)
    return (
        np.where(length > 1e-12, skew / np.maximum(length, 1e-12), 0)
        * angle_of(rotations)[..., None]
    )


def rotation_from_vector(vector_deg: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, one rotation (3, 3)."""
    angle = np.deg2rad(np.linalg.norm(vector_deg))
    if angle == 0:
        return np.eye(3)
    x, y, z = np.deg2rad(vector_deg) / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def pose_errors(
    estimated: Poses, truth: Poses, *, symmetry: str = "C1", any_frame: bool = False
) -> PoseErrors:
    """Angle and shift errors modulo symmetry, after the global frame is removed.

    G starts as the best, by median error, of the identity and the frames that 50 single images
    suggest; it is then moved by the mean of what all images within three times the median error
    still ask for, until it stands still. Under Cn both maps have their axis along z, so G turns
    about z only, and t lies along z; with `any_frame` G and t are free, for a map that was made
    without its symmetry or may stand on its head. Images that are in `truth` alone (set aside by
    the program) are left out.
    """
    truth = truth.only(estimated.numbers)
    group = point_group(symmetry)
    relative = np.einsum(
        "nji,njk->nik", truth.rotations, estimated.rotations
    )  # S G for a perfect pose
    mates = np.einsum("gji,njk->ngik", group, relative)
    suggested = relative[:: max(1, len(relative) // 50)]
    along_z = len(group) > 1 and not any_frame
    starts = [np.eye(3), *(map(_turn_about_z, suggested) if along_z else suggested)]
    frame = min(starts, key=lambda start: np.median(_errors(mates, start)[0]))
    for _ in range(50):
        angle, best = _errors(mates, frame)
        vectors = rotation_vector(np.einsum("ji,njk->nik", frame, best))
        step = vectors[angle <= 3 * np.median(angle)].mean(0)
        if along_z:
            step[:2] = 0
        frame = frame @ rotation_from_vector(step)
        if np.linalg.norm(step) < 1e-5:
            break
    angle = _errors(mates, frame)[0]
    offset, shift = _shift_errors(estimated, truth, along_z=along_z)
    size = min(float(angle_of(mate.T @ frame)) for mate in group)
    return PoseErrors(angle, shift, frame, size, offset)


def _errors(mates: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image's symmetry mates (n, g, 3, 3) the one nearest to the frame, and its angle to
    it."""
    angle = angle_of(np.einsum("ji,ngjk->ngik", frame, mates))
    best = angle.argmin(1)
    rows = np.arange(len(mates))
    return angle[rows, best], mates[rows, best]


def _turn_about_z(rotation: np.ndarray) -> np.ndarray:
    """The turn about z that comes nearest to a rotation."""
    return _about_z(
        np.rad2deg(np.arctan2(rotation[0, 1] - rotation[1, 0], rotation[0, 0] + rotation[1, 1]))
    )


def _shift_errors(
    estimated: Poses, truth: Poses, *, along_z: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The map's offset t by least squares over the better three quarters of the images, and the
    lengths of what remains."""
    difference = estimated.origins_angstrom - truth.origins_angstrom
    design = estimated.rotations[:, :2, 2:] if along_z else estimated.rotations[:, :2]
    offset = np.zeros(design.shape[2])
    for _ in range(10):
        left = np.linalg.norm(difference - design @ offset, axis=1)
        good = left <= np.quantile(left, 0.75)
        offset = np.linalg.lstsq(
            design[good].reshape(-1, len(offset)), difference[good].reshape(-1), rcond=None
        )[0]
    left = np.linalg.norm(difference - design @ offset, axis=1)
    return np.concatenate([np.zeros(3 - len(offset)), offset]), left


def into_frame_of_truth(
    volume: np.ndarray, errors: PoseErrors, pixel_size_angstrom: float
) -> np.ndarray:
    """The refined map turned and moved into the truth's frame by a spline of order 5: what the
    truth has at x, it has at G^T x + t."""
    centre = np.full(3, volume.shape[0] // 2, float)
    turn = errors.frame.T[::-1, ::-1]  # x-y-z to z-y-x
    move = errors.frame_shift_angstrom[::-1] / pixel_size_angstrom
    return affine_transform(volume, turn, offset=centre - turn @ centre + move, order=5)


def mirror(volume: np.ndarray) -> np.ndarray:
    """The other hand, V(-x); the centre N // 2 stays where it is."""
    inverted = volume[::-1, ::-1, ::-1]
    return np.roll(inverted, 1, (0, 1, 2)) if len(volume) % 2 == 0 else inverted


@dataclass(frozen=True)
class Laid:
    """A map laid onto the truth: its FSC to the truth inside the mask, and the errors of its
    poses."""

    curve: np.ndarray
    errors: PoseErrors


def laid_onto_truth(
    volume: np.ndarray,
    poses: Poses,
    true_volume: np.ndarray,
    true_poses: Poses,
    *,
    symmetry: str,
    radius_px: float,
    pixel: float,
) -> Laid:
    """A map made from nothing, of either hand and in any frame, laid onto the truth by its poses;
    the hand whose FSC is 0.5 farther out."""
    found = []
    for mirrored in (False, True):
        own, map_ = (poses.other_hand(), mirror(volume)) if mirrored else (poses, volume)
        errors = pose_errors(own, true_poses, symmetry=symmetry, any_frame=True)
        laid = into_frame_of_truth(map_, errors, pixel)
        found.append(Laid(fsc(laid, true_volume, soft_sphere(len(volume), radius_px)), errors))
    return min(found, key=lambda one: resolution_at(one.curve, 0.5, len(volume), pixel))


def soft_sphere(box: int, radius_px: float, edge_px: float = 5.0) -> np.ndarray:
    """1 inside, 0 outside, a raised cosine of width `edge_px` between, which passes 1/2 at the
    radius."""
    axis = np.arange(box) - box // 2
    r = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius_px) / edge_px + 0.5, 0, 1))


def fsc(a: np.ndarray, b: np.ndarray, mask: np.ndarray | float = 1.0) -> np.ndarray:
    """Fourier shell correlation, shells 0 to N // 2."""
    box = len(a)
    first, second = np.fft.fftn(a * mask), np.fft.fftn(b * mask)
    k = np.fft.fftfreq(box) * box
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, values.ravel())[: box // 2 + 1]

    power = total(np.abs(first) ** 2) * total(np.abs(second) ** 2)
    return total((first * second.conj()).real) / np.sqrt(np.maximum(power, 1e-300))


def resolution_at(
    curve: np.ndarray, threshold: float, box: int, pixel_size_angstrom: float
) -> float:
    """Where the curve first falls below the threshold, interpolated; Nyquist if it never does."""
    below = np.flatnonzero(curve[1:] < threshold)
    if len(below) == 0:
        return box * pixel_size_angstrom / (len(curve) - 1)
    s = below[0] + 1
    return (
        box * pixel_size_angstrom / (s - 1 + (curve[s - 1] - threshold) / (curve[s - 1] - curve[s]))
    )


def adjusted_rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of two partitions: 1 for the same, 0 expected by chance. Hubert and Arabie, J.
    Classif. 2, 193 (1985)."""
    table = np.zeros((np.unique(first).size, np.unique(second).size))
    np.add.at(
        table,
        (np.unique(first, return_inverse=True)[1], np.unique(second, return_inverse=True)[1]),
        1,
    )

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    rows, columns, both, n = pairs(table.sum(1)), pairs(table.sum(0)), pairs(table), len(first)
    expected = rows * columns / (n * (n - 1) / 2)
    largest = (rows + columns) / 2
    return (both - expected) / (largest - expected) if largest != expected else 1.0


def purity(classes: np.ndarray, labels: np.ndarray) -> float:
    """Share of the items that carry the label which most items of their class carry."""
    of_class = np.unique(classes, return_inverse=True)[1]
    of_label = np.unique(labels, return_inverse=True)[1]
    table = np.zeros((of_class.max() + 1, of_label.max() + 1), int)
    np.add.at(table, (of_class, of_label), 1)
    return float(table.max(1).sum() / len(labels))


def view_spread_deg(rotations: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Angle between each particle's true viewing direction (third row of A) and its class's main
    view, degrees, (n,).

    The main view of a class is the direction, among those of its members, with the smallest mean
    angle to all members. In-plane rotation is free; opposite views are mirror images, not the same.
    """
    views = rotations[:, 2]
    out = np.empty(len(views))
    for label in np.unique(classes):
        members = classes == label
        angles = np.rad2deg(np.arccos(np.clip(views[members] @ views[members].T, -1, 1)))
        out[members] = angles[angles.mean(1).argmin()]
    return out
