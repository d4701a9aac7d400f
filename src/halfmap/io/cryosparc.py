"""cryoSPARC's `.cs` arrays to and from RELION's tables.

Facts of the format, with RELION's conventions on the right:

| `.cs` field | meaning | RELION |
|---|---|---|
| `alignments3D/pose` | rotation vector v (radians): exp([v]x) = A^T | rlnAngleRot, Tilt, Psi |
| `alignments2D/pose` | in-plane angle in radians | rlnAnglePsi |
| `alignments*/shift` | pixels of `alignments*/psize_A`; same sign | rlnOriginXAngst, YAngst |
| `alignments*/split`, `class` | from 0 | rlnRandomSubset, rlnClassNumber, from 1 |
| `ctf/df1_A`, `df2_A`, ... | underfocus positive, radians | rlnDefocusU, V, Angle |
| `ctf/tilt_A`, higher aberrations | lengths in Angstrom | `halfmap.io.cs_aberrations` |
| `ctf/exp_group_id` | from 0 | rlnOpticsGroup, from 1 |
| `blob/idx` | from 0 | index of rlnImageName, from 1 |
| `blob/sign` | -1: stored dark on light | csBlobSign (of our own, as is csUid) |
| `location/center_x_frac`, `y` | share of the micrograph | rlnCoordinateX, Y, in pixels |

The pose and shift conventions are those on which the converters csparc2star (pyem) and cryoDRGN
agree.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from halfmap.ctf_parameters import CTFParameters, Quantity, quantities
from halfmap.errors import InputError
from halfmap.io import cs_aberrations
from halfmap.io.cs_files import fields, text
from halfmap.io.cs_poses import NUMBER_COLUMNS, POSE_COLUMNS, alignment_columns, alignment_fields
from halfmap.io.paths import as_stack_name, split_image_names
from halfmap.io.relion import ParticleTables, ctf_parameters, poses
from halfmap.io.star import StarFile
from halfmap.io.table import Table

_ANGSTROM_PER_MM = 1e7
_TILT = "ctf/tilt_A"  # Cs sin(tilt), a vector
# plain numbers that mean the same on both sides
_SAME = {
    "rlnCtfMaxResolution": "ctf/ctf_fit_to_A",
    "rlnCtfFigureOfMerit": "ctf/cross_corr_ctffind4",
    "rlnAutopickFigureOfMerit": "pick_stats/ncc_score",
    "rlnHelicalTrackLengthAngst": "filament/position_A",
    "rlnMicrographOriginalPixelSize": "location/micrograph_psize_A",
}
_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
_FRACTIONS = ("location/center_x_frac", "location/center_y_frac")
# of our own, so that coordinates and names of optics groups find their way back
_MICROGRAPH_SIZE = ("csMicrographSizeX", "csMicrographSizeY")
_GROUP_NAME = "halfmap/optics_group_name"
# what the other side has by itself, or is a number without meaning there
_IMPLIED = ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageDimensionality", "rlnPixelSize")
_OF_IMAGES = ("rlnImageName", "rlnImagePixelSize", "rlnImageSize", "csUid", "csBlobSign")
_OLD_SIZE = ("rlnMagnification", "rlnDetectorPixelSize")
_IMPLIED_FIELDS = (
    "uid",
    "blob/import_sig",
    "ctf/type",
    "ctf/scale_const",
    "location/exp_group_id",
    "location/micrograph_uid",
    "mscope_params/exp_group_id",
)
_LARGEST_GROUP = 1 << 20  # RELION keeps a list up to the largest number


def cs_to_star(data: np.ndarray, path: str) -> tuple[StarFile, tuple[str, ...]]:
    """RELION 3.1 tables of a `.cs` array, and notes on what they do not carry over: fields that are
    not zero, with the number of rows.

    Raises:
        InputError: images that are not square.
    """
    have, n, used = set(fields(data)), len(data), set(_IMPLIED_FIELDS)
    optics: dict[str, np.ndarray] = {"rlnImagePixelSize": data["blob/psize_A"]}
    if "blob/shape" in have:
        optics["rlnImageSize"] = _side(data["blob/shape"].reshape(n, -1), path)
    particles: dict[str, Iterable[object]] = {}
    names = text(data["blob/path"])
    particles["rlnImageName"] = [
        f"{i + 1:06d}@{name}" for i, name in zip(data["blob/idx"].tolist(), names, strict=True)
    ]
    particles |= _location_columns(data)
    if "ctf/df1_A" in have:
        for one in quantities():
            if (values := _from_cs(one, data)) is not None:
                (optics if one.per_group else particles)[one.relion] = values
        aberrations = cs_aberrations.aberrations_from_cs(data)
        optics |= aberrations
        used |= {one.cs for one in quantities() if one.cs} | set(cs_aberrations.CS_FIELDS)
    for name, field in _SAME.items():
        if field in have and data[field].any():
            (optics if name == "rlnMicrographOriginalPixelSize" else particles)[name] = data[field]
    poses_found, read = alignment_columns(data)
    particles |= poses_found
    if "blob/sign" in have and (data["blob/sign"] < 0).any():
        particles["csBlobSign"] = np.where(data["blob/sign"] < 0, -1, 1)
    particles["csUid"] = data["uid"]
    used |= read | set(_SAME.values()) | {name for name in have if name.startswith("blob/")}
    used |= {*_FRACTIONS, "location/micrograph_path", "location/micrograph_shape", _GROUP_NAME}
    blocks = _blocks(data, optics, particles, path)
    return StarFile(path, blocks), _dropped_fields(data, used | {"ctf/exp_group_id"}, path)


def _side(shape: np.ndarray, path: str) -> np.ndarray:
    if (shape[:, 0] != shape[:, -1]).any():
        row = int(np.argmax(shape[:, 0] != shape[:, -1]))
        raise InputError(
            f"{path}: row {row + 1}, field blob/shape: {shape[row].tolist()}; square images are "
            "needed"
        )
    return shape[:, 0]


def _blocks(
    data: np.ndarray,
    optics: dict[str, np.ndarray],
    particles: dict[str, Iterable[object]],
    path: str,
) -> dict[str, Table]:
    """Both tables: an optics group for each set of values, numbered as in cryoSPARC where that is
    one of values too."""
    have, n = set(fields(data)), len(data)
    label = np.ones(n, np.int64)
    if "ctf/exp_group_id" in have:
        label = data["ctf/exp_group_id"].astype(np.int64) + 1
    named = text(data[_GROUP_NAME]) if _GROUP_NAME in have else None
    codes = [np.unique(values, return_inverse=True)[1].ravel() for values in optics.values()]
    codes += [] if named is None else [np.unique(named, return_inverse=True)[1].ravel()]
    keys = np.stack([label, *codes], axis=1)
    groups, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    labels = groups[:, 0].astype(np.int64)
    if len(set(labels.tolist())) < len(labels) or labels.max() > _LARGEST_GROUP:
        labels = np.arange(1, len(groups) + 1)
    particles["rlnOpticsGroup"] = labels[inverse.ravel()]
    columns: dict[str, Iterable[object]] = {
        "rlnOpticsGroup": labels,
        "rlnOpticsGroupName": [f"opticsGroup{i}" for i in labels]
        if named is None
        else [named[i] for i in first],
    }
    columns |= {name: values[first] for name, values in optics.items()}
    columns["rlnImageDimensionality"] = [2] * len(labels)
    return {
        "optics": Table.from_columns(columns, path=path),
        "particles": Table.from_columns(particles, path=path),
    }


def _location_columns(data: np.ndarray) -> dict[str, Iterable[object]]:
    """Micrograph, and coordinates in its pixels."""
    have = set(fields(data))
    out: dict[str, Iterable[object]] = {}
    if "location/micrograph_path" in have:
        out["rlnMicrographName"] = text(data["location/micrograph_path"])
    if {*_FRACTIONS, "location/micrograph_shape"} <= have:
        size = data["location/micrograph_shape"].reshape(len(data), -1)[:, ::-1]  # stored y, x
        for axis in (0, 1):
            fraction = data[_FRACTIONS[axis]].astype(np.float64)
            out[_COORDINATES[axis]] = fraction * size[:, axis]
            out[_MICROGRAPH_SIZE[axis]] = size[:, axis].astype(np.int64)
    return out


def _dropped_fields(data: np.ndarray, used: set[str], path: str) -> tuple[str, ...]:
    """One line that names every field which is not zero and has no place in RELION's tables."""
    lost = []
    for name in fields(data):
        if name in used or data.dtype[name].base.kind in "SU":
            continue
        if name.endswith("/class_posterior") and (data[name] == 1).all():
            continue  # of one class
        rows = np.count_nonzero((data[name].reshape(len(data), -1) != 0).any(axis=1))
        if rows:
            lost.append(f"{name} ({rows} rows)")
    return (f"{path}: not carried over: {', '.join(lost)}",) if lost else ()


