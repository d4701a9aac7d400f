"""Data sets whose optics groups differ, in one job: what comes out is what one clean group gives,
RELION's programs agree, and to ignore any difference is worse."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
import optics_scenes
from halfmap.commands._corrected_images import restore_images
from halfmap.commands._inputs import read_job_mask, read_references
from halfmap.commands._restoring import Task, View, _aligned_sums
from halfmap.fourier import fourier_transform, half_plane, lowpass, shift_phases
from halfmap.image_grids import ImageGrid
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation
from halfmap.restoration import wiener_stack
from halfmap.simulation.forward_model import Recipe, Truth, draw_truth, exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.workspace.progress import Progress
from optics_scenes import BOX, CLEAN, COARSE, PIXEL, Group, two_groups, without

N = 600


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return phantom(BOX, PIXEL, symmetry="C1")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A clean group, and one of another pixel size and box with every aberration."""
    return two_groups(tmp_path_factory.mktemp("mixed"), [CLEAN, COARSE], N)


def correlation(path: Path, truth: torch.Tensor) -> np.ndarray:
    """FSC with the truth, inside the particle."""
    volume = torch.from_numpy(np.ascontiguousarray(read_map(path)[0]))
    mask = soft_sphere(BOX, radius_px=19.5, edge_px=3)
    return fourier_shell_correlation(
        volume, truth, pixel_size_angstrom=PIXEL, mask=mask
    ).correlation.numpy()


def reconstructed(star: Path, out: Path, truth: torch.Tensor) -> np.ndarray:
    halfmap.reconstruct(star, out, quiet=True, threads=1, diameter_angstrom=170.0)
    return correlation(out, truth)


def test_a_set_of_two_groups_gives_the_map_of_one_and_ignoring_any_is_worse(
    mixed, truth, tmp_path
) -> None:
    """What FSC with the truth is missing to 1, on shells that both groups see: no more than a clean
    group's, and more where the second group's magnification, tilt, trefoil, tetrafoil or pixel size
    is left out. Beyond the coarser group's Nyquist frequency half of the images are as good."""
    clean = reconstructed(two_groups(tmp_path / "one", [CLEAN], N), tmp_path / "one.mrc", truth)
    both = reconstructed(mixed, tmp_path / "both.mrc", truth)
    assert (clean - both)[2:20].max() < 0.002, both
    ignored = (
        ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        ("rlnBeamTiltX", "rlnBeamTiltY"),
        ("rlnOddZernike",),
        ("rlnEvenZernike",),
    )
    missing = (1 - both)[12:20].mean()
    for columns in ignored:
        worse = reconstructed(without(mixed, *columns), tmp_path / f"{columns[0]}.mrc", truth)
        assert (1 - worse)[12:20].mean() > 3 * missing, columns
    same = without(mixed, rlnImagePixelSize=PIXEL)
    worse = reconstructed(same, tmp_path / "pixel.mrc", truth)
    assert (1 - worse)[12:20].mean() > 10 * missing


