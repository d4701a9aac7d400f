"""The public mathematics takes numpy arrays, lists and numbers, and refuses wrong shapes in one
line; the shapes are those of the annotations."""

import numpy as np
import pytest
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.alignment import mirror
from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import fourier_transform, half_plane, lowpass, shift_phases
from halfmap.likelihood import ImageTerms, log_likelihood_score, slice_power, squared_modulus
from halfmap.projection import empty_sums, prepare_references
from halfmap.reconstruction import wiener_update
from halfmap.resolution import fourier_shell_correlation, ssnr_from_fsc
from halfmap.so3 import angular_distance_deg, euler_to_matrix, matrix_to_euler, rotation_2d
from halfmap.symmetries import expand, symmetry_matrices


@takes_arrays
def add(
    a: Float[Tensor, "M 3"],
    b: Float[Tensor, "*box M"] | Float[Tensor, " M"] | None = None,
    *,
    label: str = "",
    index: Int[Tensor, " M"] | None = None,
    wave: Complex[Tensor, "..."] | None = None,
) -> tuple:
    return a, b, label, index, wave


def test_arrays_lists_and_numbers_become_tensors():
    a, b, label, index, wave = add(
        np.ones((2, 3), dtype=">f4"), [1, 2], label="x", index=[0, 1], wave=2.0
    )
    dtypes = [t.dtype for t in (a, b, index, wave)]
    assert dtypes == [torch.float32, torch.float32, torch.int64, torch.complex64]
    assert (tuple(a.shape), b.tolist(), label, wave.item()) == ((2, 3), [1.0, 2.0], "x", 2)


def test_a_tensor_stays_the_same_object_and_nothing_given_is_changed():
    tensor, array = torch.ones(2, 3), np.arange(6.0).reshape(2, 3)[:, ::-1]
    assert add(tensor)[0] is tensor
    before = array.copy()
    add(array)[0].zero_()
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.ones(2, 4),), r"argument a: expected an array of shape \(M, 3\), got \(2, 4\)"),
        ((torch.ones(3),), r"argument a: .* got \(3,\)"),
        (
            (torch.ones(2, 3), torch.ones(3)),
            r"argument b: .* \(\*box, M\) or \(M,\) with M = 2 as in a, got \(3,\)",
        ),
        (("map.mrc",), "argument a: expected an array of numbers, got str"),
        ((torch.ones(2, 3, dtype=torch.complex64),), "expected real numbers, got torch.complex64"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(arguments, told):
    with pytest.raises(InputError, match=told) as error:
        add(*arguments)
    assert "\n" not in str(error.value)


def test_fractions_are_no_whole_numbers():
    with pytest.raises(InputError, match="argument index: expected whole numbers, got"):
        add(torch.ones(2, 3), index=[0.5, 1.0])


def test_pythons_own_message_for_too_many_arguments():
    with pytest.raises(TypeError, match="positional"):
        add(torch.ones(2, 3), None, None)


IMAGES = np.random.default_rng(0).standard_normal((3, 16, 16))
VOLUME = np.random.default_rng(1).standard_normal((16, 16, 16)).astype(np.float32)
PLANE = half_plane(16, 7)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda: fourier_transform(IMAGES, PLANE), (3, len(PLANE))),
        (lambda: shift_phases([1, 2], PLANE), (len(PLANE),)),
        (lambda: lowpass(VOLUME, 20.0, 3.0, dimensions=3), (16, 16, 16)),
        (lambda: squared_modulus(np.ones((2, 5), complex)), (2, 5)),
        (lambda: log_likelihood_score(3, [1.0, 2.0]), (2,)),
        (lambda: wiener_update(empty_sums(2, 16, 7, 3), np.ones((2, 8))), (2, 16, 16, 16)),
        (lambda: ssnr_from_fsc(np.linspace(0, 1, 9)), (9,)),
        (lambda: euler_to_matrix([0, 30, 0]), (3, 3)),
        (lambda: matrix_to_euler(np.eye(3)), (3,)),
        (lambda: rotation_2d(30), (2, 2)),
        (lambda: angular_distance_deg(np.eye(3), np.eye(3, dtype=int)), ()),
        (lambda: expand(np.eye(3)[None], symmetry_matrices("D2")), (1, 4, 3, 3)),
        (lambda: mirror(VOLUME), (16, 16, 16)),
        (
            lambda: fourier_shell_correlation(VOLUME, VOLUME, pixel_size_angstrom=1).correlation,
            (9,),
        ),
    ],
)
def test_the_public_mathematics_takes_arrays(call, shape):
    result = call()
    assert tuple(result.shape) == shape
    assert bool(torch.isfinite(torch.view_as_real(result) if result.is_complex() else result).all())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: prepare_references(VOLUME[0], 7),
            r"references: .* \(K, N, N\) or \(K, N, N, N\), got \(16, 16\)",
        ),
        (
            lambda: prepare_references(VOLUME[None, :12], 7),
            r"references: .* got \(1, 12, 16, 16\)",
        ),
        (lambda: fourier_transform(IMAGES[0], PLANE), r"images: .* \(B, N, N\), got \(16, 16\)"),
        (
            lambda: fourier_shell_correlation(VOLUME, VOLUME[:8, :8, :8], pixel_size_angstrom=1.0),
            r"one shape, got \(16, 16, 16\) and \(8, 8, 8\)",
        ),
        (lambda: euler_to_matrix([0, 30]), r"rot_tilt_psi_deg: .* \(\*batch, 3\), got \(2,\)"),
        (lambda: mirror(VOLUME[0]), r"volume: .* \(\*b, N, N, N\), got \(16, 16\)"),
        (lambda: expand(np.eye(3), symmetry_matrices("D2")), r"rotations: .* got \(3, 3\)"),
    ],
)
def test_the_public_mathematics_refuses_wrong_shapes(call, told):
    with pytest.raises(InputError, match=told):
        call()


def test_the_score_of_images_and_slices_that_differ_in_samples_is_refused():
    terms = ImageTerms(torch.zeros(2, len(PLANE), dtype=torch.complex64), torch.ones(2, len(PLANE)))
    with pytest.raises(InputError, match=r"squared: expected an array of shape \(J, M\), got \(5,"):
        slice_power(terms, np.ones(5), PLANE)