def star_to_cs(
    tables: ParticleTables,
    *,
    box: int | np.ndarray,
    pixel_size_angstrom: float | np.ndarray,
    micrograph_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Structured array with the fields of cryoSPARC's imported particles, and notes on what they do
    not carry: columns, with the number of rows. Poses go to alignments3D, or 2D if they are angles
    in the plane.

    `uid` is csUid where the table has it, else made from the image name, so that the same particle
    always gets the same; rows of one image get different ones. `box` and pixel size are those of
    each stored image, or of all. `micrograph_sizes`: pixels along x and y, by name, for coordinates
    of a table that does not tell them.

    Raises:
        InputError: bad cells, or an incomplete CTF.
    """
    particles, n = tables.particles, len(tables.particles)
    sides, pixel = np.broadcast_to(box, n), np.broadcast_to(pixel_size_angstrom, n)
    image_names = particles.strings("rlnImageName").tolist()
    names = split_image_names(image_names, tables.path)
    angles, shift, in_3d = poses(tables, pixel)
    transfer, has_ctf = ctf_parameters(tables)
    stacks = [as_stack_name(name).encode("utf-8", "surrogateescape") for name in names.files]
    out: dict[str, np.ndarray] = {
        "uid": _uids(tables, image_names),
        "blob/path": np.array(stacks)[names.file],
        "blob/idx": names.index.astype(np.uint32),
        "blob/shape": np.stack([sides, sides], axis=1).astype(np.uint32),
        "blob/psize_A": pixel.astype(np.float32),
        "blob/sign": np.where(tables.floats("csBlobSign", 1.0) < 0, -1, 1).astype(np.float32),
    }
    lost: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    if has_ctf:
        groups = _exposure_groups(tables)
        out |= {"ctf/type": np.full(n, b"imported"), **groups, **_to_cs(transfer)}
        higher, lost = cs_aberrations.aberrations_to_cs(tables, transfer.voltage_kv)
        out[_TILT] = out[_TILT] + higher.pop(_TILT)
        out |= {"ctf/scale_const": np.zeros(n), **higher}
    out |= {
        field: tables.floats(name, finite=False)
        for name, field in _SAME.items()
        if tables.has(name)
    }
    location, placed = _location_fields(tables, micrograph_sizes or {})
    out |= location
    if in_3d or tables.has("rlnAnglePsi") or "rlnClassNumber" in particles:
        found, notes = alignment_fields(tables, angles, shift, pixel, in_3d=in_3d)
        out |= found
    carried = {*_IMPLIED, *_OF_IMAGES, *_OLD_SIZE, *_SAME, *POSE_COLUMNS, *NUMBER_COLUMNS, *placed}
    carried |= {one.relion for one in quantities() if one.cs or not has_ctf}
    carried |= set(cs_aberrations.USED) if has_ctf else set()
    notes += _dropped_columns(tables, carried, lost)
    return _structured(out), notes


def _structured(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    arrays = {
        name: values.astype(np.float32) if values.dtype == np.float64 else values
        for name, values in columns.items()
    }
    n = len(arrays["uid"])
    out = np.empty(n, [(name, values.dtype, values.shape[1:]) for name, values in arrays.items()])
    for name, values in arrays.items():
        out[name] = values
    return out


def _uids(tables: ParticleTables, image_names: list[str]) -> np.ndarray:
    """One number a row: csUid, or made of the image's name; of rows that would have the same, those
    after the first get one made of that and their count."""
    given = tables.particles.strings("csUid") if "csUid" in tables.particles else None
    keys = image_names if given is None else [str(value) for value in given]
    seen: dict[str, int] = {}
    uids = np.empty(len(keys), np.uint64)
    for row, key in enumerate(keys):
        count = seen[key] = seen.get(key, -1) + 1
        if count or given is None:
            uids[row] = _hashed(f"{key}#{count}" if count else key)
        else:
            uids[row] = _uid(key, tables, row)
    return uids


def _uid(cell: str, tables: ParticleTables, row: int) -> int:
    if not cell.isdecimal() or int(cell) >= 1 << 64:
        raise InputError(
            f"{tables.particles.where(row, 'csUid')}: expected cryoSPARC's uid, a whole number "
            f"below 2^64, found {cell!r}; correct the cell or remove the column"
        )
    return int(cell)


def _hashed(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _location_fields(
    tables: ParticleTables, sizes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Micrograph and coordinates as shares of it, and the columns that have found a place."""
    particles = tables.particles
    if "rlnMicrographName" not in particles:
        return {}, ()
    names = particles.strings("rlnMicrographName")
    unique, row_of = np.unique(names.astype(str), return_inverse=True)
    encoded = [name.encode("utf-8", "surrogateescape") for name in unique.tolist()]
    out = {
        "location/micrograph_uid": np.array([_hashed(name) for name in unique.tolist()], np.uint64)[
            row_of
        ],
        "location/micrograph_path": np.array(encoded)[row_of],
    }
    placed = ("rlnMicrographName", *_MICROGRAPH_SIZE)
    if not all(name in particles for name in _COORDINATES):
        return out, placed
    if all(name in particles for name in _MICROGRAPH_SIZE):
        size = np.stack([particles.ints(name) for name in _MICROGRAPH_SIZE], axis=1)
    else:
        size = np.array([sizes.get(name, (0, 0)) for name in unique.tolist()])[row_of]
    if size.min() <= 0:
        return out, placed
    out["location/micrograph_shape"] = size[:, ::-1].astype(np.uint32)
    for axis in (0, 1):
        out[_FRACTIONS[axis]] = particles.floats(_COORDINATES[axis]) / size[:, axis]
    return out, (*placed, *_COORDINATES)


def _dropped_columns(
    tables: ParticleTables, carried: set[str], parts: Mapping[str, int]
) -> tuple[str, ...]:
    """One line that names every column without a place in a `.cs` file."""
    lost = [f"_{name} ({rows} rows)" for name, rows in parts.items()]
    for table, what in ((tables.optics, "groups"), (tables.particles, "rows")):
        for name in () if table is None else table.names:
            if name not in carried:
                lost.append(f"_{name} ({len(table)} {what})")  # type: ignore[arg-type]
    return (f"{tables.path}: not carried over: {', '.join(lost)}",) if lost else ()


def _from_cs(one: Quantity, data: np.ndarray) -> np.ndarray | None:
    """A CTF parameter in its own unit; None where the array has none, or a beam tilt of 0."""
    if one.cs is None or one.cs not in fields(data):
        return None
    values = data[one.cs].astype(np.float64)
    if one.cs == _TILT:
        if not values.any() or not cs_aberrations.tilt_is_an_angle(data):
            return None
        spherical = data["ctf/cs_mm"].astype(np.float64) * _ANGSTROM_PER_MM
        return np.arcsin(values[:, one.cs_component] / spherical) * 1e3
    return np.degrees(values) if one.cs.endswith("_rad") else values


def _to_cs(parameters: CTFParameters) -> dict[str, np.ndarray]:
    """The CTF's fields of a `.cs` file."""
    columns: dict[str, np.ndarray] = {}
    for one in quantities():
        values = getattr(parameters, one.name)
        if one.cs is None or one.coefficients:
            continue
        if one.cs == _TILT:
            spherical = parameters.spherical_aberration_mm * _ANGSTROM_PER_MM
            vector = columns.setdefault(_TILT, np.zeros((len(values), 2)))
            vector[:, one.cs_component] = np.sin(values * 1e-3) * spherical
        else:
            columns[one.cs] = np.radians(values) if one.cs.endswith("_rad") else values
    return columns


def _exposure_groups(tables: ParticleTables) -> dict[str, np.ndarray]:
    """cryoSPARC's group of each particle, from 0, and the group's name where it has one of its
    own."""
    if tables.optics is None:
        return {"ctf/exp_group_id": tables.optics_group.astype(np.uint32)}
    labels = tables.optics.ints("rlnOpticsGroup")
    first = min(1, int(labels.min()))  # RELION counts from 1, some programs from 0
    out = {"ctf/exp_group_id": (labels - first)[tables.optics_group].astype(np.uint32)}
    if "rlnOpticsGroupName" in tables.optics:
        names = tables.optics.strings("rlnOpticsGroupName").tolist()
        if (
            any(name != f"opticsGroup{i}" for i, name in zip(labels, names, strict=True))
            or first < 1
        ):
            encoded = [name.encode("utf-8", "surrogateescape") for name in names]
            out[_GROUP_NAME] = np.array(encoded)[tables.optics_group]
    return out