def test_maps_and_masks_of_another_grid_are_brought_to_the_images(
    mixed, truth, tmp_path, monkeypatch
) -> None:
    """A density keeps its values and a mask stays one; the user is told."""
    data, progress, notes = load_particles(mixed), Progress("test", quiet=True), []
    monkeypatch.setattr(progress, "note", notes.append)
    wide = phantom(40, 5.0, symmetry="C1")
    write_map(tmp_path / "wide.mrc", wide.numpy(), 5.0)
    told = {"device": torch.device("cpu"), "progress": progress}
    (found,) = read_references([tmp_path / "wide.mrc"], data, lowpass_angstrom=20, **told)
    expected = lowpass(truth, 20, PIXEL, dimensions=3)
    assert (found - expected).norm() < 0.02 * expected.norm()
    write_map(
        tmp_path / "mask.mrc", soft_sphere(45, radius_px=15.0, edge_px=5.0).numpy(), 5.0
    )  # 75 A, 25 A
    mask = read_job_mask(tmp_path / "mask.mrc", data, progress)
    expected = soft_sphere(BOX, radius_px=75 / PIXEL, edge_px=25 / PIXEL)
    assert (mask - expected).abs().max() < 0.06
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    assert "wide.mrc: 40 pixels of 5 A, resampled to the images' 48 pixels of 4 A" in notes[0]
    assert "mask.mrc: 45 pixels of 5 A, resampled" in notes[1]


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_a_header_that_knows_no_pixel_size_is_not_believed(
    mixed, truth, tmp_path, monkeypatch, pixel
) -> None:
    """0 and 1 A, of a map of the images' box: resampled by it, a particle would be a dot."""
    data, progress, notes = load_particles(mixed), Progress("test", quiet=True), []
    monkeypatch.setattr(progress, "note", notes.append)
    write_map(tmp_path / "map.mrc", truth.numpy(), pixel)
    told = {"device": torch.device("cpu"), "progress": progress}
    (found,) = read_references([tmp_path / "map.mrc"], data, lowpass_angstrom=20, **told)
    torch.testing.assert_close(found, lowpass(truth, 20, PIXEL, dimensions=3))
    sphere = soft_sphere(BOX, radius_px=15.0, edge_px=5.0)
    write_map(tmp_path / "mask.mrc", sphere.numpy(), pixel)
    torch.testing.assert_close(read_job_mask(tmp_path / "mask.mrc", data, progress), sphere)
    assert [f"a header of {pixel:g} A" in note for note in notes] == [True] * (2 * int(pixel))


def test_projections_are_on_the_grid_of_each_image_with_its_aberrations(
    mixed, truth, tmp_path
) -> None:
    """Beside noise-free images: the same, but for a factor of grey values; a map of another grid
    does as well."""
    write_map(tmp_path / "map.mrc", truth.numpy(), PIXEL)
    write_map(tmp_path / "other.mrc", phantom(50, 3.9, symmetry="C1").numpy(), 3.9)
    data = load_particles(mixed)
    for name in ("map", "other"):
        made = halfmap.project(
            tmp_path / f"{name}.mrc", mixed, tmp_path / f"{name}.mrcs", ctf=True, threads=1
        )
        assert [path.name for path in made.stacks] == [f"{name}_1.mrcs", f"{name}_2.mrcs"]
        assert any("resampled to 44 pixels" in note for note in made.notes)
        projections = load_particles(tmp_path / f"{name}.star")
        assert projections.grids == data.grids
        pairs = zip(data.stored_images([3, 47]), projections.stored_images([3, 47]), strict=True)
        for (_, grid, images), (_, other, projected) in pairs:
            assert grid == other
            correlation = np.corrcoef(images.ravel(), projected.ravel())[0, 1]
            assert correlation > 0.99, (name, grid)
    plain = halfmap.project(tmp_path / "map.mrc", mixed, tmp_path / "plain.mrcs", threads=1)
    found = load_particles(plain.path.with_suffix(".star"))
    assert not found.has_ctf
    assert found.grids == data.grids  # distorted as the images are


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    groups = [CLEAN, COARSE, Group(41, 4.5, {"voltage_kv": 200.0, "premultiplied": True})]
    return two_groups(tmp_path_factory.mktemp("noisy"), groups, 240, snr=0.3)


@pytest.mark.slow
def test_every_job_takes_such_a_set(noisy, truth, tmp_path) -> None:
    """Three groups: one odd box, one of another voltage and premultiplied."""
    write_map(tmp_path / "start.mrc", truth.numpy(), PIXEL)
    told = {"quiet": True, "threads": 1, "diameter_angstrom": 170.0}
    halfmap.info(noisy)
    for group, grid in enumerate((ImageGrid(BOX, PIXEL), None, ImageGrid(41, 4.5)), start=1):
        kept = halfmap.select(noisy, tmp_path / f"group{group}.star", optics_group=[str(group)])
        assert kept.kept == 80
        (stored,) = load_particles(kept.path).grids
        assert grid is None or stored == grid
    halfmap.class2d(noisy, tmp_path / "c2", classes=2, iterations=1, **told)
    halfmap.class3d(noisy, tmp_path / "start.mrc", tmp_path / "c3", classes=2, iterations=1, **told)
    halfmap.abinitio(noisy, tmp_path / "ab", iterations=2, box=32, **told)
    assert read_map(tmp_path / "ab" / "map.mrc")[0].shape == (32, 32, 32)
    for method in ("flip", "wiener-stack"):
        halfmap.restore(
            noisy, method, tmp_path / method, view_tolerance=180.0, quiet=True, threads=1
        )
    flipped = load_particles(tmp_path / "flip" / "particles.star")
    assert flipped.grids == (ImageGrid(BOX, PIXEL),)
    data = load_particles(noisy)
    np.testing.assert_allclose(flipped.shift_angstrom, data.shift_angstrom, atol=2e-6)
    halfmap.reconstruct(noisy, tmp_path / "small.mrc", pixel_size_angstrom=6.0, quiet=True)
    volume, pixel = read_map(tmp_path / "small.mrc")
    assert (volume.shape[0], pixel) == (32, pytest.approx(6.0))


