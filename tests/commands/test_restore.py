import math

import numpy as np
import pytest
import torch

from halfmap.commands import _restoring
from halfmap.commands.restore import restore
from halfmap.commands.resume import resume
from halfmap.errors import InputError
from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform
from halfmap.io.mrc import open_stack
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles
from halfmap.resolution import shell_correlations
from halfmap.restoration import (
    StackSums,
    aligned_transform,
    divide,
    in_plane_angles,
    measure_ssnr,
    stack_sums,
    wiener_filter,
    wiener_ssnr,
    wiener_stack,
)
from halfmap.transfer_function import CTFParameters, ctf, phase_flip, turned_ctf
from halfmap.workspace.job import Job, read_job

BOX, PIXEL = 64, 3.0
PLANE = half_plane(BOX, 31)


def _object(box: int = BOX, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Off-centre Gaussian blobs, (N, N)."""
    y, x = torch.meshgrid(*[torch.arange(box, dtype=dtype) - box // 2] * 2, indexing="ij")
    blobs = [
        (4, -3, 2.0, 1.0),
        (-7, 5, 1.2, 2.0),
        (8, 8, 1.5, -1.0),
        (-3, -9, 1.0, 1.5),
        (1, 2, 4.0, 1.0),
    ]
    return sum(
        (h * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * s**2)) for u, v, s, h in blobs),
        torch.zeros_like(x),
    )


def _parameters(
    defocus: list[float],
    *,
    astigmatism: float = 0.0,
    angle: float = 0.0,
    tilt: tuple[float, float] = (0.0, 0.0),
) -> CTFParameters:
    n = len(defocus)
    u = torch.tensor(defocus)
    columns = [u + astigmatism, u - astigmatism] + [
        torch.full((n,), v) for v in (angle, 300.0, 2.7, 0.1, 0.0, 0.0, 1.0, *tilt)
    ]
    return CTFParameters(*columns)


def _stack(
    n: int, *, ssnr: float | None, defocus: list[float] | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transforms of n images of the object, their CTFs, and the object's transform; `ssnr` is the
    mean |A|^2 over |N|^2."""
    truth = fourier_transform(_object()[None], PLANE)[0]
    values = ctf(
        _parameters(defocus or np.linspace(8000, 22000, n).tolist()),
        *(k.double() for k in PLANE.frequencies(PIXEL)),
    )
    samples = values * truth
    if ssnr is not None:
        noise = torch.randn(
            n, BOX, BOX, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        scale = math.sqrt(truth.abs().square().mean().item() / ssnr) / BOX
        samples = samples + scale * fourier_transform(noise, PLANE)
    return samples, values, truth


def _frc(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return shell_correlations(*(inverse_fourier_transform(x[None], PLANE) for x in (a, b)))[0]


def _real_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (inverse_fourier_transform(x[None], PLANE).flatten() for x in (a, b))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_division_undoes_the_ctf_exactly_without_noise_and_is_zero_at_its_zeros() -> None:
    samples, values, truth = _stack(3, ssnr=None)
    restored = divide(samples, values)
    torch.testing.assert_close(restored, truth.expand_as(restored), rtol=1e-9, atol=1e-9)
    assert divide(torch.tensor([3.0 + 1j]), torch.tensor([0.0])) == 0


def test_phase_flip_keeps_moduli_and_gives_the_objects_phases() -> None:
    samples, values, truth = _stack(3, ssnr=None)
    flipped = phase_flip(samples, values)
    torch.testing.assert_close(flipped.abs(), samples.abs())
    assert (flipped * truth.conj()).real.min() >= 0
    assert (flipped * truth.conj()).imag.abs().max() < 1e-9 * truth.abs().max() ** 2


def test_wiener_becomes_division_as_k_vanishes_and_never_exceeds_it() -> None:
    samples, values, _ = _stack(3, ssnr=0.1)
    away = values.abs() > 0.05
    torch.testing.assert_close(
        wiener_filter(samples, values, constant=1e-12)[away],
        divide(samples, values)[away],
        rtol=1e-8,
        atol=0,
    )
    filtered = wiener_filter(samples, values, constant=0.1)
    assert (
        filtered.abs() <= samples.abs() / (2 * math.sqrt(0.1)) + 1e-9
    ).all()  # max of C / (C^2 + k) is 1 / (2 sqrt k)
    one = wiener_stack(stack_sums(samples[:1], values[:1]), constant=0.1)
    torch.testing.assert_close(one, filtered[0])  # many images, with one image


def test_many_defoci_without_noise_recover_the_object_where_one_defocus_leaves_holes() -> None:
    samples, values, truth = _stack(12, ssnr=None)
    sums = stack_sums(samples, values)
    assert sums.c2.min() > 0.1  # its least is at k = 0, where every C is 0.1
    assert values[0].abs().min() < 0.01  # one CTF has zeros
    torch.testing.assert_close(wiener_stack(sums, constant=1e-9), truth, rtol=1e-6, atol=1e-6)


def test_sums_of_batches_are_the_sum_and_premultiplied_images_give_the_same() -> None:
    samples, values, _ = _stack(7, ssnr=0.1)
    whole = stack_sums(samples, values)
    parts = (
        stack_sums(samples[:3], values[:3])
        + stack_sums(samples[3:], values[3:])
        + StackSums.zero(len(PLANE))
    )
    multiplied = stack_sums(values * samples, values, torch.ones(7, dtype=torch.bool))
    for other in (parts, multiplied):
        assert other.images == whole.images
        for name in ("cx", "c2", "c2x2", "c4"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name))


def test_the_ssnr_measured_from_the_images_is_the_one_they_were_made_with() -> None:
    samples, values, truth = _stack(600, ssnr=0.05, seed=1)
    measured = measure_ssnr(stack_sums(samples, values), PLANE)
    power = torch.zeros(32, dtype=torch.float64).index_add_(
        0, PLANE.shell, truth.abs().square() * PLANE.hermitian_weight
    )
    power /= torch.zeros(32, dtype=torch.float64).index_add_(
        0, PLANE.shell, PLANE.hermitian_weight.double()
    )
    expected = power / (truth.abs().square().mean() / 0.05)
    strong = torch.arange(32) > 3
    strong &= expected > 0.02
    assert strong.sum() > 5
    torch.testing.assert_close(measured[strong], expected[strong], rtol=0.25, atol=0)
    assert measured[(expected < 1e-4)].mean() < 0.002  # no signal is found where there is none
    noiseless, values, _ = _stack(10, ssnr=None)
    found = measure_ssnr(stack_sums(noiseless, values), PLANE)
    assert torch.isfinite(found).all()
    assert found[1:15].min() > 100  # not infinite: |A|^2 varies within a shell


def test_known_ssnr_gives_the_least_error_of_all_radial_wiener_filters() -> None:
    samples, values, truth = _stack(30, ssnr=0.02, seed=2)
    sums = stack_sums(samples, values)
    ssnr = measure_ssnr(sums, PLANE)

    def error(estimate: torch.Tensor) -> float:
        return ((estimate - truth).abs().square() * PLANE.hermitian_weight).sum().item()

    best = error(wiener_ssnr(sums, ssnr, PLANE))
    assert best < error(wiener_ssnr(sums, 10 * ssnr, PLANE))
    assert best < error(wiener_ssnr(sums, ssnr / 10, PLANE))
    assert best < min(error(wiener_stack(sums, constant=k)) for k in (0.01, 0.1, 1.0, 10.0, 100.0))


def test_at_low_snr_the_lectures_order_holds() -> None:
    """Many images together beat the mean of single Wiener images, division is worst; and one image
    is worse than any of many."""
    samples, values, truth = _stack(40, ssnr=0.05, seed=3)
    sums = stack_sums(samples, values)
    together = wiener_stack(sums, constant=1.0)
    known = wiener_ssnr(sums, measure_ssnr(sums, PLANE), PLANE)
    single = wiener_filter(samples, values, constant=0.05).mean(0)
    flipped = phase_flip(samples, values).mean(0)
    divided = divide(samples, values).mean(0)
    frc = [
        _frc(estimate, truth)[2:16].mean().item()
        for estimate in (together, single, flipped, divided)
    ]
    assert frc[0] > frc[1] > frc[3]
    assert frc[2] > frc[3]
    assert frc[0] - frc[3] > 0.1
    real = [_real_correlation(estimate, truth) for estimate in (known, together, single, divided)]
    assert real[0] > real[1] > real[3]
    assert real[2] > real[3]
    assert _real_correlation(wiener_filter(samples, values, constant=0.05)[0], truth) < real[2]


def test_one_defocus_keeps_its_holes_however_many_images() -> None:
    defocus = 15000.0
    many, values, truth = _stack(200, ssnr=0.2, defocus=[defocus] * 200, seed=4)
    spread, spread_values, _ = _stack(200, ssnr=0.2, seed=5)
    hole = 1 + int(
        torch.stack([values[0][PLANE.shell == s].abs().mean() for s in range(1, 20)]).argmin()
    )
    one_defocus = _frc(wiener_stack(stack_sums(many, values), constant=1.0), truth)
    many_defoci = _frc(wiener_stack(stack_sums(spread, spread_values), constant=1.0), truth)
    assert many_defoci[hole] > 0.9
    assert one_defocus[hole] < many_defoci[hole] - 0.1


@pytest.mark.parametrize("box", [48, 49])
def test_alignment_brings_a_turned_shifted_blob_home(box: int) -> None:
    """A Gaussian off the centre, its view turned by psi and shifted, has after alignment the
    transform of the unturned one."""
    plane = half_plane(box, 18)
    width, (u, v) = 1.8, (6.0, -4.0)
    kx, ky = plane.kx.double() / box, plane.ky.double() / box
    home = (
        2
        * math.pi
        * width**2
        * torch.exp(-2 * math.pi**2 * width**2 * (kx**2 + ky**2))
        * torch.exp(-2j * math.pi * (kx * u + ky * v))
    )
    psi, shift = (
        torch.tensor([0.0, 90.0, 33.0, -120.0]),
        torch.tensor([[1.5, 0.0], [0.0, -2.0], [2.25, -1.5], [-3.0, 1.0]]),
    )
    y, x = torch.meshgrid(*[torch.arange(box, dtype=torch.float64) - box // 2] * 2, indexing="ij")
    images = []
    for angle, (tx, ty) in zip(
        torch.deg2rad(psi.double()).tolist(), shift.double().tolist(), strict=True
    ):
        # object coordinates to view coordinates by Rz(psi); the origin shift is what centres, so
        # the view lies at minus it
        px, py = (
            math.cos(angle) * u + math.sin(angle) * v - tx,
            -math.sin(angle) * u + math.cos(angle) * v - ty,
        )
        images.append(torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2)))
    samples = aligned_transform(torch.stack(images), plane, psi_deg=psi, shift_px=shift)
    torch.testing.assert_close(
        samples, home.expand(4, -1), rtol=0, atol=2e-5 * home.abs().max().item()
    )


def test_a_turned_ctf_is_the_ctf_at_turned_frequencies() -> None:
    from halfmap.transfer_function import beam_tilt_phase

    parameters = _parameters([12000.0, 15000.0], astigmatism=800.0, angle=25.0, tilt=(0.4, -0.9))
    psi = torch.tensor([40.0, -75.0])
    kx, ky = (k.double() for k in PLANE.frequencies(PIXEL))
    turned = turned_ctf(parameters, psi)
    for i, angle in enumerate(torch.deg2rad(psi.double())):
        there = (
            torch.cos(angle) * kx + torch.sin(angle) * ky,
            -torch.sin(angle) * kx + torch.cos(angle) * ky,
        )
        torch.testing.assert_close(
            ctf(turned, kx, ky)[i], ctf(parameters, *there)[i], rtol=0, atol=1e-3
        )
        torch.testing.assert_close(
            beam_tilt_phase(turned, kx, ky)[i],
            beam_tilt_phase(parameters, *there)[i],
            rtol=0,
            atol=1e-4,
        )


def _rotation(rot: float, tilt: float, psi: float) -> torch.Tensor:
    def z(angle: float) -> torch.Tensor:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        return torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)

    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return z(psi) @ torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=torch.float64) @ z(rot)


