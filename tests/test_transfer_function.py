"""The CTF against closed forms, an independent float64 formula and RELION's own programs."""

import shutil
import subprocess
from dataclasses import fields, replace

import mrcfile
import numpy as np
import pytest
import torch
from scipy import constants

from halfmap.ctf_parameters import quantities
from halfmap.errors import InputError
from halfmap.transfer_function import (
    CTFParameters,
    beam_tilt_phase,
    ctf,
    electron_wavelength_angstrom,
    evaluate,
    no_transfer,
    turned_ctf,
    zernike_terms,
)

DEFAULTS = {
    "defocus_u_angstrom": 15000.0,
    "defocus_v_angstrom": 15000.0,
    "defocus_angle_deg": 0.0,
    "voltage_kv": 300.0,
    "spherical_aberration_mm": 2.7,
    "amplitude_contrast": 0.1,
    "phase_shift_deg": 0.0,
    "bfactor_angstrom2": 0.0,
    "scale": 1.0,
    "beam_tilt_x_mrad": 0.0,
    "beam_tilt_y_mrad": 0.0,
}


def make(**changes: float | list[float]) -> CTFParameters:
    columns = [
        torch.as_tensor(np.atleast_1d(v), dtype=torch.float32)
        for v in (DEFAULTS | changes).values()
    ]
    return CTFParameters(*(column.clone() for column in torch.broadcast_tensors(*columns)))


