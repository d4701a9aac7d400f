"""cryoSPARC's `.cs` files to and from RELION's tables.

Facts of the format (structured numpy arrays), with RELION's conventions on the right:

| `.cs` field | meaning | RELION | |---|---|---| | `alignments3D/pose` | rotation vector v in
radians; exp([v]x) is the transpose of RELION's matrix A | rlnAngleRot, Tilt, Psi | |
`alignments2D/pose` | in-plane angle in radians, which is the rotation vector (0, 0, angle) |
rlnAnglePsi | | `alignments*/shift` | pixels of `alignments*/psize_A`; same sign | rlnOriginXAngst,
YAngst | | `alignments*/split`, `class` | from 0 | rlnRandomSubset, rlnClassNumber, from 1 | |
`ctf/df1_A`, `df2_A`, `df_angle_rad`, `phase_shift_rad` | underfocus positive, radians |
rlnDefocusU, V, Angle, rlnPhaseShift | | `ctf/tilt_A` | Cs sin(tilt), Angstrom | rlnBeamTiltX, Y
(mrad) | | `blob/idx` | from 0 | index of rlnImageName, from 1 | | `blob/sign` | -1: stored dark on
light, to be multiplied by -1 | csBlobSign (a column of our own, as is csUid) |

The pose and shift conventions are those on which the converters csparc2star (pyem) and cryoDRGN
agree.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from halfmap.ctf_parameters import CTFParameters, Quantity, quantities
from halfmap.errors import InputError
from halfmap.io.files import replacing
from halfmap.io.paths import split_image_names
from halfmap.io.relion import ANGLES, ParticleTables, ctf_parameters, poses
from halfmap.io.star import StarFile
from halfmap.io.table import Table

_ANGSTROM_PER_MM = 1e7
_TILT = "ctf/tilt_A"  # Cs sin(tilt), a vector
_IGNORED = ("ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag", "ctf/shift_A")


def read_cs(
    path: str | os.PathLike[str], *, passthrough: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Read a `.cs` file, with the fields of its passthrough file added by uid.

    A refinement job's `.cs` has poses only; where the images (`blob/path`) are missing and no
    `passthrough` is given, the one file `*passthrough*particles*.cs` in the same folder is taken.

    Raises:
        InputError: unreadable, not a particle `.cs`, or the passthrough file is missing, ambiguous
            or lacks particles.
    """
    path = Path(path)
    data = _load(path)
    if passthrough is None and "blob/path" not in _fields(data):
        near = sorted(path.parent.glob("*passthrough*particles*.cs"))
        if len(near) != 1:
            raise InputError(
                f"{path}: no field blob/path (where the images are), and {len(near)} files "
                "*passthrough*particles*.cs beside it; "
                "give the passthrough file"
            )
        passthrough = near[0]
    if passthrough is not None:
        data = _merge(path, data, Path(passthrough), _load(Path(passthrough)))
    if not len(data):
        raise InputError(f"{path}: has no particles; nothing to process")
    missing = [
        name
        for name in ("uid", "blob/path", "blob/idx", "blob/psize_A", "blob/shape")
        if name not in _fields(data)
    ]
    if missing:
        raise InputError(
            f"{path}: the field {missing[0]} is missing; this is not a particle .cs file with its "
            "passthrough file"
        )
    return data


def _load(path: Path) -> np.ndarray:
    try:
        data = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path"
        ) from error
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path}: is not a cryoSPARC .cs file (a structured numpy array): {error}"
        ) from error
    if (
        not isinstance(data, np.ndarray)
        or data.dtype.names is None
        or "uid" not in data.dtype.names
        or data.ndim != 1
    ):
        raise InputError(f"{path}: is not a cryoSPARC .cs file (no table with a field uid)")
    return data


def _fields(data: np.ndarray) -> tuple[str, ...]:
    return data.dtype.names or ()