def test_views_of_one_direction_differ_in_plane_alone() -> None:
    reference = _rotation(30, 50, 0)
    same = torch.stack([_rotation(30, 50, psi) for psi in (0.0, 77.0, -140.0)])
    psi, away = in_plane_angles(same, reference)
    torch.testing.assert_close(psi, torch.tensor([0.0, 77.0, -140.0], dtype=torch.float64))
    assert away.max() < 1e-6
    _, away = in_plane_angles(_rotation(30, 62, 20)[None], reference)
    assert away.item() == pytest.approx(12)
    pole, _ = in_plane_angles(
        _rotation(25, 0, 15)[None], _rotation(0, 0, 0)
    )  # on the pole rot and psi are one angle
    assert pole.item() == pytest.approx(40)


def test_bad_constants_and_too_few_images_are_refused() -> None:
    samples, values, _ = _stack(1, ssnr=None)
    with pytest.raises(InputError, match="k > 0"):
        wiener_filter(samples, values, constant=0.0)
    with pytest.raises(InputError, match="k > 0"):
        wiener_stack(stack_sums(samples, values), constant=float("nan"))
    with pytest.raises(InputError, match="at least 2 images"):
        measure_ssnr(stack_sums(samples, values), PLANE)


# ------------------------------------------------------------------ the job