def frequencies(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def independent_ctf(row: dict[str, float], kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Float64, polar form, physical constants from scipy: shares nothing with the package."""
    volt = row["voltage_kv"] * 1e3
    momentum = np.sqrt(
        2
        * constants.m_e
        * constants.e
        * volt
        * (1 + constants.e * volt / (2 * constants.m_e * constants.c**2))
    )
    wavelength = constants.h / momentum * 1e10
    k, theta = np.hypot(kx, ky), np.arctan2(ky, kx)
    u, v = row["defocus_u_angstrom"], row["defocus_v_angstrom"]
    angle = np.radians(row["defocus_angle_deg"])
    defocus = u * np.cos(theta - angle) ** 2 + v * np.sin(theta - angle) ** 2
    chi = (
        np.pi * wavelength * defocus * k**2
        - np.pi / 2 * row["spherical_aberration_mm"] * 1e7 * wavelength**3 * k**4
    )
    damping = row["scale"] * np.exp(-row["bfactor_angstrom2"] * k**2 / 4)
    return damping * np.sin(
        chi + np.radians(row["phase_shift_deg"]) + np.arcsin(row["amplitude_contrast"])
    )


def test_starts_at_plus_amplitude_contrast() -> None:
    values = ctf(make(amplitude_contrast=[0.0, 0.07, 0.1, 1.0]), frequencies(0.0), frequencies(0.0))
    torch.testing.assert_close(values[:, 0], frequencies(0.0, 0.07, 0.1, 1.0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("voltage_kv", [100.0, 200.0, 300.0])
def test_zeros_of_a_pure_phase_object(voltage_kv: float) -> None:
    """Without Cs and Q0: zeros at k = sqrt(n / (lambda dz)), positive before the first (underfocus,
    white particles)."""
    parameters = make(voltage_kv=voltage_kv, spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    wavelength = electron_wavelength_angstrom(torch.tensor(voltage_kv, dtype=torch.float64))
    zeros = torch.sqrt(torch.arange(1.0, 20.0, dtype=torch.float64) / (wavelength * 15000))
    assert ctf(parameters, zeros, torch.zeros_like(zeros)).abs().max() < 1e-5
    half_way = zeros[:1] / 2
    assert ctf(parameters, half_way, torch.zeros_like(half_way)) > 0.5


def test_known_wavelengths() -> None:
    """Reimer & Kohl, Transmission Electron Microscopy, table 2.2: 3.701 pm at 100 kV, 2.508 at 200,
    1.969 at 300."""
    wavelength = electron_wavelength_angstrom(torch.tensor([100.0, 200.0, 300.0]))
    torch.testing.assert_close(
        wavelength, torch.tensor([0.03701, 0.02508, 0.01969]), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 90.0, -45.0])
def test_astigmatism_axis(angle_deg: float) -> None:
    """Along the defocus angle the CTF is that of defocus U, across it that of V."""
    k = torch.linspace(0, 0.3, 50, dtype=torch.float64)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    astigmatic = make(
        defocus_u_angstrom=18000.0, defocus_v_angstrom=12000.0, defocus_angle_deg=angle_deg
    )
    for x, y, defocus in ((c * k, s * k, 18000.0), (-s * k, c * k, 12000.0)):
        round_ctf = ctf(
            make(defocus_u_angstrom=defocus, defocus_v_angstrom=defocus), k, torch.zeros_like(k)
        )
        torch.testing.assert_close(ctf(astigmatic, x, y), round_ctf, atol=1e-5, rtol=0)


def test_phase_plate_turns_sine_into_cosine() -> None:
    """At 90 degrees the contrast at k = 0 is full: CTF = cos(chi), chi from the CTFs of Q0 = 0."""
    k = torch.linspace(0, 0.2, 40, dtype=torch.float64)
    sine = ctf(make(amplitude_contrast=0.0), k, torch.zeros_like(k))
    cosine = ctf(make(amplitude_contrast=0.0, phase_shift_deg=90.0), k, torch.zeros_like(k))
    assert cosine[0, 0] == pytest.approx(1.0)
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones_like(sine))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_independent_formula_at_high_defocus(dtype: torch.dtype) -> None:
    """Phases of up to 1,500 radians; below 1e-3 in float32."""
    rng = np.random.default_rng(1)
    n = 20
    rows = [
        {
            "defocus_u_angstrom": rng.uniform(-5000, 60000),
            "defocus_v_angstrom": rng.uniform(-5000, 60000),
            "defocus_angle_deg": rng.uniform(-180, 180),
            "voltage_kv": rng.choice([100.0, 200.0, 300.0]),
            "spherical_aberration_mm": rng.choice([0.0, 0.01, 2.0, 2.7]),
            "amplitude_contrast": rng.uniform(0, 0.3),
            "phase_shift_deg": rng.uniform(0, 180),
            "bfactor_angstrom2": rng.uniform(0, 60),
            "scale": rng.uniform(0.5, 1.5),
        }
        for _ in range(n)
    ]
    kx, ky = rng.uniform(-0.35, 0.35, (2, 500)).astype(np.float32)
    parameters = make(**{name: [row[name] for row in rows] for name in rows[0]})
    found = ctf(parameters, torch.as_tensor(kx).to(dtype), torch.as_tensor(ky).to(dtype))
    assert found.dtype == dtype
    as_float32 = [{name: float(np.float32(value)) for name, value in row.items()} for row in rows]
    expected = np.stack(
        [independent_ctf(row, kx.astype(np.float64), ky.astype(np.float64)) for row in as_float32]
    )
    assert np.abs(found.numpy() - expected).max() < (1e-3 if dtype == torch.float32 else 2e-5)


def test_beam_tilt_phase_is_hermitian_and_scales() -> None:
    """phase(-k) = conj phase(k), so images stay real; along t it is exp(-2 pi i Cs lambda^2 k^3 t),
    across t it is 1."""
    parameters = make(beam_tilt_x_mrad=0.6, beam_tilt_y_mrad=-0.8)
    k = torch.linspace(0, 0.3, 60, dtype=torch.float64)
    along, across = (
        beam_tilt_phase(parameters, 0.6 * k, -0.8 * k),
        beam_tilt_phase(parameters, 0.8 * k, 0.6 * k),
    )
    wavelength = 0.0196874863  # 300 kV
    torch.testing.assert_close(
        along[0], torch.exp(-2j * np.pi * 2.7e7 * wavelength**2 * k**3 * 1e-3), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(across, torch.ones_like(across), atol=1e-6, rtol=0)
    torch.testing.assert_close(beam_tilt_phase(parameters, -0.6 * k, 0.8 * k), along.conj())


# --- one object for what the microscope does -----------------------------------------------------


def test_numbers_arrays_lists_and_tensors_are_the_same_parameters() -> None:
    k = np.linspace(0.01, 0.3, 50)
    u = [12000.0, 18000.0, 9000.0]
    expected = ctf(
        make(defocus_u_angstrom=u, phase_shift_deg=30.0), torch.from_numpy(k), torch.zeros(50)
    )
    assert expected.shape == (3, 50)
    for column in (u, np.array(u), torch.tensor(u)):
        parameters = CTFParameters(
            defocus_u_angstrom=column, defocus_v_angstrom=15000, phase_shift_deg=30.0
        )
        assert len(parameters) == 3
        assert torch.equal(ctf(parameters, k, np.zeros(50)), expected)
        assert torch.equal(ctf(parameters.take([2, 0]), k, 0 * k), expected[[2, 0]])
    one = ctf(CTFParameters(defocus_u_angstrom=1e4, defocus_v_angstrom=1e4), 0.1, 0.0)
    torch.testing.assert_close(
        one,
        ctf(make(defocus_u_angstrom=1e4, defocus_v_angstrom=1e4), *frequencies(0.1, 0.0)[:, None]),
    )


def test_batches_are_float32_and_keep_what_serves_all_images() -> None:
    data = CTFParameters(defocus_u_angstrom=np.arange(1.0, 6.0) / 3, premultiplied=True)
    batch = data.take(np.array([3, 1])).to("cpu")
    assert batch.defocus_u_angstrom.dtype == torch.float32
    assert batch.defocus_u_angstrom.tolist() == pytest.approx([4 / 3, 2 / 3])
    assert batch.voltage_kv.tolist() == [300.0, 300.0]
    assert batch.premultiplied.tolist() == [True, True]
    arrays = batch.arrays(2)
    for one in quantities():
        assert getattr(arrays, one.name).shape == ((2, 0) if one.coefficients else (2,))
    assert arrays.defocus_u_angstrom.dtype == np.float64


def test_wrong_shapes_and_values_are_refused_with_what_was_expected() -> None:
    with pytest.raises(InputError, match=r"\(3,\) of defocus_u_angstrom, \(2,\) of scale"):
        CTFParameters(defocus_u_angstrom=np.zeros(3), scale=[1.0, 1.0])
    with pytest.raises(InputError, match=r"\(6,\) of odd_zernike"):
        CTFParameters(odd_zernike=np.zeros(6))
    with pytest.raises(InputError, match=r"one number for all images .*\(2, 2\)"):
        CTFParameters(scale=np.zeros((2, 2)))
    with pytest.raises(InputError, match="one number for each of 4 images, 3 arrived"):
        CTFParameters(scale=np.ones(3)).arrays(4)
    for wrong, message in (
        ({"amplitude_contrast": [0.1, 7.0]}, r"image 2, .*amplitude_contrast: .*from 0 to 1.*7"),
        (
            {"voltage_kv": 0.0},
            r"image 1, .*voltage_kv: expected more than 0 and at most 3000 \(kV\), found 0",
        ),
        ({"beam_tilt_x_mrad": np.nan}, r"beam_tilt_x_mrad: expected a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(CTFParameters(**wrong), 0.1, 0.1)
    with pytest.raises(InputError, match=r"kx and ky of one length, shapes \(3,\) and \(1,\)"):
        ctf(CTFParameters(), np.zeros(3), 0.0)


def test_a_transfer_function_images_corrects_and_is_nothing_where_it_is_not_used() -> None:
    parameters = make(
        defocus_u_angstrom=[9000.0, 14000.0], beam_tilt_x_mrad=[0.0, 2.0], beam_tilt_y_mrad=-1.0
    )
    parameters = replace(parameters, premultiplied=torch.tensor([False, True]))
    kx, ky = (torch.rand(40, generator=torch.Generator().manual_seed(i)) / 5 for i in (1, 2))
    transfer = evaluate(parameters, kx, ky)
    ideal = torch.randn(2, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    c, phase = ctf(parameters, kx, ky), beam_tilt_phase(parameters, kx, ky)
    assert (phase - 1).abs().max() > 0.1
    image = transfer.image(ideal)
    torch.testing.assert_close(image[0], c[0] * phase[0] * ideal[0])
    torch.testing.assert_close(image[1], c[1] ** 2 * phase[1] * ideal[1])  # premultiplied
    torch.testing.assert_close(transfer.correct_phases(image), transfer.amplitude * ideal)
    torch.testing.assert_close(transfer.image(ideal[:, :7]), image[:, :7])  # the first samples
    straight = evaluate(make(), kx, ky)
    assert straight.phase is None
    assert torch.equal(straight.correct_phases(ideal), ideal)
    nothing = no_transfer(ideal)
    assert torch.equal(nothing.image(ideal), ideal)
    assert torch.equal(nothing.correct_phases(ideal), ideal)


def test_every_parameter_has_a_column_of_its_own_and_its_default_is_allowed() -> None:
    assert [one.name for one in quantities()] == [one.name for one in fields(CTFParameters)]
    columns = [one.relion for one in quantities()]
    assert len(set(columns)) == len(columns)
    CTFParameters().check(lambda row, name: name)
    for one in quantities():
        assert getattr(CTFParameters(), one.name) == one.default
        assert one.unit


def test_zernike_polynomials_are_those_of_the_books_in_relions_order() -> None:
    x, y = (torch.rand(30, dtype=torch.float64) - 0.5 for _ in range(2))
    r, a = torch.hypot(x, y), torch.atan2(y, x)
    odd = (
        r * a.sin(),
        r * a.cos(),
        r**3 * (3 * a).sin(),
        (3 * r**3 - 2 * r) * a.sin(),
        (3 * r**3 - 2 * r) * a.cos(),
        r**3 * (3 * a).cos(),
    )
    even = (
        torch.ones_like(r),
        r**2 * (2 * a).sin(),
        2 * r**2 - 1,
        r**2 * (2 * a).cos(),
        r**4 * (4 * a).sin(),
        (4 * r**4 - 3 * r**2) * (2 * a).sin(),
        6 * r**4 - 6 * r**2 + 1,
        (4 * r**4 - 3 * r**2) * (2 * a).cos(),
        r**4 * (4 * a).cos(),
    )
    torch.testing.assert_close(zernike_terms(x, y, 6, parity=1), torch.stack(odd))
    torch.testing.assert_close(zernike_terms(x, y, 9, parity=0), torch.stack(even))


def test_aberrations_turn_with_the_image_and_keep_images_real() -> None:
    """The transfer function of a turned image is that of the image at frequencies turned back."""
    rng = np.random.default_rng(2)
    parameters = replace(
        make(defocus_u_angstrom=[9000.0, 14000.0], defocus_angle_deg=20.0, beam_tilt_x_mrad=1.0),
        odd_zernike=torch.from_numpy(rng.normal(size=(2, 5)) * 300).float(),  # cut in an order
        even_zernike=torch.from_numpy(rng.normal(size=(2, 9)) * 300).float(),
    )
    kx, ky = torch.from_numpy(rng.uniform(-0.15, 0.15, (2, 60)))
    psi = torch.tensor([37.0, 37.0])
    cos, sin = np.cos(np.radians(37.0)), np.sin(np.radians(37.0))
    turned = evaluate(turned_ctf(parameters, psi), kx, ky)
    back = evaluate(parameters, cos * kx + sin * ky, -sin * kx + cos * ky)
    torch.testing.assert_close(turned.ctf, back.ctf, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.phase, back.phase, atol=1e-4, rtol=0)
    plain = evaluate(make(defocus_u_angstrom=[9000.0, 14000.0]), kx, ky)
    assert (turned.ctf - plain.ctf).abs().max() > 0.3  # they count
    opposite = evaluate(parameters, -kx, -ky)
    straight = evaluate(parameters, kx, ky)
    torch.testing.assert_close(opposite.ctf, straight.ctf)
    torch.testing.assert_close(opposite.phase, straight.phase.conj())


def test_nothing_is_seen_beyond_an_images_own_frequencies() -> None:
    k, zero = torch.linspace(0, 0.3, 31), torch.zeros(31)
    parameters = replace(make(scale=[1.0, 1.0]), magnification_xx=torch.tensor([1.0, 1.25]))
    transfer = evaluate(parameters, k, zero, reach_per_angstrom=torch.tensor([0.205, 0.205]))
    assert transfer.seen.sum(1).tolist() == [21, 26]  # below 0.205, and 1.25 times as far
    assert transfer.ctf[0, 21:].eq(0).all()
    assert transfer.correct_phases(torch.ones(2, 31, dtype=torch.complex64))[0, 21:].eq(0).all()
    torch.testing.assert_close(transfer.ctf[0, :21], ctf(make(), k, zero)[0, :21])
    across = evaluate(parameters, zero, k, reach_per_angstrom=torch.tensor([0.205, 0.205]))
    assert across.seen.sum(1).tolist() == [21, 21]


# --- RELION's own programs ------------------------------------------------------------------------

STAR = """
data_optics
loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
_rlnImageSize #4
_rlnImageDimensionality #5
_rlnVoltage #6
_rlnSphericalAberration #7
_rlnAmplitudeContrast #8
_rlnBeamTiltX #9
_rlnBeamTiltY #10
1 og1 {pixel} {box} 2 300 2.7 {q0} {tilt_x} {tilt_y}

data_particles
loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnAngleRot #3
_rlnAngleTilt #4
_rlnAnglePsi #5
_rlnDefocusU #6
_rlnDefocusV #7
_rlnDefocusAngle #8
_rlnPhaseShift #9
_rlnCtfBfactor #10
_rlnCtfScalefactor #11
_rlnMicrographName #12
1@images.mrcs 1 0 0 0 {ctf} mic1.mrc
"""
RELION_PARAMETERS = {
    "defocus_u_angstrom": 18000.0,
    "defocus_v_angstrom": 14000.0,
    "defocus_angle_deg": 25.0,
    "phase_shift_deg": 30.0,
    "bfactor_angstrom2": 40.0,
    "scale": 0.8,
}
BOX = 64


def centred_frequencies(pixel_size_angstrom: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(BOX, BOX) kx and ky of a transform with k = 0 at BOX // 2; the Nyquist row and column are
    left out of comparisons."""
    k = (torch.arange(BOX, dtype=torch.float64) - BOX // 2) / (BOX * pixel_size_angstrom)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    return kx, ky


def centred_transform(image: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))


@pytest.mark.skipif(
    shutil.which("relion_project") is None, reason="relion_project is not installed"
)
def test_agrees_with_relion_project(tmp_path) -> None:
    """The projection of a point at the centre is the point; with --ctf its transform is RELION's
    CTF."""
    volume = np.zeros((BOX,) * 3, np.float32)
    volume[BOX // 2, BOX // 2, BOX // 2] = 1
    mrcfile.write(tmp_path / "point.mrc", volume, voxel_size=1.5)
    (tmp_path / "particles.star").write_text(
        STAR.format(box=BOX, pixel=1.5, q0=0.1, tilt_x=0, tilt_y=0, ctf="18000 14000 25 30 40 0.8")
    )
    command = [
        "relion_project",
        "--i",
        "point.mrc",
        "--o",
        "out",
        "--ang",
        "particles.star",
        "--ctf",
        "--angpix",
        "1.5",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    relion = centred_transform(mrcfile.read(tmp_path / "out.mrcs").reshape(BOX, BOX))
    kx, ky = centred_frequencies(1.5)
    ours = ctf(make(**RELION_PARAMETERS), kx.ravel(), ky.ravel()).reshape(BOX, BOX).numpy()
    inside = (torch.hypot(kx, ky) < (BOX // 2 - 1) / (BOX * 1.5)).numpy()
    scale = float((relion.real * ours)[inside].sum() / (ours**2)[inside].sum())
    assert scale > 0
    assert np.abs(relion / scale - ours)[inside].max() < 5e-3


@pytest.mark.skipif(
    shutil.which("relion_reconstruct") is None, reason="relion_reconstruct is not installed"
)
def test_beam_tilt_agrees_with_relion_reconstruct(tmp_path) -> None:
    """A 2D reconstruction from one image of a point, in focus and at 100 % amplitude contrast (CTF
    > 0.96), is conj(phase) X."""
    image = np.zeros((1, BOX, BOX), np.float32)
    image[0, BOX // 2, BOX // 2] = 1
    mrcfile.write(tmp_path / "images.mrcs", image, voxel_size=3.0)
    star = STAR.format(box=BOX, pixel=3.0, q0=1.0, tilt_x=5, tilt_y=-3, ctf="0 0 0 0 0 1")
    (tmp_path / "particles.star").write_text(star)
    command = [
        "relion_reconstruct",
        "--i",
        "particles.star",
        "--o",
        "out.mrc",
        "--refdim",
        "2",
        "--pad",
        "1",
        "--ctf",
        "--skip_gridding",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    relion = centred_transform(mrcfile.read(tmp_path / "out.mrc").reshape(BOX, BOX))
    kx, ky = centred_frequencies(3.0)
    ours = (
        beam_tilt_phase(make(beam_tilt_x_mrad=5.0, beam_tilt_y_mrad=-3.0), kx.ravel(), ky.ravel())
        .reshape(BOX, BOX)
        .numpy()
    )
    k_px = torch.hypot(kx, ky).numpy() * BOX * 3.0
    inside = (k_px > 0) & (
        k_px < 24
    )  # RELION turns the sign of the mean, and its gridding blurs the outer rings
    assert np.abs(relion / np.abs(relion) - ours.conj())[inside].max() < 0.05
    assert np.abs(ours.conj() - ours)[inside].max() > 1  # the other sign would be seen
