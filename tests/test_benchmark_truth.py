"""The benchmarks' judge, on poses and maps whose errors are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import truth

RNG = np.random.default_rng(7)


def some_poses(n: int) -> truth.Poses:
    rng = np.random.default_rng(n)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    rotations = truth.euler_matrices(rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n))
    return truth.Poses(rotations, rng.normal(0, 5, (n, 2)), np.ones(n, int), np.arange(n))


def moved(
    poses: truth.Poses, *, frame, offset, error_deg: float, wrong_share: float, group
) -> tuple[truth.Poses, np.ndarray]:
    """The same particles in another frame, with errors of exactly `error_deg`, mates by chance, and
    some poses wholly wrong."""
    n = len(poses.rotations)
    axes = RNG.normal(size=(n, 3))
    axes *= error_deg / np.linalg.norm(axes, axis=1, keepdims=True)
    errors = np.stack([truth.rotation_from_vector(axis) for axis in axes])
    rotations = errors @ poses.rotations @ group[RNG.integers(len(group), size=n)] @ frame
    wrong = RNG.random(n) < wrong_share
    rotations[wrong] = some_poses(n + 1).rotations[:n][wrong]
    origins = poses.origins_angstrom + (rotations @ offset)[:, :2]
    return truth.Poses(rotations, origins, poses.classes, poses.numbers), wrong


@pytest.mark.parametrize(
    ("symmetry", "turn_deg", "offset"),
    [
        ("C1", (0, 0, 0), (0, 0, 0)),
        ("C1", (50, -100, 70), (3.0, -2.0, 1.0)),
        ("C4", (0, 0, 31), (0, 0, 2.5)),
        ("C4", (0, 0, -90), (0, 0, 0)),
    ],
)
def test_known_errors_come_back_whatever_the_frame(symmetry, turn_deg, offset) -> None:
    true = some_poses(400)
    group, frame = (
        truth.point_group(symmetry),
        truth.rotation_from_vector(np.array(turn_deg, float)),
    )
    estimated, wrong = moved(
        true, frame=frame, offset=np.array(offset), error_deg=2.0, wrong_share=0.2, group=group
    )
    errors = truth.pose_errors(estimated, true, symmetry=symmetry)
    assert np.median(errors.angle_deg) == pytest.approx(2.0, abs=0.1)
    assert (
        np.abs(errors.angle_deg[~wrong] - 2.0).max() < 0.4
    )  # the frame itself is known to a few tenths of a degree
    assert np.median(errors.angle_deg[wrong]) > 20
    assert errors.frame_shift_angstrom == pytest.approx(np.array(offset), abs=1e-6)
    assert errors.shift_angstrom.max() < 1e-6
    expected = min(truth.angle_of(mate.T @ frame) for mate in group)
    assert errors.frame_angle_deg == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize(("symmetry", "order"), [("C1", 1), ("C4", 4), ("D2", 4), ("O", 24)])
def test_point_groups_are_groups(symmetry, order) -> None:
    """Every product of two elements is one of them, and no two are alike; the engine's own
    operators are the same."""
    from halfmap.symmetries import symmetry_matrices

    group = truth.point_group(symmetry)
    assert np.linalg.det(group) == pytest.approx(1)
    products = np.einsum("aij,bjk->abik", group, group)
    for found in (products, symmetry_matrices(symmetry).numpy()[None]):
        same = np.abs(found[:, :, None] - group).max((-2, -1)) < 1e-6
        assert (same.sum(-1) == 1).all()
        assert same.sum(1) == pytest.approx(1)
    assert len(group) == order
    assert group[0] == pytest.approx(np.eye(3))


def test_a_map_in_another_frame_is_brought_back() -> None:
    box, pixel = 32, 2.0
    z, y, x = np.meshgrid(*[np.arange(box) - box // 2] * 3, indexing="ij")
    points = np.stack([x, y, z], -1).astype(float)

    def blobs(at: np.ndarray) -> np.ndarray:
        centres = np.array([(4, 0, 0), (0, 5, 1), (-2, -3, 4)], float)
        return sum(np.exp(-((at - c) ** 2).sum(-1) / 8) for c in centres)

    frame, offset = (
        truth.rotation_from_vector(np.array([20.0, -35.0, 50.0])),
        np.array([2.0, -1.0, 3.0]),
    )
    true = blobs(points)
    # A_est = A_true G: the point y of the moved map is the truth's point G (y - t)
    refined = blobs((points - offset / pixel) @ frame.T)
    poses = some_poses(200)
    estimated, _ = moved(
        poses, frame=frame, offset=offset, error_deg=0.0, wrong_share=0.0, group=np.eye(3)[None]
    )
    errors = truth.pose_errors(estimated, poses)
    back = truth.into_frame_of_truth(refined, errors, pixel)
    assert np.corrcoef(back.ravel(), true.ravel())[0, 1] > 0.999
    assert np.corrcoef(refined.ravel(), true.ravel())[0, 1] < 0.9


def test_shift_and_frame_agree_with_projections() -> None:
    """A point at p lies in the image at (A p)_xy - origin, in either frame."""
    true = some_poses(50)
    frame, offset = (
        truth.rotation_from_vector(np.array([10.0, 60.0, -30.0])),
        np.array([1.0, 2.0, -3.0]),
    )
    estimated, _ = moved(
        true, frame=frame, offset=offset, error_deg=0.0, wrong_share=0.0, group=np.eye(3)[None]
    )
    point = np.array([5.0, -7.0, 11.0])
    same = frame.T @ point + offset  # where the moved map has it
    in_image = (true.rotations @ point)[:, :2] - true.origins_angstrom
    assert (estimated.rotations @ same)[:, :2] - estimated.origins_angstrom == pytest.approx(
        in_image
    )


def test_fsc_of_signal_and_noise_has_its_closed_form() -> None:
    """Equal power of common signal and independent noise: FSC = 1/2 on every shell."""
    rng = np.random.default_rng(0)
    signal, first, second = rng.normal(size=(3, 48, 48, 48))
    curve = truth.fsc(signal + first, signal + second)
    assert curve[12:] == pytest.approx(np.full(13, 0.5), abs=0.05)
    assert truth.fsc(signal, 3 * signal) == pytest.approx(np.ones(25))
    assert truth.resolution_at(np.array([1, 0.9, 0.7, 0.3, 0.6]), 0.5, 8, 1.5) == pytest.approx(
        12 / 2.5
    )
    assert truth.resolution_at(np.ones(5), 0.5, 8, 1.5) == pytest.approx(3.0)


def test_soft_sphere_is_half_at_its_radius() -> None:
    mask = truth.soft_sphere(32, 8.0, 4.0)[16, 16]
    assert mask[16 + 8] == pytest.approx(0.5)
    assert mask[16 + 6] == 1
    assert mask[16 + 10] == pytest.approx(0)


def test_adjusted_rand_index() -> None:
    labels = RNG.integers(0, 3, 3000)
    assert truth.adjusted_rand_index(labels, (labels + 1) % 3) == pytest.approx(1)
    assert truth.adjusted_rand_index(labels, RNG.integers(0, 3, 3000)) == pytest.approx(0, abs=0.01)
    # Hubert and Arabie's formula by hand: {1,2},{3,4} against {1,2,3},{4}: 1 pair together in both,
    # 2 and 3 in each, 2 x 3 / 6 expected
    assert truth.adjusted_rand_index(
        np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    ) == pytest.approx((1 - 1) / (2.5 - 1))


def test_spread_of_views() -> None:
    centre = np.array([[0.0, 30, 60, 90]]).repeat(50, 0).ravel()
    classes = np.arange(4)[None].repeat(50, 0).ravel()
    tilted = truth.euler_matrices(
        RNG.uniform(-180, 180, 200) * 0,
        centre + RNG.choice([-5.0, 0, 5.0], 200),
        RNG.uniform(-180, 180, 200),
    )
    spread = truth.view_spread_deg(tilted, classes)  # in-plane angles are random, and do not count
    assert spread == pytest.approx(np.where(spread > 2.5, 5, 0), abs=1e-4)
    assert 0.4 < (spread > 2.5).mean() < 0.9
    mirrored = np.stack([np.eye(3), np.diag([1.0, -1, -1])])  # from above and from below
    assert sorted(truth.view_spread_deg(mirrored, np.zeros(2))) == pytest.approx([0, 180])


def test_every_benchmark_is_listed(capsys, monkeypatch) -> None:
    """They import the engine's parts by name, so this also tells when one was renamed."""
    import run

    monkeypatch.setattr(sys, "argv", ["run.py", "--list"])
    assert run.main() == 0
    listed = capsys.readouterr().out
    names = [line.split()[0] for line in listed.strip().splitlines()]
    assert names == list(run.ALL)
    assert {
        "trpv1",
        "ribo_mix_2d",
        "ribo_mix_3d",
        "yardstick",
        "stages",
        "accuracy",
        "gallery",
        "real_ribosome",
    } <= set(names)


