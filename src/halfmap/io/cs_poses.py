"""Poses, half sets and classes between cryoSPARC's fields and RELION's columns."""

import re
import warnings

import numpy as np

from halfmap.io.cs_files import fields
from halfmap.io.relion import ANGLES, ORIGINS, ParticleTables

_SEVERAL = re.compile(r"alignments_class_?(\d+)/pose")
# RELION's column of a field of an alignment, and the factor between them
_NUMBERS = {"alpha": ("rlnGroupScaleCorrection", 1.0), "error": ("rlnLogLikeliContribution", -1.0)}
POSE_COLUMNS = (*ANGLES, *ORIGINS, "rlnOriginX", "rlnOriginY", "rlnRandomSubset", "rlnClassNumber")
NUMBER_COLUMNS = tuple(name for name, _ in _NUMBERS.values())
_READ = ("pose", "shift", "psize_A", "split", "class", "class_posterior", *_NUMBERS)


def rotation_vector_to_euler_deg(vectors: np.ndarray) -> np.ndarray:
    """RELION angles (rot, tilt, psi) `(n, 3)` of cryoSPARC rotation vectors `(n, 3)`: exp([v]x) =
    A^T = Rz(rot) Ry(tilt) Rz(psi)."""
    from scipy.spatial.transform import Rotation

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # at tilt 0 or 180 only rot +- psi is defined; scipy sets psi = 0 and says so
        return Rotation.from_rotvec(np.asarray(vectors, np.float64)).as_euler("ZYZ", degrees=True)


def euler_deg_to_rotation_vector(angles: np.ndarray) -> np.ndarray:
    """cryoSPARC rotation vectors `(n, 3)` of RELION angles (rot, tilt, psi) `(n, 3)`; the inverse
    of `rotation_vector_to_euler_deg`."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("ZYZ", np.asarray(angles, np.float64), degrees=True).as_rotvec()


def alignment_columns(data: np.ndarray) -> tuple[dict[str, np.ndarray], set[str]]:
    """RELION's columns of the best class's pose, and the fields that were read.

    There may be one alignment (3D, else 2D), several (`alignments_class_k`), or an array of them
    (`alignments3D_multi`). A file may have the classes of a 2D classification and, passed through,
    the poses of an earlier refinement: the poses are those in 3D, the class is that of the
    alignment which the file has first.
    """
    picks = _Picks(data)
    out: dict[str, np.ndarray] = {}
    pose, shift, size, split = (picks.of(name) for name in ("pose", "shift", "psize_A", "split"))
    if pose is not None and pose.ndim == 2:
        out |= dict(zip(ANGLES, rotation_vector_to_euler_deg(pose).T, strict=True))
    elif pose is not None:
        out["rlnAnglePsi"] = np.degrees(pose.astype(np.float64))
    if shift is not None:
        pixel = data["blob/psize_A"]
        size = pixel if size is None else np.where(size > 0, size, pixel)
        out |= dict(zip(ORIGINS, (shift.astype(np.float64) * size[:, None]).T, strict=True))
    if split is not None and len(np.unique(split)) > 1:  # all 0: never split into halves
        out["rlnRandomSubset"] = split.astype(np.int64) + 1
    if (group := picks.classes()) is not None:
        out["rlnClassNumber"] = group.astype(np.int64) + 1
    for field, (name, factor) in _NUMBERS.items():
        if (values := picks.of(field)) is not None and values.any():
            out[name] = factor * values.astype(np.float64)
    return out, picks.read


class _Picks:
    """Fields of the alignment that counts in each row."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self._have = data, set(fields(data))
        self.read: set[str] = set()
        found = (_SEVERAL.fullmatch(name) for name in fields(data))
        several = sorted((int(one[1]), one[0].partition("/")[0]) for one in found if one)
        self._numbers, self._several = [k for k, _ in several], [name for _, name in several]
        kinds = ("alignments3D", "alignments2D")
        poses = [name for name in kinds if f"{name}/pose" in self._have]
        several_in_3d = bool(several) or "alignments3D_multi/pose" in self._have
        self._single: str | None = None
        if poses and ("alignments3D" in poses or not several_in_3d):
            self._single = poses[0]
        self._best = self._best_of_several()

    def _best_of_several(self) -> np.ndarray | None:
        """Place of each row's most probable class."""
        names = [f"{name}/class_posterior" for name in self._several]
        if self._several and all(name in self._have for name in names):
            self.read |= set(names)
            return np.argmax([self._data[name] for name in names], axis=0)
        if (name := "alignments3D_multi/class_posterior") in self._have:
            self.read.add(name)
            return np.argmax(self._data[name], axis=1)
        return None

    def of(self, field: str) -> np.ndarray | None:
        if self._single is not None:
            return self._field(f"{self._single}/{field}")
        if self._best is None:
            return None
        rows = np.arange(len(self._data))
        if self._several:
            values = [self._field(f"{name}/{field}") for name in self._several]
            known = [one for one in values if one is not None]
            return np.stack(known)[self._best, rows] if len(known) == len(values) else None
        multi = self._field(f"alignments3D_multi/{field}")
        return multi[rows, self._best] if multi is not None and multi.ndim > 1 else multi

    def classes(self) -> np.ndarray | None:
        """Class numbers from 0; of several alignments that do not say, their number."""
        single = [
            name
            for name in fields(self._data)
            if name in ("alignments2D/class", "alignments3D/class")
        ]
        if single and (self._single is not None or self._best is None):
            return self._field(single[0])
        if (group := self.of("class")) is not None or self._best is None:
            return group
        return np.array(self._numbers)[self._best] if self._several else self._best

    def _field(self, name: str) -> np.ndarray | None:
        if name not in self._have:
            return None
        self.read.add(name)
        return self._data[name]