def _merge(path: Path, data: np.ndarray, other_path: Path, other: np.ndarray) -> np.ndarray:
    order = np.argsort(other["uid"], kind="stable")
    at = np.searchsorted(other["uid"][order], data["uid"]).clip(max=max(0, len(other) - 1))
    lost = (
        np.flatnonzero(other["uid"][order][at] != data["uid"])
        if len(other)
        else np.arange(len(data))
    )
    if len(lost):
        raise InputError(
            f"{other_path}: {len(lost)} of {len(data)} particles of {path.name} are not in it "
            f"(first: row {lost[0] + 1}, "
            f"uid {data['uid'][lost[0]]}); give the passthrough file of the same job"
        )
    rows = order[at]
    new = [name for name in _fields(other) if name not in _fields(data)]
    merged = np.empty(
        len(data), data.dtype.descr + [item for item in other.dtype.descr if item[0] in new]
    )
    for name in _fields(data):
        merged[name] = data[name]
    for name in new:
        merged[name] = other[name][rows]
    return merged


def write_cs(path: str | os.PathLike[str], data: np.ndarray) -> None:
    """Write a structured array as a `.cs` file, atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as out:
        np.save(out, data, allow_pickle=False)


def rotation_vector_to_euler_deg(vectors: np.ndarray) -> np.ndarray:
    """RELION angles (rot, tilt, psi) `(n, 3)` of cryoSPARC rotation vectors `(n, 3)`: exp([v]x) =
    A^T = Rz(rot) Ry(tilt) Rz(psi)."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # at tilt 0 or 180 only rot +- psi is defined; scipy sets psi = 0 and says so
        return Rotation.from_rotvec(np.asarray(vectors, np.float64)).as_euler("ZYZ", degrees=True)


def euler_deg_to_rotation_vector(angles: np.ndarray) -> np.ndarray:
    """cryoSPARC rotation vectors `(n, 3)` of RELION angles (rot, tilt, psi) `(n, 3)`; the inverse
    of `rotation_vector_to_euler_deg`."""
    return Rotation.from_euler("ZYZ", np.asarray(angles, np.float64), degrees=True).as_rotvec()


def cs_to_star(data: np.ndarray, path: str) -> tuple[StarFile, tuple[str, ...]]:
    """RELION 3.1 tables of a `.cs` array, and notes on what RELION's tables here do not carry over.

    Raises:
        InputError: images that are not square.
    """
    have, n = set(_fields(data)), len(data)
    shape = data["blob/shape"].reshape(n, -1)
    if (shape[:, 0] != shape[:, -1]).any():
        row = int(np.argmax(shape[:, 0] != shape[:, -1]))
        raise InputError(
            f"{path}: row {row + 1}, field blob/shape: {shape[row].tolist()}; square images are "
            "needed"
        )

    optics: dict[str, np.ndarray] = {
        "rlnImagePixelSize": data["blob/psize_A"],
        "rlnImageSize": shape[:, 0],
    }
    particles: dict[str, Iterable[object]] = {}
    names = [
        item.decode("utf-8", "surrogateescape").removeprefix(">")
        for item in data["blob/path"].astype(bytes).tolist()
    ]
    particles["rlnImageName"] = [
        f"{i + 1:06d}@{name}" for i, name in zip(data["blob/idx"].tolist(), names, strict=True)
    ]
    if "location/micrograph_path" in have:
        found = data["location/micrograph_path"].astype(bytes).tolist()
        particles["rlnMicrographName"] = [
            item.decode("utf-8", "surrogateescape").removeprefix(">") for item in found
        ]
    if "ctf/df1_A" in have:
        for one in quantities():
            if (values := _from_cs(one, data)) is not None:
                (optics if one.per_group else particles)[one.relion] = values
    particles |= _alignment_columns(data)
    if "blob/sign" in have and (data["blob/sign"] < 0).any():
        particles["csBlobSign"] = np.where(data["blob/sign"] < 0, -1, 1)
    particles["csUid"] = data["uid"]

    label = (
        data["ctf/exp_group_id"].astype(np.int64) + 1
        if "ctf/exp_group_id" in have
        else np.ones(n, np.int64)
    )
    keys = np.stack([label, *optics.values()], axis=1)
    groups, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    labels = groups[:, 0].astype(np.int64)
    labels = labels if len(set(labels.tolist())) == len(labels) else np.arange(1, len(groups) + 1)
    particles["rlnOpticsGroup"] = labels[inverse.ravel()]
    columns: dict[str, Iterable[object]] = {
        "rlnOpticsGroup": labels,
        "rlnOpticsGroupName": [f"opticsGroup{i}" for i in labels],
    }
    columns |= {name: values[first] for name, values in optics.items()}
    columns["rlnImageDimensionality"] = [2] * len(labels)
    blocks = {
        "optics": Table.from_columns(columns, path=path),
        "particles": Table.from_columns(particles, path=path),
    }
    lost = [name for name in _IGNORED if name in have and (data[name] != 0).any()]
    return StarFile(path, blocks), (
        (f"{path}: {', '.join(lost)} are not zero and are not used",) if lost else ()
    )