BLOBS = (
    (4.0, -3.0, 2.0, 1.0),
    (-7.0, 5.0, 1.4, 2.0),
    (6.0, 7.0, 1.5, -1.0),
    (-3.0, -8.0, 1.3, 1.5),
)


def _blobs_transform(kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
    """Closed form at any frequency, cycles per pixel."""
    total = torch.zeros_like(kx, dtype=torch.complex128)
    for x, y, s, height in BLOBS:
        envelope = height * 2 * math.pi * s**2 * torch.exp(-2 * math.pi**2 * s**2 * (kx**2 + ky**2))
        total += envelope * torch.exp(-2j * math.pi * (kx * x + ky * y))
    return total


def _particles_on_disk(
    folder,
    n: int,
    *,
    noise: float,
    premultiplied: bool = False,
    poses: bool = True,
    tilt: float = 40.0,
) -> torch.Tensor:
    """A STAR and a stack of n noisy views of one direction; returns the true image, (N, N)."""
    box = 48
    plane = half_plane(box, 23)
    kx, ky = plane.kx.double() / box, plane.ky.double() / box
    rng = np.random.default_rng(7)
    psi = rng.uniform(-180, 180, n) if poses else np.zeros(n)
    shift = rng.uniform(-3, 3, (n, 2)) if poses else np.zeros((n, 2))
    parameters = _parameters(rng.uniform(8000, 20000, n).tolist(), astigmatism=500.0, angle=30.0)
    values = ctf(parameters, *(k.double() for k in plane.frequencies(PIXEL)))
    rows = []
    for angle, (tx, ty) in zip(np.radians(psi), shift, strict=True):
        c, s = math.cos(angle), math.sin(angle)
        rows.append(
            _blobs_transform(c * kx - s * ky, s * kx + c * ky)
            * torch.exp(2j * math.pi * (kx * tx + ky * ty))
        )
    samples = torch.stack(rows) * values
    samples += noise * fourier_transform(
        torch.from_numpy(rng.standard_normal((n, box, box))), plane
    )
    if premultiplied:
        samples *= values
    images = inverse_fourier_transform(samples, plane).float().numpy()
    if n > 4:
        images[2, 5, 5] = np.nan
    write_stack(folder / "particles.mrcs", images, PIXEL)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [PIXEL],
        "rlnImageSize": [box],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
    }
    optics |= {"rlnAmplitudeContrast": [0.1], "rlnCtfDataAreCtfPremultiplied": [int(premultiplied)]}
    columns = {
        "rlnImageName": [f"{i + 1}@particles.mrcs" for i in range(n)],
        "rlnOpticsGroup": [1] * n,
        "rlnClassNumber": [1] * n,
    }
    columns |= {
        "rlnDefocusU": parameters.defocus_u_angstrom.numpy(),
        "rlnDefocusV": parameters.defocus_v_angstrom.numpy(),
    }
    columns |= {"rlnDefocusAngle": [30.0] * n}
    if poses:
        columns |= {"rlnAngleRot": [70.0] * n, "rlnAngleTilt": [tilt] * n, "rlnAnglePsi": psi}
        columns |= {"rlnOriginXAngst": shift[:, 0] * PIXEL, "rlnOriginYAngst": shift[:, 1] * PIXEL}
    write_star(
        folder / "particles.star",
        {"optics": Table.from_columns(optics), "particles": Table.from_columns(columns)},
    )
    return inverse_fourier_transform(_blobs_transform(kx, ky)[None], plane)[0]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()


