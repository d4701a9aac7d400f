"""halfmap class2d on particles whose truth is known: one class, one view; sorted, repeatable,
resumed; bad input in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.fourier import half_plane, inverse_fourier_transform, lowpass, shift_phases
from halfmap.io.mrc import open_stack
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.methods.reference_update import reseed_empty
from halfmap.particles import load_particles
from halfmap.projection import Sums
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import compose, euler_to_matrix
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.job import read_events, read_job
from killed import kill_after_checkpoint

N, BOX, PIXEL, K = 300, 32, 6.0, 6
RESULTS = ("classes.mrcs", "classes.star", "particles.star", "pictures/class_history.png")
METHODS = ("ml", "template")
QUICK = {
    "angular_step_deg": 10.0,
    "shift_range_px": 3.0,
    "device": "cpu",
    "threads": 1,  # sums in the order of one thread, in every process
    "quiet": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("class2d") / "sim"
    return halfmap.simulate(
        "phantom",
        out,
        n=N,
        snr=0.5,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=1.0,
        seed=3,
        quiet=True,
    ).folder


def _class2d(data: Path, out: Path, **options):
    return halfmap.class2d(
        data / "particles.star", out, **{**QUICK, "classes": K, "iterations": 6, **options}
    )


@pytest.fixture(
    scope="module", params=[(m, s) for m in METHODS for s in ("kmeans++", "random")], ids="-".join
)
def classified(request, data, tmp_path_factory):
    method, start = request.param
    return _class2d(data, tmp_path_factory.mktemp("classified") / "job", method=method, start=start)


def _bytes(folder: Path) -> dict[str, bytes]:
    """The results; the table of classes names its stack with the job's folder."""
    own = f"{folder}/".encode()
    return {name: (folder / name).read_bytes().replace(own, b"") for name in RESULTS}


def _images(folder: Path) -> torch.Tensor:
    stack = open_stack(folder / "classes.mrcs")
    return torch.from_numpy(stack.read(np.arange(len(stack))).copy())


def _rotated(rotation: torch.Tensor, psi_deg: torch.Tensor) -> torch.Tensor:
    """The view of a rotation, turned in its plane."""
    turn = euler_to_matrix(torch.stack([0 * psi_deg, 0 * psi_deg, psi_deg], -1).double())
    return compose(turn, rotation.double().expand(len(psi_deg), 3, 3)).float()