def _alignment_columns(data: np.ndarray) -> dict[str, np.ndarray]:
    """Poses of the best class: one alignment (3D, else 2D), several (`alignments_class_k`), or an
    array of them (`alignments3D_multi`)."""
    have, n = set(_fields(data)), len(data)
    several = sorted(
        name.split("/")[0]
        for name in have
        if name.startswith("alignments_class") and name.endswith("/pose")
    )
    out: dict[str, np.ndarray] = {}

    def pick(field: str) -> np.ndarray | None:
        if "alignments3D/pose" in have or (
            "alignments2D/pose" in have and not several and "alignments3D_multi/pose" not in have
        ):
            name = f"alignments{'3D' if 'alignments3D/pose' in have else '2D'}/{field}"
            return data[name] if name in have else None
        rows = np.arange(n)
        if several and all(f"{group}/{field}" in have for group in several):
            best = np.argmax([data[f"{group}/class_posterior"] for group in several], axis=0)
            return np.stack([data[f"{group}/{field}"] for group in several])[best, rows]
        if f"alignments3D_multi/{field}" in have:
            values = data[f"alignments3D_multi/{field}"]
            best = np.argmax(data["alignments3D_multi/class_posterior"], axis=1)
            return values[rows, best] if values.ndim > 1 else values
        return None

    pose, shift, split, group = (pick(field) for field in ("pose", "shift", "split", "class"))
    if pose is not None and pose.ndim == 2:
        out |= dict(zip(ANGLES, rotation_vector_to_euler_deg(pose).T, strict=True))
    elif pose is not None:
        out["rlnAnglePsi"] = np.degrees(pose.astype(np.float64))
    if shift is not None:
        size = pick("psize_A")
        size = (
            data["blob/psize_A"] if size is None else np.where(size > 0, size, data["blob/psize_A"])
        )
        out["rlnOriginXAngst"], out["rlnOriginYAngst"] = (
            shift.astype(np.float64) * size[:, None]
        ).T
    if split is not None and len(np.unique(split)) > 1:  # all 0: never split into halves
        out["rlnRandomSubset"] = split.astype(np.int64) + 1
    if group is not None:
        out["rlnClassNumber"] = group.astype(np.int64) + 1
    return out