def test_every_benchmark_has_its_place_in_the_documentation() -> None:
    import run
    import summary
    import table

    placed = [name for _, names in table.PAGES.values() for name in names]
    assert sorted(placed) == sorted(run.ALL)
    for line in summary.LINES:
        assert set(line.needs) <= set(run.ALL), line.what


def test_the_first_page_says_what_the_records_say() -> None:
    """Lines whose record is missing are left out; the others carry its figures, and the device
    check says that it has not run, or its table."""
    import summary
    import table

    record = {"date": "2026-01-02T", "commit": "c0", "machine": {"processor": "P"}}
    two_d = {"cpu_s": 12.3, "spread_median_deg": 45.0, "peak_bytes": 2**30}
    newest = {"ribo_mix_2d": {**record, "numbers": two_d}}
    page = summary.first_page(newest, table.page_of())
    assert "| 12 CPU s; 45 deg | 716 CPU s; 34 deg (RELION 5, another machine) |" in page
    assert "benchmarks/classes.md#ribo_mix_2d" in page
    assert "2 cores of an P (2026-01-02)" in page
    assert "Rand" not in page
    assert "It has not run on a GPU yet" in page
    what = "refine 10,000 x 128^2, 6 iterations"
    figures = {
        what: {
            "wall_s": 77.0,
            "stages_s": {"search": 38.5},
            "outside_iterations_s": 38.5,
            "resident_bytes": 2**31,
            "device_bytes": 2**30,
            "resolution_angstrom": 3.25,
        },
        "tests on cuda": {"failed": "1 failed"},
    }
    checked = {**newest, "device_check": {**record, "device": "a GPU", "figures": figures}}
    page = summary.first_page(checked, table.page_of())
    expected = "77.0 s (search 50 %, outside 50 %); GPU 1.0 GiB, resident 2.0 GiB; 3.25 A"
    assert f"| {what} | {expected} | RELION 5 refine, 80 GB card: 507 s |" in page
    assert "| tests on cuda | FAILED: 1 failed |  |" in page
    assert "a GPU, " in page
    assert "It has not run on a GPU yet" not in page


