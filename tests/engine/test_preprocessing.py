"""Images on their way to the E-step: grey scale, mask, CTF and noise variance against what was put
in."""

import numpy as np
import pytest
import torch

from halfmap.engine import residuals as residuals_module
from halfmap.engine.accumulation import expected_images
from halfmap.engine.preprocessing import (
    Batch,
    ImageSettings,
    batches,
    load_batch,
    mask_particles,
    normalise,
)
from halfmap.engine.residuals import initial_noise, noise_from_sums, residuals, shell_sums
from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import fourier_transform, half_plane, shell_mean, shift_phases
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.likelihood import ImageTerms, image_terms, squared_modulus
from halfmap.particles import Particles, load_particles
from halfmap.transfer_function import ctf

BOX, PIXEL = 24, 3.0
PLANE = half_plane(BOX, 11)


def _distance(box: int, centre=(0.0, 0.0)) -> torch.Tensor:
    axis = torch.arange(box) - box // 2
    return torch.hypot(
        (axis - centre[0])[None, :].expand(box, box), (axis - centre[1])[:, None].expand(box, box)
    )


@pytest.mark.parametrize("box", [24, 25])
def test_normalised_background_has_mean_0_and_deviation_1(box):
    images = 7 + 3 * torch.randn(4, box, box, generator=torch.Generator().manual_seed(0))
    images[:, box // 2, box // 2] += 500  # the particle does not count
    kept = images.clone()
    found = normalise(images, 8.0, spread=True)
    background = found[:, _distance(box) > 8.0]
    torch.testing.assert_close(background.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(background.std(1), torch.ones(4), rtol=1e-4, atol=0)
    assert found[:, box // 2, box // 2].min() > 50
    assert torch.equal(images, kept)
    torch.testing.assert_close(
        normalise(-2 * images + 5, 8.0, spread=True), -found, rtol=1e-3, atol=1e-3
    )


def test_the_scale_is_kept_where_asked():
    images = 7 + 3 * torch.randn(4, BOX, BOX, generator=torch.Generator().manual_seed(0))
    found = normalise(images, 8.0, spread=False)
    torch.testing.assert_close(
        found[:, _distance(BOX) > 8.0].mean(1), torch.zeros(4), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        found - found[:, :1, :1], images - images[:, :1, :1], rtol=0, atol=1e-4
    )


def test_a_masked_class_average_is_normalised_by_its_inside():
    images = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(0)) * (
        _distance(BOX) < 7
    )
    found = normalise(40 * images, 9.0, spread=True)
    torch.testing.assert_close(found.std((1, 2)), torch.ones(2), rtol=1e-4, atol=0)
    assert torch.isfinite(normalise(torch.zeros(1, BOX, BOX), 9.0, spread=True)).all()


@pytest.mark.parametrize("box", [24, 25])
def test_the_mask_sits_on_the_particle(box):
    centre = torch.tensor([[0.0, 0.0], [3.0, -2.0]])
    found = mask_particles(torch.ones(2, box, box), 6.0, centre)
    for image, c in zip(found, centre.tolist(), strict=True):
        r = _distance(box, c)
        assert (image[r <= 6.0] == 1).all()
        assert image[r >= 11.0].abs().max() < 1e-6
        edge = image[(r > 6.5) & (r < 10.5)]
        assert (edge > 0).all()
        assert (edge < 1).all()


# --- from disk ------------------------------------------------------------------------------------


def _write(folder, images: np.ndarray, **columns) -> Particles:
    n = len(images)
    with StackWriter(folder / "p.mrcs", PIXEL) as stack:
        stack.append(images.astype(np.float32))
    plain = {
        "rlnImageName": [f"{i + 1:06d}@p.mrcs" for i in range(n)],
        "rlnDefocusU": np.linspace(9000.0, 15000.0, n),
        "rlnDefocusV": np.linspace(8000.0, 14500.0, n),
        "rlnDefocusAngle": np.linspace(0.0, 90.0, n),
        "rlnOpticsGroup": np.ones(n, int),
    }
    groups = int(np.max(columns.get("rlnOpticsGroup", [1])))
    premultiplied = columns.pop("premultiplied", [0] * groups)
    optics = {
        "rlnOpticsGroup": np.arange(1, groups + 1),
        "rlnOpticsGroupName": [f"g{g}" for g in range(groups)],
        "rlnVoltage": [300.0] * groups,
        "rlnSphericalAberration": [2.7] * groups,
        "rlnAmplitudeContrast": [0.1] * groups,
        "rlnImagePixelSize": [PIXEL] * groups,
        "rlnImageSize": [BOX] * groups,
        "rlnImageDimensionality": [2] * groups,
        "rlnCtfDataAreCtfPremultiplied": premultiplied,
    }
    write_star(
        folder / "p.star",
        {
            "optics": Table.from_columns(optics),
            "particles": Table.from_columns({**plain, **columns}),
        },
    )
    return load_particles(folder / "p.star")


def _settings(use_ctf: bool = True) -> ImageSettings:
    return ImageSettings(9.0, use_ctf, True, torch.device("cpu"))


def _load(
    particles: Particles,
    settings: ImageSettings | None = None,
    shift_px: torch.Tensor | None = None,
    groups: int = 1,
) -> Batch:
    n = len(particles)
    sigma2 = (1.0 + torch.arange(PLANE.radius + 1.0)).expand(groups, -1) * torch.arange(
        1.0, groups + 1
    )[:, None]
    return load_batch(
        particles,
        torch.arange(n),
        PLANE,
        sigma2,
        torch.zeros(n, 2) if shift_px is None else shift_px,
        settings or _settings(),
    )


def test_a_batch_is_ctf_times_image_over_noise(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, BOX, BOX)) * 3 + 1
    particles = _write(tmp_path, images, rlnOpticsGroup=[1, 2, 2, 1])
    batch = _load(particles, groups=2)
    transforms = fourier_transform(
        normalise(torch.from_numpy(images).float(), 9.0, spread=True), PLANE
    )
    transfer = ctf(particles.transfer.take(np.arange(4)), *PLANE.frequencies(PIXEL))
    sigma2 = (1.0 + PLANE.shell) * torch.tensor([1.0, 2.0, 2.0, 1.0])[:, None]
    torch.testing.assert_close(
        batch.whole.data, transfer * transforms / sigma2, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(batch.whole.power, transfer**2 / sigma2, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch.scored.power[:, 1:], batch.whole.power[:, 1:])
    assert (batch.scored.data[:, 0] == 0).all()
    assert batch.group.tolist() == [0, 1, 1, 0]
    masked = fourier_transform(
        mask_particles(
            normalise(torch.from_numpy(images).float(), 9.0, spread=True), 9.0, torch.zeros(4, 2)
        ),
        PLANE,
    )
    torch.testing.assert_close(
        batch.scored.data[:, 1:], (transfer * masked / sigma2)[:, 1:], rtol=1e-4, atol=1e-4
    )


def test_without_ctf_and_with_premultiplied_images(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, BOX, BOX))
    particles = _write(tmp_path, images, premultiplied=[1])
    once, plain = _load(particles), _load(particles, _settings(use_ctf=False))
    sigma2 = 1.0 + PLANE.shell
    torch.testing.assert_close(once.whole.data, once.transforms / sigma2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(once.whole.power, once.ctf**2 / sigma2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.whole.power, (1 / sigma2).expand(2, -1), rtol=1e-5, atol=0)
    assert plain.premultiplied.tolist() == [0, 0]


def test_the_mask_follows_the_shift_that_centres_the_image(tmp_path):
    """A blob at +5, +3 px is centred by the shift -5, -3; masked there it is whole, masked at the
    centre it is cut."""
    blob = torch.exp(-(_distance(BOX, (5.0, 3.0)) ** 2) / (2 * 1.5**2)) + 1e-3 * torch.randn(
        BOX, BOX
    )
    particles = _write(tmp_path, blob[None].numpy())
    settings = ImageSettings(4.0, False, True, torch.device("cpu"))
    whole = _load(particles, settings).whole.data[:, 1:]
    followed = _load(particles, settings, torch.tensor([[-5.0, -3.0]])).scored.data[:, 1:]
    elsewhere = _load(particles, settings, torch.tensor([[5.0, 3.0]])).scored.data[:, 1:]
    assert (followed - whole).norm() < 0.2 * whole.norm()
    assert (elsewhere - whole).norm() > 0.5 * whole.norm()


def test_scored_terms_are_those_inside_the_radius(tmp_path):
    particles = _write(
        tmp_path, np.random.default_rng(0).normal(size=(3, BOX, BOX)), rlnBeamTiltX=[3.0, -1.0, 0.0]
    )
    whole, shift_px = _load(particles), torch.zeros(3, 2)
    inner = load_batch(
        particles,
        torch.arange(3),
        PLANE,
        1.0 + torch.arange(20.0)[None],
        shift_px,
        _settings(),
        scored_radius=5,
    )
    n = PLANE.size(5)
    assert inner.scored.data.shape == (3, n)
    torch.testing.assert_close(inner.scored.data, whole.scored.data[:, :n])
    torch.testing.assert_close(inner.scored.power, whole.scored.power[:, :n])
    assert torch.equal(inner.whole.data, whole.whole.data)


def test_beam_tilt_is_taken_out_before_masking_or_summing(tmp_path):
    from halfmap.transfer_function import beam_tilt_phase

    images = np.random.default_rng(0).normal(size=(2, BOX, BOX))
    tilted = _write(tmp_path, images, rlnBeamTiltX=[3.0, -1.0], rlnBeamTiltY=[0.5, 2.0])
    (tmp_path / "straight").mkdir()
    straight = _write(tmp_path / "straight", images)
    phase = beam_tilt_phase(tilted.transfer.take(np.arange(2)), *PLANE.frequencies(PIXEL))
    assert (phase - 1).abs().max() > 1e-3
    torch.testing.assert_close(
        _load(tilted).whole.data, _load(straight).whole.data * phase.conj(), rtol=1e-4, atol=1e-4
    )


# --- noise ----------------------------------------------------------------------------------------


def _coloured(n: int, sigma2: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.complex(
        torch.randn(n, len(PLANE), generator=generator),
        torch.randn(n, len(PLANE), generator=generator),
    )
    return noise * (sigma2[:, PLANE.shell] / 2).sqrt()


@pytest.mark.parametrize("premultiplied", [False, True])
def test_coloured_noise_is_recovered_under_the_signal(premultiplied):
    """Two groups of images C R + N (stored times C, if premultiplied): the residual gives sigma^2
    by group and shell."""
    generator, n = torch.Generator().manual_seed(0), 400
    group = torch.arange(n) % 2
    shells = torch.arange(PLANE.radius + 1.0)
    sigma2 = torch.stack([50 / (1 + shells), 5 + 2 * shells])
    transfer = 0.2 + 0.8 * torch.rand(n, len(PLANE), generator=generator)
    model = 10 * torch.complex(
        torch.randn(n, len(PLANE), generator=generator),
        torch.randn(n, len(PLANE), generator=generator),
    )
    images = transfer * model + _coloured(n, sigma2[group], generator)
    stored = transfer * images if premultiplied else images
    flag = torch.full((n,), float(premultiplied))
    terms = image_terms(
        stored, transfer, torch.ones_like(transfer), premultiplied=flag, with_mean=True
    )
    total = torch.zeros(2, 2, len(PLANE))
    for part in torch.arange(n).split(150):
        batch = Batch(
            part,
            group[part],
            terms.select_images(part),
            terms.select_images(part),
            stored[part],
            transfer[part],
            flag[part],
            torch.ones(2, len(PLANE)),
            torch.ones(len(part)),
        )
        total += residuals(
            batch,
            ImageTerms(model[part], squared_modulus(model[part])),
            PLANE,
            fit=True,
            robust=False,
        ).noise
    found = noise_from_sums(shell_sums(total, PLANE))
    torch.testing.assert_close(found[:, 2:], sigma2[:, 2:], rtol=0.1, atol=0)
    torch.testing.assert_close(found[:, 0], found[:, 1])  # k = 0 is one real number


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_residuals_are_those_of_each_entry(premultiplied, robust, fit):
    """`sum_e Gamma_e |X - m s C S_t R_e|^2 / nu^2`, one entry at a time; and cross, power and
    misfit of each image."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        return torch.complex(
            torch.randn(n, len(PLANE), generator=generator),
            torch.randn(n, len(PLANE), generator=generator),
        )

    image, reference = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 0, 2, 2, 0, 1])
    weight, shift_px = (
        torch.tensor([0.5, 0.3, 0.2, 1.0, 0.6, 0.4]),
        torch.randn(6, 2, generator=generator),
    )
    inner = half_plane(BOX, 6)
    group, flag = torch.tensor([1, 0, 1]), torch.full((3,), float(premultiplied))
    sigma2 = (1 + torch.rand(2, PLANE.radius + 1, generator=generator))[:, PLANE.shell]
    norm, scale = torch.tensor([0.5, 2.0, 1.5]), torch.tensor([1.0, 0.7, 2.0])
    transfer, slices, images = (
        0.2 + torch.rand(3, len(PLANE), generator=generator),
        draw(3),
        draw(3),
    )
    terms = image_terms(
        images, transfer, sigma2[group] * norm[:, None] ** 2, premultiplied=flag, with_mean=True
    )
    terms = ImageTerms(terms.data * scale[:, None], terms.power * scale[:, None] ** 2)
    batch = Batch(torch.arange(3), group, terms, terms, images, transfer, flag, sigma2, norm)
    gamma = PosteriorWeights(
        image,
        reference,
        shift_px,
        weight,
        torch.eye(3).repeat(3, 1, 1),
        torch.zeros(3, dtype=torch.long),
    )
    found = residuals(
        batch,
        expected_images(slices[:, : len(inner)].contiguous(), gamma, 3, inner),
        PLANE,
        fit=fit,
        robust=robust,
    )

    gain = transfer if premultiplied else torch.ones_like(transfer)
    model = slices.clone()
    model[:, len(inner) :] = 0
    expected = (
        (scale[:, None] * gain * transfer)[image]
        * model[reference]
        * shift_phases(-shift_px, PLANE)
    )
    outer = PLANE.hermitian_weight.clone()
    outer[0] = 0
    left, seen = torch.zeros(2, PLANE.radius + 1), torch.zeros(2, PLANE.radius + 1)
    for i in range(3):
        e = image == i
        inverse = outer * weight[e, None] / (gain[i] * norm[i]) ** 2 / sigma2[group[i]]
        cross = (inverse * (images[i] * expected[e].conj()).real).sum()
        power = (inverse * expected[e].abs() ** 2).sum()
        torch.testing.assert_close(found.cross[i], cross, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.power[i], power, rtol=1e-4, atol=1e-4)
        factor = (cross / power).clamp(min=0) if fit else 1.0
        residual = (weight[e, None] * (images[i] - factor * expected[e]).abs() ** 2).sum(0) / norm[
            i
        ] ** 2
        misfit = (outer * residual / sigma2[group[i]]).sum() / (outer * gain[i] ** 2).sum()
        torch.testing.assert_close(found.misfit[i], misfit, rtol=1e-4, atol=1e-4)
        trust = 1 / max(1.0, float(misfit * norm[i] ** 2)) if robust else 1.0
        left[group[i]] += (
            trust * shell_mean(residual, PLANE.shell, PLANE.radius + 1) / (misfit if robust else 1)
        )
        seen[group[i]] += trust * shell_mean(gain[i] ** 2, PLANE.shell, PLANE.radius + 1)
    noise = shell_sums(found.noise, PLANE)
    torch.testing.assert_close(noise[0], left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise[1], seen, rtol=1e-4, atol=1e-4)


def test_noise_does_not_depend_on_how_images_are_batched():
    """The model is compared with masked images (here: part of each), and leaves less than nothing
    of some samples of a whole one; not of all images together."""
    generator, n = torch.Generator().manual_seed(2), 60
    sigma2 = torch.ones(1, PLANE.radius + 1)
    ones, model = torch.ones(n, len(PLANE)), torch.full((n, len(PLANE)), 3.0 + 0j)
    masked = model + _coloured(n, sigma2.expand(n, -1), generator)
    whole = masked + _coloured(n, sigma2.expand(n, -1), generator)
    terms = image_terms(masked, ones, ones, premultiplied=torch.zeros(n), with_mean=True)

    def noise_by(size: int) -> torch.Tensor:
        total = torch.zeros(2, 1, len(PLANE), dtype=torch.float64)
        for part in torch.arange(n).split(size):
            some, one = terms.select_images(part), torch.ones(len(part))
            group, flag = torch.zeros(len(part), dtype=torch.long), torch.zeros(len(part))
            batch = Batch(part, group, some, some, whole[part], ones[part], flag, ones[:1], one)
            expected = ImageTerms(model[part], squared_modulus(model[part]))
            total += residuals(batch, expected, PLANE, fit=False, robust=False).noise
        return noise_from_sums(shell_sums(total, PLANE))

    torch.testing.assert_close(noise_by(1), noise_by(n), rtol=1e-6, atol=0)
    torch.testing.assert_close(noise_by(7), noise_by(n), rtol=1e-6, atol=0)


def test_norm_and_scale_weigh_the_terms(tmp_path):
    """`X = s C R + nu N`: data times s / nu^2, power times s^2 / nu^2, of scored and whole
    alike."""
    particles = _write(tmp_path, np.random.default_rng(0).normal(size=(2, BOX, BOX)))
    norm, scale, plain = torch.tensor([2.0, 0.5]), torch.tensor([0.7, 3.0]), _load(particles)
    found = load_batch(
        particles,
        torch.arange(2),
        PLANE,
        1.0 + torch.arange(PLANE.radius + 1.0)[None],
        torch.zeros(2, 2),
        _settings(),
        norm=norm,
        scale=scale,
    )
    for ours, theirs in ((found.scored, plain.scored), (found.whole, plain.whole)):
        torch.testing.assert_close(ours.data, theirs.data * (scale / norm**2)[:, None])
        torch.testing.assert_close(ours.power, theirs.power * (scale**2 / norm**2)[:, None])
    assert torch.equal(found.transforms, plain.transforms)


def test_a_group_without_images_takes_the_others_noise():
    sums = torch.zeros(2, 3, 4)
    sums[0, 0], sums[1, 0] = torch.tensor([9.0, 8.0, 6.0, 4.0]), 2.0
    sums[0, 2], sums[1, 2] = torch.tensor([9.0, 8.0, 6.0, 4.0]), 1.0
    found = noise_from_sums(sums)
    torch.testing.assert_close(found[1], torch.tensor([16 / 3, 16 / 3, 4.0, 8 / 3]))
    torch.testing.assert_close(found[0], torch.tensor([4.0, 4.0, 3.0, 2.0]))
    assert (noise_from_sums(torch.zeros(2, 2, 4)) > 0).all()


def test_the_first_estimate_is_the_images_power(tmp_path):
    images = (
        np.random.default_rng(1).normal(size=(200, BOX, BOX)) * 4 + 3
    )  # normalised to deviation 1: E|N(k)|^2 = N^2
    particles = _write(tmp_path, images)
    found = initial_noise(particles, torch.arange(200), PLANE, 1, _settings(), batch_size=64)
    torch.testing.assert_close(
        found[:, 2:], torch.full((1, PLANE.radius - 1), float(BOX**2)), rtol=0.1, atol=0
    )


def test_batches_are_the_index_in_pieces():
    index = torch.tensor([5, 3, 8, 1, 9])
    pieces = list(batches(index, 2))
    assert [len(p) for p in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat(pieces), index)
    assert list(batches(index[:0], 2)) == []


def test_the_first_estimate_goes_on_in_smaller_batches_where_memory_runs_out(tmp_path, monkeypatch):
    """And is the same: no image is left out or counted twice."""
    particles = _write(tmp_path, np.random.default_rng(1).normal(size=(50, BOX, BOX)))
    whole = initial_noise(particles, torch.arange(50), PLANE, 1, _settings(), batch_size=32)
    real, sizes = residuals_module.load_batch, []

    def little_memory(data, index, *rest):
        if len(index) > 8:
            raise MemoryError
        sizes.append(len(index))
        return real(data, index, *rest)

    monkeypatch.setattr(residuals_module, "load_batch", little_memory)
    found = initial_noise(particles, torch.arange(50), PLANE, 1, _settings(), batch_size=32)
    assert sum(sizes) == 50
    torch.testing.assert_close(found, whole)