@pytest.mark.parametrize("method", ["wiener-stack", "wiener-ssnr"])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_a_job_restores_turned_and_shifted_views_together(
    tmp_path, method: str, premultiplied: bool
) -> None:
    truth = _particles_on_disk(tmp_path, 80, noise=0.3, premultiplied=premultiplied)
    k = {"constant": 1.0} if method == "wiener-stack" else {}
    result = restore(
        tmp_path / "particles.star", method=method, out=tmp_path / "job", quiet=True, **k
    )
    assert (result.images, result.set_aside) == (79, 1)
    restored = torch.from_numpy(
        open_stack(tmp_path / "job" / "restored.mrcs").read(np.arange(1))[0]
    )
    assert (
        _correlation(restored, truth) > {"wiener-stack": 0.94, "wiener-ssnr": 0.97}[method]
    )  # known SSNR keeps the noise out
    halves = [
        torch.from_numpy(open_stack(tmp_path / "job" / f"half{i}.mrcs").read(np.arange(1))[0])
        for i in (1, 2)
    ]
    assert result.curve is not None
    torch.testing.assert_close(
        result.curve.correlation, shell_correlations(halves[0][None], halves[1][None])[0]
    )
    assert result.curve.correlation[3:7].min() > 0.9
    for name in ("fsc.star", "pictures/fsc.png", "pictures/restored.png", "job.json"):
        assert (tmp_path / "job" / name).exists(), name
    ssnr = tmp_path / "job" / "ssnr.star"
    assert ssnr.exists() == (method == "wiener-ssnr")