def star_to_cs(tables: ParticleTables, *, box: int, pixel_size_angstrom: float) -> np.ndarray:
    """Structured array with the fields of cryoSPARC's imported particles; poses go to alignments3D,
    or 2D if there is only psi.

    `uid` is csUid where the table has it, else made from the image name, so that the same particle
    always gets the same.

    Raises:
        InputError: bad cells, or an incomplete CTF.
    """
    particles, n = tables.particles, len(tables.particles)
    text = particles.strings("rlnImageName").tolist()
    names = split_image_names(text, tables.path)
    angles, shift, has_poses = poses(tables, pixel_size_angstrom)
    transfer, has_ctf = ctf_parameters(tables)
    if "csUid" in particles:
        uid = np.array([int(value) for value in particles.strings("csUid")], np.uint64)
    else:
        digests = (
            hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            for name in text
        )
        uid = np.frombuffer(b"".join(digests), "<u8")
    fields: dict[str, object] = {
        "uid": uid,
        "blob/path": np.array([name.encode("utf-8", "surrogateescape") for name in names.files])[
            names.file
        ],
        "blob/idx": names.index.astype(np.uint32),
        "blob/shape": np.full((n, 2), box, np.uint32),
        "blob/psize_A": np.full(n, pixel_size_angstrom, np.float32),
        "blob/sign": np.where(tables.floats("csBlobSign", 1.0) < 0, -1, 1).astype(np.float32),
    }
    if has_ctf:
        fields |= {
            "ctf/type": np.full(n, b"imported"),
            "ctf/exp_group_id": (_labels(tables) - 1).astype(np.uint32),
            **_to_cs(transfer),
            "ctf/scale_const": np.zeros(n),
            "ctf/shift_A": np.zeros((n, 2)),
            "ctf/trefoil_A": np.zeros((n, 2)),
            "ctf/tetra_A": np.zeros((n, 4)),
            "ctf/anisomag": np.zeros((n, 4)),
        }
    if has_poses or "rlnAnglePsi" in particles:
        kind = "alignments3D" if has_poses else "alignments2D"
        half = (
            particles.ints("rlnRandomSubset")
            if "rlnRandomSubset" in particles
            else np.ones(n, np.int64)
        )
        group = (
            particles.ints("rlnClassNumber")
            if "rlnClassNumber" in particles
            else np.ones(n, np.int64)
        )
        fields |= {
            f"{kind}/split": (half - 1).clip(min=0).astype(np.uint32),
            f"{kind}/shift": shift / pixel_size_angstrom,
            f"{kind}/pose": euler_deg_to_rotation_vector(angles)
            if has_poses
            else np.radians(angles[:, 2]),
            f"{kind}/psize_A": np.full(n, pixel_size_angstrom),
            f"{kind}/class": (group - 1).clip(min=0).astype(np.uint32),
            f"{kind}/class_posterior": np.ones(n),
        }
    arrays = {name: np.asarray(values) for name, values in fields.items()}
    arrays = {
        name: values.astype(np.float32) if values.dtype == np.float64 else values
        for name, values in arrays.items()
    }
    out = np.empty(n, [(name, values.dtype, values.shape[1:]) for name, values in arrays.items()])
    for name, values in arrays.items():
        out[name] = values
    return out


def _from_cs(one: Quantity, data: np.ndarray) -> np.ndarray | None:
    """A CTF parameter in its own unit; None where the array has none, or a beam tilt of 0."""
    if one.cs is None or one.cs not in _fields(data):
        return None
    values = data[one.cs].astype(np.float64)
    if one.cs == _TILT:
        if not values.any():
            return None
        spherical = data["ctf/cs_mm"].astype(np.float64) * _ANGSTROM_PER_MM
        return np.arcsin(values[:, one.cs_component] / spherical) * 1e3
    return np.degrees(values) if one.cs.endswith("_rad") else values


def _to_cs(parameters: CTFParameters) -> dict[str, np.ndarray]:
    """The CTF's fields of a `.cs` file."""
    columns: dict[str, np.ndarray] = {}
    for one in quantities():
        values = getattr(parameters, one.name)
        if one.cs is None:
            continue
        if one.cs == _TILT:
            spherical = parameters.spherical_aberration_mm * _ANGSTROM_PER_MM
            vector = columns.setdefault(_TILT, np.zeros((len(values), 2)))
            vector[:, one.cs_component] = np.sin(values * 1e-3) * spherical
        else:
            columns[one.cs] = np.radians(values) if one.cs.endswith("_rad") else values
    return columns


def _labels(tables: ParticleTables) -> np.ndarray:
    """Optics group number of each particle as the file has it (from 1)."""
    return (
        tables.optics_group + 1
        if tables.optics is None
        else tables.optics.ints("rlnOpticsGroup")[tables.optics_group]
    )
