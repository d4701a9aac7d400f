"""Each kernel on every device against the plain torch reference on the CPU; who decides which runs;
arguments that would end the process."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from halfmap import kernels
from halfmap.errors import InputError
from halfmap.fourier import half_plane, shift_phases
from halfmap.gridding import PADDING
from halfmap.kernels import cpu, reference
from halfmap.projection import (
    empty_sums,
    extract_slices,
    grid_shape,
    insert_slices,
    prepare_references,
)
from halfmap.so3 import compose, random_rotations, rotation_2d
from halfmap.symmetries import point_group

BOX, RADIUS, N = 20, 9, 6
PLANE = half_plane(BOX, RADIUS)
KX, KY = PLANE.kx.float(), PLANE.ky.float()
CLASSES = torch.tensor([0, 1, 1, 0, 1, 0])


def _rotations(n: int, dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if dimensions == 3:
        return random_rotations(n, generator)
    rotations = torch.eye(3).repeat(n, 1, 1)
    rotations[:, :2, :2] = rotation_2d(torch.rand(n, generator=generator) * 360)
    return rotations


def _complex(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def _real(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _grid(dimensions: int) -> torch.Tensor:
    density = torch.randn(2, *([BOX] * dimensions), generator=torch.Generator().manual_seed(1))
    return prepare_references(density, RADIUS).grid


def _on(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


def _close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float) -> None:
    """Within a share of the largest value."""
    assert theirs.abs().max() > 0
    assert (ours.cpu() - theirs).abs().max() < rtol * theirs.abs().max()


@pytest.fixture(params=[None, 500], ids=["whole", "in_parts"])
def parts(request, monkeypatch) -> None:
    """The torch kernels working on all at once, and on a slice or two at a time."""
    if request.param:
        monkeypatch.setattr(kernels, "SAMPLES_AT_ONCE", request.param)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_slices_equal_the_reference(dimensions, device, parts):
    arguments = _grid(dimensions), _rotations(N, dimensions), CLASSES, KX, KY
    ours = kernels.slices(*_on(device, *arguments), padding=PADDING)
    _close(ours, reference.slices(*arguments, PADDING), 1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_insertion_equals_the_reference_mate_by_mate(dimensions, device, parts):
    """Rotations of the slices and of one symmetry mate of each."""
    shape = (2, *grid_shape(RADIUS, dimensions))
    values, weights = _complex(N, len(PLANE)), _real(N, len(PLANE))
    own = _rotations(N, dimensions)
    mates = [own, compose(own, torch.diag(torch.tensor([-1.0, -1.0, 1.0])))]
    num, den = torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape)
    for rotations in mates:
        reference.insert(num, den, values, weights, rotations, CLASSES, KX, KY, PADDING)
    sums = _on(device, torch.zeros_like(num), torch.zeros_like(den))
    slices = _on(device, values, weights, torch.cat(mates), CLASSES, KX, KY)
    kernels.insert(*sums, *slices, padding=PADDING)
    _close(sums[0], num, 1e-5)
    _close(sums[1], den, 1e-5)


def test_symmetrised_grids_equal_the_reference(device, parts):
    """With translations, and of real grids, which have no phases."""
    num, den = _grid(3), _real(2, *grid_shape(RADIUS, 3))
    rotations, moved = _rotations(3, 3), 3 * _real(3, 3)
    z, reach = torch.arange(num.shape[1]) - (num.shape[1] - 1) // 2, 2 * RADIUS + 1.5
    for grid in (num, den):
        theirs = reference.symmetrised(grid, rotations, moved, 0.1, reach, z)
        ours = kernels.symmetrised(*_on(device, grid, rotations, moved), turn=0.1, reach=reach)
        _close(ours, theirs, 1e-5)
    still = reference.symmetrised(num, rotations, 0 * moved, 0.1, reach, z)
    assert (theirs != 0).float().mean() > 0.3
    assert (still - reference.symmetrised(num, rotations, moved, 0.1, reach, z)).norm() > 0.1


@pytest.mark.parametrize("group", ["C4", "D2", "D7", "O", "I"])
def test_sums_over_a_group_made_at_one_cell_for_its_mates_are_those_of_all_cells(group):
    """Of D7 and I, only some rotations move cells; then one of each coset comes after them."""
    rotations = point_group(group).rotations.float()
    whole = rotations.round()
    rotations = torch.where((whole - rotations).abs() < 1e-5, whole, rotations)
    exact = (rotations == rotations.round()).flatten(1).all(1)
    cosets: list[torch.Tensor] = []
    for s in rotations:
        mates = rotations[exact] @ s
        if not any((mates - c).abs().flatten(1).amax(1).min() < 1e-3 for c in cosets):
            cosets.append(s)
    num, den = _grid(3), _real(2, *grid_shape(RADIUS, 3))
    for grid in (num, den):  # Hermitian, as sums are
        grid[..., 0] += grid[..., 0].flip(1, 2).conj()
    z, reach = torch.arange(num.shape[1]) - (num.shape[1] - 1) // 2, 2 * RADIUS + 1.5
    still = torch.zeros(len(rotations), 3)
    for grid in (num, den):
        of_group, one_by_one = grid, grid
        for part in (rotations[exact], torch.stack(cosets)):
            t = still[: len(part)]
            one_by_one = reference.symmetrised(one_by_one, part, t, 0.1, reach, z)
            of_group = kernels.symmetrised(
                of_group, part, t, turn=0.1, reach=reach, fill=rotations[exact]
            )
        _close(of_group, one_by_one, 1e-5)
        assert (of_group - grid).norm() > 0.5 * grid.norm()


def test_gathering_equals_the_reference_and_moves_images_back(device):
    """Entries of several images in several slices, one slice without any; the phases are those of
    `shift_phases`; the images have more samples than are asked for."""
    data, power, weight = _complex(4, len(PLANE) + 7), _real(4, len(PLANE) + 7), _real(9, seed=5)
    image, shift_px = torch.tensor([0, 1, 1, 3, 2, 0, 3, 3, 1]), 8 * _real(9, 2) - 4
    starts = torch.tensor([0, 2, 2, 6, 9])
    arguments = data, power, image, shift_px, weight, starts, KX, KY
    values, weights = kernels.gather(*_on(device, *arguments), box=BOX)
    n = len(PLANE)
    theirs = reference.gather(data[:, :n], power[:, :n], *arguments[2:], BOX)
    _close(values, theirs[0], 1e-5)
    _close(weights, theirs[1], 1e-5)
    first = sum(weight[e] * data[image[e], :n] * shift_phases(shift_px[e], PLANE) for e in (0, 1))
    _close(values[0], first, 1e-5)
    assert (values[1] == 0).all()
    assert (weights[1] == 0).all()


@pytest.mark.parametrize("derivatives", [True, False])
@pytest.mark.parametrize("n_samples", [40, len(PLANE)])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_pose_equations_equal_the_reference(derivatives, dimensions, n_samples, device, parts):
    grid, rotations, shifts = _grid(dimensions), _rotations(N, dimensions), 2 * _real(N, 2) - 1
    data, power, weight = _complex(3, len(PLANE)), _real(3, len(PLANE)), PLANE.hermitian_weight
    images = torch.tensor([0, 1, 2, 2, 1, 0])
    ours = kernels.pose_equations(
        *_on(device, grid, rotations, shifts, CLASSES, images, data, power, KX, KY, weight),
        n_samples=n_samples,
        box=BOX,
        padding=PADDING,
        derivatives=derivatives,
    )
    theirs = (reference.pose_equations if derivatives else reference.pose_scores)(
        grid,
        rotations,
        shifts,
        CLASSES,
        data[images, :n_samples],
        power[images, :n_samples],
        KX[:n_samples],
        KY[:n_samples],
        weight[:n_samples],
        BOX,
        PADDING,
    )
    blocks = slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 12), slice(12, 27)
    for block in blocks[: 5 if derivatives else 2]:
        _close(ours[:, block], theirs[:, block], 1e-5)


def test_pose_scores_are_the_first_of_the_pose_equations():
    shifts, images = 2 * _real(N, 2) - 1, torch.tensor([0, 1, 2, 2, 1, 0])
    arguments = _grid(3), _rotations(N, 3), shifts, CLASSES, images, _complex(3, len(PLANE))
    arguments += _real(3, len(PLANE)), KX, KY, PLANE.hermitian_weight
    options = {"n_samples": len(PLANE), "box": BOX, "padding": PADDING}
    scores = kernels.pose_equations(*arguments, **options, derivatives=False)
    _close(scores, kernels.pose_equations(*arguments, **options)[:, :2], 1e-5)


def test_insertion_does_not_depend_on_the_number_of_slabs():
    values = torch.view_as_real(_complex(N, len(PLANE))).numpy()
    weights, rotations = _real(N, len(PLANE)).numpy(), _rotations(N, 3).numpy()
    results = []
    for n_slabs in (1, 3):
        sums = empty_sums(2, BOX, RADIUS, 3)
        grids = torch.view_as_real(sums.num).numpy(), sums.den.numpy()
        where = rotations, CLASSES.numpy(), KX.numpy(), KY.numpy()
        cpu.insert(*grids, values, weights, *where, PADDING, n_slabs)
        results.append(sums)
    assert torch.equal(results[0].num, results[1].num)
    assert torch.equal(results[0].den, results[1].den)


# --- who decides ----------------------------------------------------------------------------------


def test_the_environment_chooses_the_kernels_of_the_cpu(monkeypatch):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    assert kernels.uses_numba(torch.device("cpu"))
    assert not kernels.uses_numba(torch.device("cuda"))
    monkeypatch.setenv(kernels.SWITCH, "torch")
    assert not kernels.uses_numba(torch.device("cpu"))
    monkeypatch.setenv(kernels.SWITCH, "cuda")
    with pytest.raises(InputError, match="HALFMAP_KERNELS: expected numba or torch, got 'cuda'"):
        kernels.uses_numba(torch.device("cpu"))


def test_numba_is_imported_by_the_first_kernel_alone():
    code = (
        "import sys, torch, halfmap.projection as p, halfmap.fourier as f\n"
        "assert 'numba' not in sys.modules\n"
        "references = p.prepare_references(torch.zeros(1, 8, 8, 8), 3)\n"
        "assert 'numba' not in sys.modules\n"
        "p.extract_slices(references, torch.eye(3)[None], f.half_plane(8, 3))\n"
        "assert 'numba' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- arguments that would end the process ---------------------------------------------------------


def _volume() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((BOX, BOX, BOX)).astype(np.float32)


def test_a_volume_without_its_batch_axis_is_refused_where_it_is_sliced():
    references = prepare_references(_volume(), RADIUS)  # as many class images as the box is long
    with pytest.raises(InputError, match=r"a volume comes as volume\[None\], of shape \(1, 20, 20"):
        extract_slices(references, _rotations(4, 3), PLANE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"classes": [0, 1, 0, 0]},
            "classes: expected 0 to 0, as there are references, got 0 to 1",
        ),
        ({"classes": [0, -1, 0, 0]}, "got -1 to 0"),
        ({"rotations": 3 * np.eye(3)[None].repeat(4, 0)}, "rows of length 1, got one of 3"),
        ({"rotations": np.full((4, 3, 3), np.nan)}, "rows of length 1, got one of nan"),
        ({"plane": half_plane(BOX + 4, RADIUS)}, "expected a box of 20 .* got a box of 24"),
        ({"plane": half_plane(22, 10)}, "a radius of at most 9"),
        ({"rotations": np.eye(3)}, r"rotations: expected .* shape \(M, 3, 3\), got \(3, 3\)"),
    ],
)
def test_slices_that_would_be_read_outside_the_references_are_refused(change, told):
    arguments = {"rotations": _rotations(4, 3), "plane": PLANE, "classes": None} | change
    references = prepare_references(_volume()[None], RADIUS)
    with pytest.raises(InputError, match=told):
        extract_slices(
            references, arguments["rotations"], arguments["plane"], classes=arguments["classes"]
        )


def test_insertion_refuses_what_does_not_fit_and_takes_arrays():
    values, weights = _complex(4, len(PLANE)).numpy(), _real(4, len(PLANE)).numpy()
    rotations = _rotations(4, 3).double().numpy()
    sums, same = (empty_sums(1, BOX, RADIUS, 3) for _ in range(2))
    with pytest.raises(InputError, match=r"weights: .* M = 4 as in values.* got \(3, 147\)"):
        insert_slices(sums, values, weights[:3], rotations, PLANE)
    with pytest.raises(InputError, match="turns about z alone"):
        insert_slices(empty_sums(1, BOX, RADIUS, 2), values, weights, rotations, PLANE)
    insert_slices(sums, values, weights, rotations, PLANE)
    tensors = [torch.from_numpy(a).float() for a in (weights, rotations)]
    insert_slices(same, torch.from_numpy(values), *tensors, PLANE)
    assert sums.den.sum() > 0
    assert torch.equal(sums.num, same.num)
    assert torch.equal(sums.den, same.den)


def test_kernels_just_compiled_and_kernels_from_the_cache_give_the_same_bits(tmp_path):
    """The first run after an installation, and every later one."""
    program = (
        "import torch; from halfmap import kernels; g = torch.Generator().manual_seed(0);"
        "grid = torch.randn(1, 61, 61, 31, dtype=torch.complex64, generator=g);"
        "k = torch.randint(-5, 6, (400,), generator=g).float();"
        "data = torch.randn(3, 400, dtype=torch.complex64, generator=g);"
        "found = kernels.pose_equations(grid, torch.eye(3).repeat(3, 1, 1),"
        " torch.rand(3, 2, generator=g), torch.zeros(3, dtype=torch.long), torch.arange(3), data,"
        " data.abs(), k, k.flip(0), torch.ones(400), n_samples=400, box=16, padding=2);"
        "print(found.numpy().tobytes().hex())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop(kernels.SWITCH, None)
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            check=True,
            capture_output=True,
            timeout=280,
        ).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbi"))  # the first found nothing, and left something
    assert len(first) > 3 * 27 * 8
    assert first == second