@pytest.mark.parametrize("method", ["divide", "flip", "wiener"])
def test_a_job_restores_each_image_and_leaves_no_ctf_to_undo_again(tmp_path, method: str) -> None:
    _particles_on_disk(tmp_path, 8, noise=0.1)
    k = {"constant": 0.2} if method == "wiener" else {}
    result = restore(
        tmp_path / "particles.star", method=method, out=tmp_path / "job", quiet=True, **k
    )
    assert result.curve is not None
    before, after = (
        load_particles(tmp_path / "particles.star"),
        load_particles(tmp_path / "job" / "particles.star"),
    )
    assert before.has_ctf
    assert not after.has_ctf
    kept = np.array([0, 1, 3, 4, 5, 6, 7])  # image 3 of the stack has a NaN
    np.testing.assert_allclose(after.rotations_deg, before.rotations_deg[kept])
    plane = half_plane(48, 23)
    samples = fourier_transform(torch.from_numpy(before.images(kept)), plane)
    values = ctf(before.transfer.take(kept), *plane.frequencies(PIXEL))
    expected = {
        "divide": divide(samples, values),
        "flip": phase_flip(samples, values),
        "wiener": wiener_filter(samples, values, constant=0.2),
    }
    found = fourier_transform(torch.from_numpy(after.images(np.arange(7))), plane)
    clear = values.abs() > 1e-3  # nearer to a zero, division differs by rounding of C
    torch.testing.assert_close(found[clear], expected[method][clear], rtol=1e-2, atol=1e-2)