@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="RELION is not installed")
def test_relion_reconstruct_agrees(mixed, truth, tmp_path) -> None:
    """On the same file, RELION's map of both groups and ours: FSC 0.5 with the truth within a
    shell, and with each other beyond 0.9 where both see."""
    ours = reconstructed(mixed, tmp_path / "ours.mrc", truth)
    out = tmp_path / "relion.mrc"
    subprocess.run(
        ["relion_reconstruct", "--i", mixed.name, "--o", str(out), "--ctf"],
        cwd=mixed.parent,
        check=True,
        capture_output=True,
    )
    theirs = correlation(out, truth)
    last = [int(np.argmax(np.append(fsc[2:], 0) < 0.5)) + 1 for fsc in (ours, theirs)]
    assert abs(last[0] - last[1]) <= 1, (ours, theirs)
    assert (ours - theirs)[2:21].min() > -0.005
    assert theirs[2:21].min() > 0.98, theirs


def test_images_stacked_on_one_grid_give_the_map_of_their_groups(mixed, truth, tmp_path) -> None:
    """Their optics table says what the images are now, and what they keep of the microscope: FSC
    0.5 with the truth within a shell of the groups' map, ours and RELION's."""
    before = reconstructed(mixed, tmp_path / "before.mrc", truth)
    star = halfmap.stack(mixed, tmp_path / "one.star", threads=1).path
    optics, old = (read_star(path).blocks["optics"] for path in (star, mixed))
    np.testing.assert_array_equal(optics.floats("rlnImagePixelSize"), [PIXEL, PIXEL])
    np.testing.assert_array_equal(optics.floats("rlnImageSize"), [BOX, BOX])
    assert not any(name.startswith("rlnMagMat") for name in optics.names)
    for name in ("rlnBeamTiltX", "rlnOddZernike", "rlnEvenZernike"):
        assert optics.strings(name).tolist() == old.strings(name).tolist()
    after = [reconstructed(star, tmp_path / "after.mrc", truth)]
    if shutil.which("relion_reconstruct") is not None:
        words = ["relion_reconstruct", "--i", star.name, "--o", "relion.mrc", "--ctf"]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        after.append(correlation(tmp_path / "relion.mrc", truth))
    last = [int(np.argmax(np.append(fsc[2:], 0) < 0.5)) + 1 for fsc in (before, *after)]
    for fsc in after:
        assert (before - fsc)[2:20].max() < 0.005, fsc
    assert max(abs(one - last[0]) for one in last) <= 1, last


def pose_error_deg(star: Path, truth_star: Path) -> float:
    """Median angle between poses found and true, C1."""
    found, true = load_particles(star, check_images=False), load_particles(truth_star)
    names = true.table.strings("rlnImageName").tolist()
    rows = [names.index(name) for name in _names(found)]
    a = euler_to_matrix(torch.from_numpy(found.rotations_deg))
    b = euler_to_matrix(torch.from_numpy(true.rotations_deg[rows]))
    return float(angular_distance_deg(a, b, symmetry=torch.eye(3)[None].double()).median())


def _names(particles) -> list[str]:
    """Image names as number@file, without folders."""
    text = particles.table.strings("rlnImageName").tolist()
    return [f"{name.split('@')[0]}@{Path(name.split('@')[1]).name}" for name in text]