def _best_correlation(image: torch.Tensor, volume: torch.Tensor, rotation: torch.Tensor) -> float:
    """Highest correlation coefficient of an image with the volume's projection along one view, over
    turns and shifts."""
    plane, mask = (
        half_plane(BOX, BOX // 2 - 1),
        soft_sphere(BOX, radius_px=13, edge_px=2, dimensions=2),
    )
    turned = exact_slices(volume, _rotated(rotation, torch.arange(0, 360, 5.0)), plane.kx, plane.ky)
    shifts = torch.cartesian_prod(torch.arange(-2, 2.5, 0.5), torch.arange(-2, 2.5, 0.5))
    projections = (
        inverse_fourier_transform(
            (turned[:, None] * shift_phases(shifts, plane)).flatten(0, 1), plane
        )
        * mask
    )
    projections, image = projections.flatten(1), (image * mask).flatten()
    projections, image = projections - projections.mean(1, keepdim=True), image - image.mean()
    return ((projections @ image) / projections.norm(dim=1) / image.norm()).max().item()


def _view_angles(rotations: torch.Tensor) -> torch.Tensor:
    """Angles between the directions of view, modulo C4."""
    view = rotations[:, 2].double()
    mates = torch.einsum("gij,nj->gni", symmetry_matrices("C4").double(), view)
    return torch.rad2deg(torch.einsum("ni,gmi->gnm", view, mates).amax(0).clamp(-1, 1).arccos())


def _truth(data: Path, star: Path) -> torch.Tensor:
    """True rotations of the particles of a file, found by image."""
    known, found = load_particles(data / "truth.star"), load_particles(star)
    row = dict(zip(known.image_index.tolist(), range(len(known)), strict=True))
    rows = [row[i] for i in found.image_index.tolist()]
    return euler_to_matrix(torch.from_numpy(known.rotations_deg[rows]))


# --- a class is a view ----------------------------------------------------------------------------


def test_images_of_one_class_share_a_view(classified, data):
    classes = torch.from_numpy(load_particles(classified.folder / "particles.star").class_number)
    angles = _view_angles(_truth(data, classified.folder / "particles.star"))
    others = ~torch.eye(N, dtype=torch.bool)
    within = angles[(classes[:, None] == classes) & others].median()
    assert within < 0.7 * angles[others].median()  # by chance they would be equal


def test_class_averages_are_projections_of_the_truth(classified, data):
    """Each of the larger classes against the projection along the view in the middle of its
    members'; one may mix two views."""
    classes = torch.from_numpy(load_particles(classified.folder / "particles.star").class_number)
    rotations, volume = _truth(data, classified.folder / "particles.star"), phantom(BOX, PIXEL)
    angles = _view_angles(rotations)
    found = []
    for k, (image, resolution) in enumerate(
        zip(_images(classified.folder), classified.resolutions_angstrom, strict=True)
    ):
        members = torch.nonzero(classes == k + 1)[:, 0]
        if len(members) < N / K / 2:
            continue
        middle = members[angles[members][:, members].mean(1).argmin()]
        smooth = lowpass(volume[None], max(resolution, 2 * PIXEL), PIXEL, dimensions=3)[0]
        found.append(_best_correlation(image, smooth, rotations[middle]))
    assert np.median(found) > 0.93
    assert min(found) > 0.85


def test_two_views_are_told_apart_without_one_error(tmp_path):
    """And a bare stack without CTF is classified, once it is told the pixel size."""
    star, kind = _two_views(tmp_path / "views.mrcs")
    for start in ("kmeans++", "random"):
        job = halfmap.class2d(
            star,
            tmp_path / start,
            classes=2,
            start=start,
            iterations=5,
            ctf=False,
            pixel_size_angstrom=PIXEL,
            **QUICK,
        )
        found = load_particles(tmp_path / start / "particles.star")
        assert found.pixel_size_angstrom == PIXEL
        assert job.sizes == (50, 30)
        np.testing.assert_array_equal(
            found.class_number, kind + 1
        )  # the first kind is the more frequent
        assert open_stack(tmp_path / start / "classes.mrcs").pixel_size_angstrom == pytest.approx(
            PIXEL, rel=1e-4
        )


def _two_views(path: Path, *, pixel: float = 0.0) -> tuple[Path, np.ndarray]:
    """50 copies of a top view and 30 of a side view of the phantom, turned, shifted, in a little
    noise."""
    generator = torch.Generator().manual_seed(1)
    kind = np.random.default_rng(0).permutation(np.repeat([0, 1], [50, 30]))
    tilt = torch.tensor([10.0, 80.0])[torch.from_numpy(kind)]
    angles = torch.stack([torch.zeros(80), tilt, 360 * torch.rand(80, generator=generator)], -1)
    plane = half_plane(BOX, 15)
    slices = exact_slices(
        phantom(BOX, PIXEL), euler_to_matrix(angles.double()).float(), plane.kx, plane.ky
    )
    shifts = torch.rand(80, 2, generator=generator) * 3 - 1.5
    images = inverse_fourier_transform(slices * shift_phases(shifts, plane), plane)
    images = images / images.std() * 2 + torch.randn(images.shape, generator=generator)
    with StackWriter(path, pixel) as stack:
        stack.append(images.numpy())
    return path, kind


def test_images_all_alike_are_no_trouble(tmp_path):
    """Nothing is far from the first start: the others are still drawn, and every image has a
    class."""
    one = np.random.default_rng(0).normal(size=(BOX, BOX)).astype(np.float32)
    with StackWriter(tmp_path / "same.mrcs", PIXEL) as stack:
        stack.append(np.repeat(one[None], 12, axis=0))
    job = halfmap.class2d(
        tmp_path / "same.mrcs", tmp_path / "job", classes=3, iterations=2, ctf=False, **QUICK
    )
    assert sum(job.sizes) == 12
    assert np.isfinite(_images(tmp_path / "job").numpy()).all()


# --- what is written ------------------------------------------------------------------------------


def test_classes_are_sorted_by_size_and_all_files_agree(classified):
    folder = classified.folder
    particles = load_particles(folder / "particles.star")
    table = read_star(folder / "classes.star").blocks["model_classes"]
    counted = np.bincount(particles.class_number - 1, minlength=K)
    assert len(particles) == N
    assert classified.sizes == tuple(counted)
    assert (np.diff(counted) <= 0).all()
    np.testing.assert_array_equal(table.ints("halfmapClassSize"), counted)
    np.testing.assert_allclose(table.floats("rlnClassDistribution"), counted / N, atol=1e-5)
    np.testing.assert_allclose(
        table.floats("rlnEstimatedResolution"),
        np.minimum(classified.resolutions_angstrom, 999),
        rtol=1e-4,
    )
    assert table.strings("rlnReferenceImage").tolist() == [
        f"{k + 1:06d}@{folder / 'classes.mrcs'}" for k in range(K)
    ]
    assert _images(folder).shape == (K, BOX, BOX)
    assert read_job(folder)["results"]["sizes"] == list(counted)
    for picture in ("classes", "classes_start", "convergence"):
        assert (folder / "pictures" / f"{picture}.png").stat().st_size > 1000, picture


def test_an_image_belongs_to_the_average_it_looks_like(classified, data):
    """The numbers in particles.star are places in classes.mrcs: averaged as its row says, each
    class is its own average, not another's."""
    particles = load_particles(classified.folder / "particles.star")
    plane = half_plane(BOX, 6)
    images = inverse_fourier_transform(_aligned(particles, plane), plane)
    mask = soft_sphere(BOX, radius_px=13, edge_px=2, dimensions=2)
    means = (
        torch.stack(
            [images[torch.from_numpy(particles.class_number == k + 1)].mean(0) for k in range(K)]
        )
        * mask
    )
    averages = lowpass(_images(classified.folder), BOX * PIXEL / 6, PIXEL, dimensions=2) * mask
    agreement = torch.corrcoef(torch.cat([means.flatten(1), averages.flatten(1)]))[:K, K:]
    assert (agreement.argmax(1) == torch.arange(K)).all()


def _aligned(particles, plane) -> torch.Tensor:
    """Transforms of the images with their phases flipped, brought to the poses of the file."""
    from halfmap.fourier import fourier_transform
    from halfmap.transfer_function import ctf

    rows = np.arange(len(particles))
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg))
    shift = torch.from_numpy(particles.shift_angstrom / PIXEL).float()
    images = torch.from_numpy(particles.images(rows))
    transfer = ctf(particles.transfer.take(rows), *plane.frequencies(PIXEL))
    centred = inverse_fourier_transform(
        fourier_transform(images, plane) * transfer.sign() * shift_phases(shift, plane), plane
    )
    # object coordinates r = A^T x: the image at A r, by bilinear interpolation
    axis = (torch.arange(BOX) - BOX // 2).double()
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    there = torch.einsum("nij,yxj->nyxi", rotations[:, :2, :2].double(), grid)
    sampled = torch.nn.functional.grid_sample(
        centred[:, None],
        ((there + BOX // 2) * 2 / (BOX - 1) - 1).float(),
        align_corners=True,
        padding_mode="zeros",
    )[:, 0]
    return fourier_transform(sampled, plane)


# --- same seed, same bytes; stopped and resumed ---------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes_even_when_killed_and_resumed(data, tmp_path, method):
    options = {"iterations": 3, "classes": 4, "method": method}
    whole = _class2d(data, tmp_path / "whole", **options)
    out = tmp_path / "job"
    kill_after_checkpoint(
        "class2d", data / "particles.star", out=out, after=1, **{**QUICK, **options}
    )
    assert not (tmp_path / "job" / "classes.mrcs").exists()
    halfmap.resume(tmp_path / "job", quiet=True)
    assert _bytes(tmp_path / "job") == _bytes(whole.folder)
    assert [e["iteration"] for e in read_events(tmp_path / "job")] == [1, 2, 3]
    other = _class2d(data, tmp_path / "other", seed=2, **options)
    assert _bytes(other.folder) != _bytes(whole.folder)


# --- empty classes --------------------------------------------------------------------------------


def _numbered_halves(filled: list[bool]) -> list[Sums]:
    """Sums of both halves whose values tell half and class: 10 (k + 1) + half."""
    values = torch.tensor(
        [[10.0 * (k + 1) + h if f else 0.0 for k, f in enumerate(filled)] for h in (1, 2)]
    )
    cells = values[:, :, None, None, None].expand(2, len(filled), 2, 3, 2).contiguous()
    return [Sums(half.to(torch.complex64), half.clone(), 4, 1, 2) for half in cells]


def test_an_empty_class_takes_one_half_of_a_large_one_which_keeps_the_other():
    halves = _numbered_halves([True, False, True, False])
    ssnr = torch.arange(4.0)[:, None].expand(4, 2)
    given_halves, given = reseed_empty(halves, ssnr, torch.tensor([20, 1, 30, 0]))
    total = given_halves[0] + given_halves[1]
    assert total.den[:, 0, 0, 0].tolist() == [
        12.0,
        31.0,
        32.0,
        11.0,
    ]  # the largest helps the first that is empty
    assert torch.equal(total.num.real, total.den)
    assert given[:, 0].tolist() == [0.0, 2.0, 2.0, 0.0]
    assert ssnr[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]  # the argument is left alone


def test_more_empty_classes_than_others_are_filled_one_after_another():
    """One class holds every image: it is halved, and what is still empty waits for the next
    iteration; nothing is lost."""
    halves = _numbered_halves([False, True, False, False])
    halves, _ = reseed_empty(halves, torch.rand(4, 2), torch.tensor([0, 40, 0, 0]))
    total = halves[0] + halves[1]
    assert total.den[:, 0, 0, 0].tolist() == [21.0, 22.0, 0.0, 0.0]
    assert torch.equal(total.num.real, total.den)
    halves, _ = reseed_empty(halves, torch.rand(4, 2), torch.tensor([18, 22, 0, 0]))
    assert ((halves[0] + halves[1]).den[:, 0, 0, 0] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_hardly_a_class_is_empty_in_the_end(data, tmp_path, method):
    """More classes than views: some run empty on the way."""
    job = _class2d(data, tmp_path / "job", classes=30, iterations=3, method=method)
    images = _images(tmp_path / "job")
    assert sum(job.sizes) == N
    np.testing.assert_array_equal(images.std(dim=(1, 2)) > 0, np.array(job.sizes) > 0)
    assert np.mean(np.array(job.sizes) > 0) >= 0.8
    assert np.isfinite(images.numpy()).all()


# --- bad input ------------------------------------------------------------------------------------


def _refused(particles: Path, out: Path, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        halfmap.class2d(particles, out, **{**QUICK, "classes": 2, "iterations": 1, **options})
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": N // 2 + 1},
            f"--classes {N // 2 + 1}: expected at most half the number of usable images, {N // 2}",
        ),
        ({"classes": 0}, "--classes 0"),
        ({"method": "magic"}, "--method magic"),
        ({"start": "alphabetical"}, r"--start alphabetical.*kmeans\+\+"),
        ({"iterations": 0}, "--iterations 0"),
        ({"angular_step_deg": 45.0}, "--angular-step 45"),
        ({"diameter_angstrom": 1e4}, "--diameter 10000"),
        ({"wiener_constant": -1.0}, "--wiener-constant -1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_an_option_out_of_range_is_refused(data, tmp_path, options, message):
    _refused(data / "particles.star", tmp_path / "job", message, **options)


def test_a_bare_stack_needs_its_pixel_size_and_has_no_ctf(tmp_path):
    stack, _ = _two_views(tmp_path / "views.mrcs")
    _refused(stack, tmp_path / "job", r"views\.mrcs: .*no pixel size", ctf=False)
    _refused(stack, tmp_path / "job", r"views\.mrcs: no CTF.*--no-ctf", pixel_size_angstrom=PIXEL)
    _refused(stack, tmp_path / "job", "--pixel-size 0", ctf=False, pixel_size_angstrom=0.0)