def test_bad_images_are_listed_by_their_rows_of_the_file(tmp_path) -> None:
    """Image 3 of the stack has a NaN; with a class chosen its row is the file's."""
    _particles_on_disk(tmp_path, 8, noise=0.1)
    blocks = read_star(tmp_path / "particles.star").blocks
    classes = blocks["particles"].with_columns({"rlnClassNumber": [2, 2, 1, 1, 1, 1, 1, 2]})
    write_star(tmp_path / "classes.star", {**blocks, "particles": classes})
    result = restore(
        tmp_path / "classes.star", "flip", tmp_path / "job", class_number=1, quiet=True
    )
    assert (result.images, result.set_aside) == (4, 1)
    aside = read_star(tmp_path / "job" / "set_aside.star").blocks["particles"]
    assert [name.split("@")[0] for name in aside.strings("rlnImageName")] == ["000003"]
    assert "NaN" in aside.strings("halfmapSetAside")[0]
    kept = read_star(tmp_path / "job" / "particles.star").blocks["particles"]
    assert "rlnDefocusU" not in kept
    np.testing.assert_array_equal(
        kept.floats("rlnAnglePsi"), classes.floats("rlnAnglePsi")[[3, 4, 5, 6]]
    )
    spoilt = blocks["particles"].with_columns({"rlnClassNumber": [1, 1, 2, 1, 1, 1, 1, 1]})
    write_star(tmp_path / "spoilt.star", {**blocks, "particles": spoilt})
    with pytest.raises(InputError, match="no usable image among 1; the first: row 3, "):
        restore(tmp_path / "spoilt.star", "flip", tmp_path / "none", class_number=2, quiet=True)
    assert not (tmp_path / "none").exists()


def test_the_halves_are_the_files_or_drawn_and_it_says_what_that_is_worth(tmp_path) -> None:
    _particles_on_disk(tmp_path, 24, noise=0.1)
    data = load_particles(tmp_path / "particles.star")
    names = np.array([f"particle{i // 3}" for i in range(24)])
    data.with_results(extra={"rlnTomoParticleName": names}).write_star(tmp_path / "tilts.star")
    sets = np.array([1] * 16 + [2] * 8)
    data.with_results(half_set=sets).write_star(tmp_path / "sets.star")
    seen = {}
    real = _restoring._summed

    def look(task, job, progress):
        seen["half"] = task.half
        return real(task, job, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_restoring, "_summed", look)
        drawn = restore(tmp_path / "tilts.star", "wiener-stack", tmp_path / "a", quiet=True)
        half = seen["half"].reshape(8, 3)
        assert half[0].tolist() == [half[0, 0], half[0, 0], -1]  # row 3 is set aside
        assert (half[1:] == half[1:, :1]).all()
        assert set(half[1:, 0]) == {0, 1}
        found = restore(tmp_path / "sets.star", "wiener-stack", tmp_path / "b", quiet=True)
        assert (seen["half"][sets == 2] == 1).all()
    assert "optimistic" in drawn.halves
    assert "half sets of the file" in found.halves


class _Killed(BaseException):
    """Ends a job as a signal would that cannot be caught."""