def refined(star: Path, out: Path, truth: torch.Tensor) -> tuple[float, float]:
    """Pose error in degrees, and mean FSC with the truth on the outer shells, of a refinement from
    25 A."""
    start = out.with_name("start.mrc")
    write_map(start, truth.numpy(), PIXEL)
    told = {"quiet": True, "threads": 1, "diameter_angstrom": 170.0, "folds": 1, "iterations": 8}
    halfmap.refine(star, start, out, initial_lowpass_angstrom=25.0, **told)
    error = pose_error_deg(out / "particles.star", star)
    return error, float(correlation(out / "map.mrc", truth)[8:19].mean())


@pytest.mark.slow
def test_refinement_of_two_groups_is_that_of_one_and_ignoring_any_is_worse(tmp_path, truth) -> None:
    """Pose error within a tenth and FSC within 0.02 of the same particles in one clean group."""
    one = refined(two_groups(tmp_path / "a", [CLEAN], 800, snr=0.2), tmp_path / "one", truth)
    star = two_groups(tmp_path / "b", [CLEAN, COARSE], 800, snr=0.2)
    two = refined(star, tmp_path / "two", truth)
    assert two[0] < 1.15 * one[0] + 0.1, (one, two)
    assert two[1] > one[1] - 0.02, (one, two)
    ignored = (
        without(star, "rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        without(star, "rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike"),
        without(star, rlnImagePixelSize=PIXEL),
    )
    for number, left_out in enumerate(ignored):
        worse = refined(left_out, tmp_path / f"worse{number}", truth)
        assert worse[0] > 1.05 * two[0] or worse[1] < two[1] - 0.01, (left_out, two, worse)


SNR_FEW, FAR_ANGSTROM = 0.05, (40e3, 90e3)
FAR_GROUPS = {
    "distorted": COARSE,
    "odd box, Cs alone": Group(45, 4.4, {"spherical_aberration_mm": 0.01}),
}


@pytest.mark.parametrize("case", FAR_GROUPS)
def test_groups_whose_defocus_leaves_the_box_give_the_map_of_a_clean_one(
    case, truth, tmp_path
) -> None:
    """9 um move what is at 9 A by 200 A; boxes are 192 A. Where the CTF was undone after
    resampling, the FSC with the truth fell from 0.77 to 0.54 (distorted) at an SNR of 0.05."""
    far = {"snr": SNR_FEW, "defocus_angstrom": FAR_ANGSTROM}
    one = two_groups(tmp_path / "one", [CLEAN], 600, **far)
    other = two_groups(tmp_path / "other", [FAR_GROUPS[case]], 600, **far)
    told = {"quiet": True, "threads": 1, "diameter_angstrom": 170.0}
    told |= {"pixel_size_angstrom": PIXEL, "box": BOX}
    found = []
    for star in (one, other):
        halfmap.reconstruct(star, tmp_path / f"{star.parent.name}.mrc", **told)
        found.append(correlation(tmp_path / f"{star.parent.name}.mrc", truth)[8:18].mean())
    assert found[1] > found[0] - 0.05, found


def test_images_are_restored_where_they_are_stored(tmp_path, truth) -> None:
    """Beside the particle's true transform, shells 13 to 20: images of a distorted group are as
    right as those of the same particles in a clean one, though the defocus has moved half of what
    they show out of the box and in at the other side. Resampled first, they were not (0.78 in place
    of 0.90 for flipped phases; 0.1 to 0.8 in place of 1 for the quotient)."""
    found = {}
    for name, group in (("one", CLEAN), ("other", COARSE)):
        star = two_groups(tmp_path / name, [group], 24, defocus_angstrom=FAR_ANGSTROM)
        data = load_particles(star).on_grid(box=BOX, pixel_size_angstrom=PIXEL)
        plane, rows = half_plane(BOX, 20), np.arange(24)
        rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg))
        ideal = exact_slices(truth, rotations, plane.kx, plane.ky).to(torch.complex64)
        moved = shift_phases(-torch.from_numpy(data.shift_angstrom / PIXEL).float(), plane)
        by_method = {
            method: fourier_transform(restore_images(data, rows, method), plane)
            for method in ("flip", "divide", "wiener")
        }
        outer = plane.shell > 12
        for method, samples in by_method.items():
            a, b = samples[:, outer], (ideal * moved)[:, outer].to(samples)
            right = float((a * b.conj()).sum().real / (a.norm() * b.norm()))
            found.setdefault(method, []).append(right)
    for method, (clean, distorted) in found.items():
        assert distorted > clean - 0.03, (method, found)