def alignment_fields(
    tables: ParticleTables,
    angles_deg: np.ndarray,
    shift_angstrom: np.ndarray,
    pixel_size_angstrom: np.ndarray,
    *,
    in_3d: bool,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """cryoSPARC's fields of the poses: `alignments3D` of orientations, `alignments2D` of in-plane
    angles; and notes on what they cannot say."""
    particles, n = tables.particles, len(tables.particles)
    kind = "alignments3D" if in_3d else "alignments2D"
    half = np.ones(n, np.int64)
    notes: tuple[str, ...] = ()
    if "rlnRandomSubset" in particles:
        half, notes = _whole_halves(particles.ints("rlnRandomSubset"), tables.path)
    group = particles.ints("rlnClassNumber") if "rlnClassNumber" in particles else np.ones(n)
    pose = euler_deg_to_rotation_vector(angles_deg) if in_3d else np.radians(angles_deg[:, 2])
    out = {
        f"{kind}/split": (half - 1).clip(min=0).astype(np.uint32),
        f"{kind}/shift": shift_angstrom / pixel_size_angstrom[:, None],
        f"{kind}/pose": pose,
        f"{kind}/psize_A": np.array(pixel_size_angstrom, np.float64),
        f"{kind}/class": (group - 1).clip(min=0).astype(np.uint32),
        f"{kind}/class_posterior": np.ones(n),
    }
    for field, (name, factor) in _NUMBERS.items():
        if tables.has(name):
            out[f"{kind}/{field}"] = factor * tables.floats(name, finite=False)
    return out, notes


def _whole_halves(half: np.ndarray, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Half sets 1 and 2, where some rows have none (0): cryoSPARC cannot say that."""
    without = np.flatnonzero(half == 0)
    if len(without) in (0, len(half)):
        return half, ()
    whole = half.copy()
    whole[without] = 1 + np.arange(len(without)) % 2
    return whole, (
        f"{path}: {len(without)} rows without a half set (_rlnRandomSubset 0) are put into "
        "alignments3D/split 0 and 1 in turn, because a .cs file has no third",
    )