@pytest.mark.parametrize("method", ["wiener-ssnr", "flip"])
def test_a_killed_job_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch, method: str) -> None:
    _particles_on_disk(tmp_path, 30, noise=0.1)
    monkeypatch.setattr(_restoring, "_BATCH_PIXELS", 4 * 48**2)
    restore(tmp_path / "particles.star", method, tmp_path / "whole", quiet=True)
    saved = Job.save_checkpoint

    def save_and_die(job, arrays, meta):
        saved(job, arrays, meta)
        if meta["iteration"] == 5:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", save_and_die)
        with pytest.raises(_Killed):
            restore(tmp_path / "particles.star", method, tmp_path / "job", quiet=True)
    assert not (tmp_path / "job" / "restored.mrcs").exists()
    if method == "flip":  # a batch that was begun and not saved does not count
        with open(tmp_path / "job" / "restored.partial", "ab") as file:
            file.write(b"torn")
    read = []
    with monkeypatch.context() as patch:
        work = "_aligned_sums" if method == "wiener-ssnr" else "restore_images"
        step = getattr(_restoring, work)
        patch.setattr(_restoring, work, lambda *a: read.append(1) or step(*a))
        resume(tmp_path / "job", quiet=True)
    assert len(read) == 3  # 29 images in 8 batches, five of them done
    results = [path for path in (tmp_path / "whole").iterdir() if path.suffix in (".mrcs", ".star")]
    assert {"restored.mrcs", "fsc.star"} <= {path.name for path in results}
    for path in results:
        assert (tmp_path / "job" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (tmp_path / "job" / "restored.partial").exists()
    assert read_job(tmp_path / "job")["status"] == "finished"


def test_one_image_is_restored_by_itself(tmp_path) -> None:
    _particles_on_disk(tmp_path, 1, noise=0.1)
    result = restore(tmp_path / "particles.star", "wiener", tmp_path / "job", quiet=True)
    assert (result.images, result.curve) == (1, None)
    before = load_particles(tmp_path / "particles.star")
    after = load_particles(tmp_path / "job" / "particles.star").images([0])[0]
    assert np.corrcoef(after.ravel(), before.corrected(0).ravel())[0, 1] > 0.5


def test_images_without_poses_are_taken_as_aligned(tmp_path) -> None:
    truth = _particles_on_disk(tmp_path, 30, noise=0.1, poses=False)
    restore(tmp_path / "particles.star", method="wiener-stack", out=tmp_path / "job", quiet=True)
    assert (
        _correlation(
            torch.from_numpy(open_stack(tmp_path / "job" / "restored.mrcs").read(np.arange(1))[0]),
            truth,
        )
        > 0.97
    )
    result = restore(tmp_path / "particles.star", method="flip", out=tmp_path / "each", quiet=True)
    assert result.curve is None


def test_bad_requests_are_refused_and_leave_no_folder(tmp_path) -> None:
    _particles_on_disk(tmp_path, 4, noise=0.1)
    star = tmp_path / "particles.star"

    def refused(match: str, path=star, **options) -> None:
        with pytest.raises(InputError, match=match):
            restore(
                path, options.pop("method", "wiener-stack"), tmp_path / "job", quiet=True, **options
            )
        assert not (tmp_path / "job").exists()

    refused("--method tikhonov: expected one of divide", method="tikhonov")
    refused("k > 0", constant=0.0)
    refused("--class 7: no particle", class_number=7)
    blocks = read_star(star).blocks
    turned = blocks["particles"].with_columns({"rlnAngleTilt": [40.0, 41.0, 40.0, 75.0]})
    write_star(tmp_path / "views.star", {"optics": blocks["optics"], "particles": turned})
    refused("row 4 looks 2[0-9]\\.[0-9] degrees away", path=tmp_path / "views.star")
    write_star(
        tmp_path / "bare.star",
        {
            "optics": blocks["optics"],
            "particles": blocks["particles"].without(
                "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"
            ),
        },
    )
    refused("no defocus columns", path=tmp_path / "bare.star")


def test_restore_command(tmp_path, capsys) -> None:
    from halfmap.cli.main import run

    _particles_on_disk(tmp_path, 12, noise=0.1)
    arguments = [
        "restore",
        "--particles",
        str(tmp_path / "particles.star"),
        "--method",
        "wiener-stack",
        "--out",
        str(tmp_path / "job"),
        "--class",
        "1",
        "--quiet",
    ]
    with pytest.raises(SystemExit) as left:
        run(arguments)
    told = capsys.readouterr()
    assert left.value.code == 0, told.err
    assert "11 images, 1 set aside" in told.out
    assert "0.143" in told.out