NEAR_ANGSTROM = (8e3, 22e3)  # what is at 8 A stays within half a box of 192 A


@pytest.mark.parametrize(
    ("defocus_angstrom", "lost"), [(NEAR_ANGSTROM, 0.01), (FAR_ANGSTROM, 0.03)]
)
def test_stacks_are_summed_where_images_are_stored(
    defocus_angstrom, lost, tmp_path, truth, monkeypatch
) -> None:
    """Wiener's filter from 60 images of one view, beside the particle's true transform on shells 13
    to 20: images that are turned in plane, of a clean or of a distorted group, are as right as
    those of a clean group that are not. Resampled before the CTF was applied, turned images came
    to 0.44 where defocus had left the box; always afterwards, distorted ones to 0.91 where it had
    not."""
    plane, rows = half_plane(BOX, BOX // 2 - 1), np.arange(60)
    view = euler_to_matrix(torch.tensor([[10.0, 40.0, 0.0]]).double())
    ideal, outer = exact_slices(truth, view, plane.kx, plane.ky)[0], plane.shell > 12
    outer &= plane.shell < 21
    found = []
    for group, psi_deg in ((CLEAN, 0.0), (CLEAN, 35.0), (COARSE, 0.0), (COARSE, 35.0)):

        def one_view(recipe: Recipe, psi_deg: float = psi_deg) -> Truth:
            angles = torch.tensor([[10.0, 40.0, psi_deg]]).repeat(60, 1)
            return replace(draw_truth(recipe), angles_deg=angles)

        monkeypatch.setattr(optics_scenes, "draw_truth", one_view)
        star = two_groups(
            tmp_path / str(len(found)), [group], 60, defocus_angstrom=defocus_angstrom
        )
        data = load_particles(star).on_grid(box=BOX, pixel_size_angstrom=PIXEL)
        shift_px = torch.from_numpy(data.shift_angstrom / PIXEL).float()
        aligned = View(torch.full((60,), psi_deg), shift_px)
        task = Task(data, "wiener-stack", 0.1, aligned, np.zeros(60, np.int64))
        estimate = wiener_stack(_aligned_sums(task, rows), constant=0.1)
        a, b = estimate[outer], ideal[outer].to(estimate)
        found.append(float((a * b.conj()).sum().real / (a.norm() * b.norm())))
    assert min(found[1:]) > found[0] - lost, found


def test_defocus_is_refined_where_images_are_stored(tmp_path) -> None:
    """Of 9 um, errors of 1500 A are mended as well in a distorted group as in a clean one: where
    images were resampled first, they grew there."""
    star = two_groups(
        tmp_path, [CLEAN, COARSE], 300, snr=1.0, defocus_angstrom=FAR_ANGSTROM, seed=2
    )
    data = load_particles(star)
    true = data.transfer
    wrong = np.random.default_rng(3).normal(0, 1500, len(data))
    both = {
        name: getattr(true, name) + wrong for name in ("defocus_u_angstrom", "defocus_v_angstrom")
    }
    data.with_transfer(replace(true, **both)).write_star(tmp_path / "wrong.star")
    told = {"quiet": True, "threads": 1, "diameter_angstrom": 170.0, "folds": 2, "rounds": 2}
    done = halfmap.ctfrefine(
        tmp_path / "wrong.star", tmp_path / "job", defocus_range_angstrom=5000.0, **told
    )
    refined = load_particles(done.particles_path)
    rows = [_names(data).index(name) for name in _names(refined)]
    left = np.abs(refined.transfer.defocus_u_angstrom - true.defocus_u_angstrom[rows])
    clean, coarse = (float(np.median(left[refined.optics_group == g])) for g in (0, 1))
    assert clean < 500, (clean, coarse)
    assert coarse < 1.4 * clean, (clean, coarse)
