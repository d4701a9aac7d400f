"""The convention, checked against an independent program: RELION's own projections of the same map
at the same poses."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from halfmap.fourier import half_plane, inverse_fourier_transform, largest_radius, shift_phases
from halfmap.io.mrc import open_stack, write_map
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix, matrix_to_euler, random_rotations

pytestmark = pytest.mark.skipif(
    shutil.which("relion_project") is None, reason="relion_project (RELION) is not installed"
)


def test_projections_are_relions_to_a_sign_and_a_pixel(tmp_path):
    box, pixel, n = 48, 4.5, 12
    volume = phantom(box, pixel, symmetry="C1")
    generator = torch.Generator().manual_seed(7)
    rotations = random_rotations(n, generator)
    angles = matrix_to_euler(rotations.double()).numpy()
    shifts = (torch.rand(n, 2, generator=generator) * 8 - 4).double().numpy()
    write_map(tmp_path / "map.mrc", volume.numpy(), pixel)
    columns = {
        "rlnImageName": [f"{i + 1:06d}@none.mrcs" for i in range(n)],
        "rlnOpticsGroup": np.ones(n, int),
        "rlnAngleRot": angles[:, 0],
        "rlnAngleTilt": angles[:, 1],
        "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": shifts[:, 0] * pixel,
        "rlnOriginYAngst": shifts[:, 1] * pixel,
    }
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["one"],
        "rlnImagePixelSize": [pixel],
        "rlnImageSize": [box],
        "rlnImageDimensionality": [2],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    write_star(
        tmp_path / "poses.star",
        {"optics": Table.from_columns(optics), "particles": Table.from_columns(columns)},
    )
    command = [
        "relion_project",
        "--i",
        "map.mrc",
        "--ang",
        "poses.star",
        "--o",
        "projected",
        "--pad",
        "2",
        "--angpix",
        str(pixel),
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    theirs = torch.from_numpy(open_stack(tmp_path / "projected.mrcs").read(np.arange(n)))

    plane = half_plane(box, largest_radius(box))
    poses = euler_to_matrix(torch.from_numpy(angles)).float()
    slices = extract_slices(prepare_references(volume[None], plane.radius), poses, plane)
    ours = inverse_fourier_transform(
        slices * shift_phases(torch.from_numpy(shifts).float(), plane).conj(), plane
    )
    for mine, reference in zip(ours, theirs, strict=True):
        correlation = np.corrcoef(mine.flatten().numpy(), reference.flatten().numpy())[0, 1]
        assert correlation > 0.999
