"""The embedded phantom: a four-fold ion channel of helices and loops, made by formula and copied
from no structure.

Each subunit is one chain: a superhelical stack of helix pairs as soluble domain, S1 to S4 (a bundle
beside the neighbour's pore domain), S5, pore helix and S6 around the pore, a helix along the
membrane's lower face, and a C-terminal helix near the axis. Helices are ideal alpha-helices (5.4 A
pitch, 1.5 A rise, CA at 2.3 A); loops are cubic curves. Four copies about z make C4; tilted
helices, the domain swap and the stack's twist make it chiral, and nothing relates top and bottom.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from halfmap.errors import InputError
from halfmap.simulation.atomic_models import Atoms, density_from_atoms

# one residue about the helix axis: element, radius (A), angle (degrees) and rise (A) relative to
# CA; right-handed, 100 degrees a residue
_BACKBONE = (
    ("N", 1.55, -27.3, -0.87),
    ("C", 2.29, 0.0, 0.0),
    ("C", 1.67, 26.6, 1.11),
    ("O", 2.00, 19.0, 2.30),
)
_TWIST_DEGREES, _RISE_ANGSTROM = 100.0, 1.5
_LOOP_SPACING_ANGSTROM = 3.3  # CA to CA along a loop's curve
_BFACTOR = 30.0  # A^2

# the soluble stack: centre of each helix pair, cylindrical: radius (A), azimuth (degrees), z (A);
# from the outside in
_STACK = (
    (54.0, -46.0, -40.0),
    (52.0, -34.0, -42.5),
    (48.5, -21.5, -43.5),
    (43.5, -7.5, -43.0),
    (37.5, 8.0, -41.0),
    (30.0, 28.0, -38.0),
)
_STACK_HALF_HEIGHT, _STACK_HALF_GAP = 9.0, 4.8
_STACK_LEAN_DEGREES, _STACK_LEAN_STEP_DEGREES = (
    18.0,
    3.5,
)  # of the outermost pair, and how much more each further pair leans

# start and end of each further helix axis, cylindrical, in the chain's order
_HELICES = (
    ("linker", (27.0, 44.0, -22.0), (39.0, 60.0, -17.0)),
    ("S1", (41.0, 51.0, -7.0), (42.5, 66.0, 27.0)),
    ("S2", (36.5, 82.0, 26.0), (34.0, 72.0, -8.0)),
    ("S3", (24.5, 76.0, -5.0), (28.5, 63.0, 24.0)),
    ("S4", (34.5, 47.0, 27.0), (31.5, 59.0, 1.0)),
    ("S45", (30.5, 47.0, -6.5), (20.0, 20.0, -5.5)),
    ("S5", (20.0, 4.0, 1.0), (22.0, 24.0, 31.0)),
    ("pore", (16.5, 36.0, 31.0), (9.5, 20.0, 18.5)),
    ("S6", (14.5, 72.0, 30.0), (7.5, 42.0, -11.0)),
    ("belt", (15.5, 60.0, -15.5), (36.0, 88.0, -16.5)),
    ("tail", (16.0, 70.0, -27.0), (10.0, 38.0, -58.0)),
)
_SOLUBLE = ("stack", "tail")  # turns about z in state 1
_STATE_1_TURN_DEGREES, _STATE_1_MISSING = 9.0, ("tail",)


def phantom(
    box: int,
    pixel_size_angstrom: float,
    *,
    symmetry: str = "C4",
    state: int = 0,
    resolution_angstrom: float | None = None,
) -> Float[Tensor, "N N N"]:
    """The phantom's electrostatic potential (V), band-limited at Nyquist or at
    `resolution_angstrom`, four-fold axis along z.

    State 1: the soluble domain turned by 9 degrees about z and the C-terminal helices missing. C1:
    each subunit differs, see `phantom_atoms`. It is 148 A across. Raises InputError when the box
    does not hold it.

    >>> volume = phantom(32, 6.0)
    >>> volume.shape
    torch.Size([32, 32, 32])
    """
    atoms = phantom_atoms(symmetry=symmetry, state=state)
    return density_from_atoms(
        atoms,
        box=box,
        pixel_size_angstrom=pixel_size_angstrom,
        resolution_angstrom=resolution_angstrom,
    )


def phantom_atoms(*, symmetry: str = "C4", state: int = 0) -> Atoms:
    """The phantom's atoms: N, CA, C, O and up to seven side-chain atoms a residue; the centre of
    mass of C4, state 0, is the origin.

    C1 distinguishes the subunits: the second's soluble domain is turned by 14 degrees, the third
    has lost the outer half of its stack, the fourth its S1 and S2.
    """
    if symmetry not in ("C4", "C1"):
        raise InputError(f"symmetry: the phantom exists as 'C4' and 'C1', got {symmetry!r}")
    if state not in (0, 1):
        raise InputError(f"state: the phantom has states 0 and 1, got {state!r}")
    turn = _STATE_1_TURN_DEGREES if state else 0.0
    missing = _STATE_1_MISSING if state else ()
    turns = [turn] * 4 if symmetry == "C4" else [turn, turn + 14.0, turn, turn]
    losses = (
        [missing] * 4
        if symmetry == "C4"
        else [missing, missing, (*missing, "stack0", "stack1", "stack2"), (*missing, "S1", "S2")]
    )
    subunits = [_subunit(turn_degrees=t, missing=m) for t, m in zip(turns, losses, strict=True)]
    height = _subunit(turn_degrees=0.0, missing=()).centre_of_mass()[2]
    positions = [
        (s.positions - [0.0, 0.0, height]) @ _about_z(90.0 * i).T for i, s in enumerate(subunits)
    ]
    return Atoms(
        positions=np.concatenate(positions),
        elements=np.concatenate([s.elements for s in subunits]),
        bfactors=np.concatenate([s.bfactors for s in subunits]),
        occupancies=np.concatenate([s.occupancies for s in subunits]),
    )


def _subunit(*, turn_degrees: float, missing: tuple[str, ...]) -> Atoms:
    """One chain: the helices of the table in order, joined by loops; a missing helix takes its
    loops with it."""
    pieces: list[tuple[np.ndarray, list[str]]] = []
    previous: tuple[np.ndarray, np.ndarray] | None = None  # end and direction of the last helix
    for residue, (name, start, end) in enumerate(_axes(turn_degrees)):
        if name.startswith(missing):
            previous = None
            continue
        direction = (end - start) / np.linalg.norm(end - start)
        if previous is not None:
            pieces.append(_loop(*previous, start, direction, 50 * residue + 25))
        pieces.append(_helix(start, end, 50 * residue))
        previous = (end, direction)
    elements = [element for _, piece in pieces for element in piece]
    return Atoms(
        positions=np.concatenate([positions for positions, _ in pieces]),
        elements=np.array(elements),
        bfactors=np.full(len(elements), _BFACTOR),
        occupancies=np.ones(len(elements)),
    )


def _axes(turn_degrees: float) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, start and end (A) of every helix axis of one chain in order; the soluble domain turned
    about z."""
    axes = []
    for pair, (radius, azimuth, z) in enumerate(_STACK):
        # two antiparallel helices side by side along the radius, leaning along the stack more and
        # more: a superhelix
        sideways = _STACK_HALF_HEIGHT * math.tan(
            math.radians(_STACK_LEAN_DEGREES + _STACK_LEAN_STEP_DEGREES * pair)
        )
        for side, up in (("a", 1.0), ("b", -1.0)):
            r = radius - up * _STACK_HALF_GAP
            turned = math.degrees(up * sideways / r)
            start = _cartesian((r, azimuth + turned, z + up * _STACK_HALF_HEIGHT), turn_degrees)
            end = _cartesian((r, azimuth - turned, z - up * _STACK_HALF_HEIGHT), turn_degrees)
            axes.append((f"stack{pair}{side}", start, end))
    for name, top, bottom in _HELICES:
        turn = turn_degrees if name.startswith(_SOLUBLE) else 0.0
        axes.append((name, _cartesian(top, turn), _cartesian(bottom, turn)))
    return axes