def test_purity_of_classes() -> None:
    labels = np.repeat([5, 9], 50)
    assert truth.purity(labels * 10, labels) == 1
    assert truth.purity(np.zeros(100, int), labels) == 0.5
    classes = np.concatenate(
        [np.repeat([1, 2], [40, 10]), np.repeat([1, 2], [20, 30])]
    )  # majorities 40 of 60 and 30 of 40
    assert truth.purity(classes, labels) == pytest.approx(0.7)


def test_marginal_cost_leaves_out_what_two_jobs_share() -> None:
    import iterations
    from common import Cost

    def job(n: int, done: int) -> tuple[Cost, int, int]:
        return Cost(0.0, 4.0 + 0.002 * n * done, 1.0, 0), n, done

    assert iterations.marginal_ms(job(3000, 15), job(1000, 15)) == pytest.approx(2.0)
    assert iterations.marginal_ms(job(3000, 9), job(1000, 12)) == pytest.approx(2.0)


def test_lectures_formula_and_its_slopes() -> None:
    import scaling

    images, n, t = 100_000, 128, 11
    assert scaling.lecture(n, images, t) == pytest.approx(
        np.pi**3 / 8 * t**2 * n**5 * images, rel=1e-3
    )  # the other terms are small
    assert scaling.exponent(
        [32.0, 64.0, 128.0], [scaling.lecture(x, 100) for x in (32, 64, 128)]
    ) == pytest.approx(5, abs=0.01)


def test_a_map_cut_in_fourier_space_keeps_its_values() -> None:
    """A smooth blob sampled half as finely: every other value, the middle in the middle."""
    import datasets

    axis = np.arange(32) - 16
    blob = np.exp(-(((axis[:, None, None] - 2) ** 2 + axis[:, None] ** 2 + axis**2) / 18))
    small = datasets.fourier_cut(blob, 16)
    assert small == pytest.approx(blob[::2, ::2, ::2], abs=2e-3)


def test_a_map_on_a_finer_grid_keeps_its_values() -> None:
    """The same blob sampled on 24 points, then on 48 of the same extent."""
    import datasets

    def blob(box: int) -> np.ndarray:
        axis = (np.arange(box) - box // 2) * 24 / box
        return np.exp(-(((axis[:, None, None] - 2) ** 2 + axis[:, None] ** 2 + axis**2) / 8))

    assert datasets.fourier_pad(blob(24), 48) == pytest.approx(blob(48), abs=2e-3)