def _helix(start: np.ndarray, end: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    """Atoms of an ideal alpha-helix whose axis runs from start to end."""
    axis = (end - start) / np.linalg.norm(end - start)
    across, along = _perpendicular(axis)
    count = round(float(np.linalg.norm(end - start)) / _RISE_ANGSTROM)
    positions, elements = [], []
    for i in range(count):
        atoms = [*_BACKBONE, *_side_chain(seed + i)]
        for element, radius, angle, rise in atoms:
            phase = math.radians(_TWIST_DEGREES * i + angle)
            positions.append(
                start
                + axis * (_RISE_ANGSTROM * (i + 0.5) + rise)
                + radius * (math.cos(phase) * across + math.sin(phase) * along)
            )
            elements.append(element)
    return np.array(positions), elements


def _side_chain(residue: int) -> list[tuple[str, float, float, float]]:
    """None (glycine) to six atoms outwards from CA, zigzag; which one is a fixed aperiodic sequence
    of the residue's number."""
    golden = (residue * 0.6180339887) % 1.0
    lean = 40.0 * ((residue * 0.7548776662) % 1.0 - 0.5)
    chain = []
    for j in range(round(6.6 * golden)):
        element = "O" if j == 4 else "N" if j == 5 else "C"
        chain.append(
            (
                element,
                3.29 + 1.15 * j,
                -19.0 + (lean / 6.0) * j + (9.0 if j % 2 else 0.0),
                -0.72 - 0.55 * j + (0.5 if j % 2 else 0.0),
            )
        )
    return chain


def _loop(
    start: np.ndarray, leaving: np.ndarray, end: np.ndarray, arriving: np.ndarray, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Residues along the cubic curve that leaves one helix and arrives at the next; the chain
    zigzags about the curve."""
    reach = 1.2 * float(np.linalg.norm(end - start)) + 6.0
    t = np.linspace(0.0, 1.0, 400)[:, None]
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * reach * leaving
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * reach * arriving
    )
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    count = max(1, round(length[-1] / _LOOP_SPACING_ANGSTROM) - 1)
    positions, elements = [], []
    for i in range(count):
        at = (i + 1) / (count + 1) * length[-1]
        centre, ahead = (
            np.array([np.interp(at + step, length, curve[:, axis]) for axis in range(3)])
            for step in (-0.5, 0.5)
        )
        tangent = (ahead - centre) / np.linalg.norm(ahead - centre)
        across, along = _perpendicular(tangent)
        side = 1.0 if i % 2 else -1.0
        # along the chain, sideways towards the side chain, and along the third axis, A
        backbone = (
            ("N", -1.2, 0.0, 0.4),
            ("C", 0.0, 0.6, 0.0),
            ("C", 1.2, 0.0, -0.4),
            ("O", 1.3, -1.1, -0.9),
        )
        side_chain = [
            (e, 0.3 * j, r - 1.2, 0.6 * (j % 2))
            for j, (e, r, _, _) in enumerate(_side_chain(seed + i))
        ]
        for element, forwards, sideways, third in [*backbone, *side_chain]:
            positions.append(centre + forwards * tangent + side * sideways * across + third * along)
            elements.append(element)
    return np.array(positions), elements


def _perpendicular(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that make a right-handed frame (across, along, axis)."""
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    across = np.cross(helper, axis)
    across /= np.linalg.norm(across)
    return across, np.cross(axis, across)


def _cartesian(cylindrical: tuple[float, float, float], turn_degrees: float) -> np.ndarray:
    radius, azimuth, z = cylindrical
    angle = math.radians(azimuth + turn_degrees)
    return np.array([radius * math.cos(angle), radius * math.sin(angle), z])


def _about_z(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
