"""Sets beyond those of `common.SETS`: the first images of a set, maps brought to another sampling,
mixtures, the embedded phantom."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import mrcfile
import numpy as np
import starfile

import truth
from common import DATA, HALFMAP, SHARED, Skip, third_party

LOW_SIGNAL_OPTIONS = ("--seed", "51", "--colour", "0.5", "--shift", "2")


def first_images(star: Path, n: int) -> Path:
    """A STAR of the first n images, beside the whole one."""
    few = star.with_name(f"{star.stem}_{n}.star")
    tables = starfile.read(star)
    starfile.write(
        {"optics": tables["optics"], "particles": tables["particles"][:n]}, few, overwrite=True
    )
    return few


def phantom_particles(
    name: str,
    *,
    n: int,
    box: int,
    snr: float,
    symmetry: str = "C1",
    seed: int = 1,
    weights: str = "",
) -> Path:
    """Folder of images of the embedded phantom (148 A across) in a field of view of 224 A, made by
    `halfmap simulate` if it is not there. With `weights` a mixture of its two states in these
    proportions."""
    folder = DATA / name
    if not (folder / "truth.star").exists():
        print(f"  simulating {name}", flush=True)
        states = ["phantom", "phantom:1"] if weights else ["phantom"]
        command = [
            HALFMAP,
            "simulate",
            *states,
            "--out",
            folder,
            "--n",
            n,
            "--snr",
            snr,
            "--box",
            box,
            "--pixel-size",
            224 / box,
        ]
        command += [
            "--symmetry",
            symmetry,
            "--seed",
            seed,
            *(["--weights", weights] if weights else []),
            "--overwrite",
            "--quiet",
        ]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def phantom_map(box: int, *, symmetry: str = "C1", state: int = 0) -> Path:
    """The phantom itself as a map of that box over the same 224 A."""
    from halfmap.simulation.phantom import phantom

    path = DATA / "maps" / f"phantom_{symmetry}_{state}_{box}.mrc"
    if not path.exists():
        save_map(path, phantom(box, 224 / box, symmetry=symmetry, state=state).numpy(), 224 / box)
    return path


def molecules(n: int, *, kinds: int) -> Path:
    """Folder of n images, 64^2 at 5 A, SNR 0.1, equal shares of two or three `kinds`: ribosome,
    TRPV1, beta-galactosidase; their maps are of equal variance, so that the strength of an image
    does not tell which it shows.

    TRPV1's 96^3 at 2.5 A are cut in Fourier space to 48^3 at 5 A and framed to 64^3;
    beta-galactosidase's 100^3 at 3.54 A to 70^3 at 5.06 A, taken for 5 A, and cropped.

    Raises:
        Skip: the simulator or its maps are not there.
    """
    folder, simulator = (
        DATA / f"{('two', 'three')[kinds - 2]}_molecules_{n}",
        SHARED / "tools" / "simulate_reference.py",
    )
    if (folder / "truth.star").exists():
        return folder
    if not simulator.exists():
        raise Skip(f"{folder} does not exist, and no simulator at {simulator}")
    sources: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
        ("ribosome", "ribosome70S_64_5A.mrc", lambda volume: volume),
        ("trpv1", "trpv1_96_2.5A.mrc", lambda volume: np.pad(fourier_cut(volume, 48), 8)),
        ("bgal", "bgal_100_3.54A.mrc", lambda volume: fourier_cut(volume, 70)[3:-3, 3:-3, 3:-3]),
    ]
    paths = []
    for label, file, at_5_angstrom in sources[:kinds]:
        volume = at_5_angstrom(truth.read_volume(third_party("maps", file))[0])
        paths.append(DATA / "maps" / f"{label}_64_5A_equal.mrc")
        save_map(paths[-1], volume / volume.std(), 5.0)
    simulate_mixture(
        simulator, paths, folder, ["--n", str(n), "--snr", "0.1", "--seed", "41", "--colour", "0.5"]
    )
    return folder


def simulate_mixture(
    simulator: Path, maps: Sequence[Path], folder: Path, options: Sequence[str]
) -> None:
    import sys

    print(f"  simulating {folder.name}", flush=True)
    command = [sys.executable, str(simulator), *map(str, maps), "--out", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def ribosome_80() -> Path:
    """The 70S ribosome on a finer grid of the same 320 A: 80^3 at 4 A.

    Raises:
        Skip: its map is not there.
    """
    path = DATA / "maps" / "ribosome_80_4A.mrc"
    if not path.exists():
        volume, pixel = truth.read_volume(third_party("maps", "ribosome70S_64_5A.mrc"))
        save_map(path, fourier_pad(volume, 80), pixel * len(volume) / 80)
    return path


def bgal_72() -> Path:
    """Beta-galactosidase cropped to 72^3, 3.54 A.

    Raises:
        Skip: its map is not there.
    """
    path = DATA / "maps" / "bgal_72_3.54A.mrc"
    if not path.exists():
        volume, pixel = truth.read_volume(third_party("maps", "bgal_100_3.54A.mrc"))
        edge = (len(volume) - 72) // 2
        save_map(path, volume[edge:-edge, edge:-edge, edge:-edge], pixel)
    return path


def cage_72() -> Path:
    """A cage of 24 subunits in octahedral symmetry, 72^3 at 2.5 A: a subunit is 60 Gaussian blobs
    of 2.6 A, scattered by 9 A around a place 48 A from the centre."""
    path, pixel = DATA / "maps" / "cage_72_2.5A.mrc", 2.5
    if not path.exists():
        subunit = np.random.default_rng(5).normal((38, 16, 25), 9, (60, 3))
        places = np.einsum("gij,nj->gni", truth.point_group("O"), subunit).reshape(-1, 3)
        axis = (np.arange(72) - 36) * pixel
        x, y, z = np.exp(-((axis - places.T[..., None]) ** 2) / (2 * 2.6**2))
        save_map(path, np.einsum("nz,ny,nx->zyx", z, y, x), pixel)
    return path


def spike_64() -> Path:
    """A trimer like a virus's spike, 64^3 at 4 A: of each subunit 60 Gaussian blobs of 4 A in a
    wide head and 25 along a stem, 160 A long, 120 A wide, C3 about z."""
    path, pixel = DATA / "maps" / "spike_64_4A.mrc", 4.0
    if not path.exists():
        rng = np.random.default_rng(8)
        head = rng.normal((30, 8, 35), (13, 13, 16), (60, 3))
        stem = np.stack(
            [rng.normal(9, 4, 25), rng.normal(0, 4, 25), rng.uniform(-85, 20, 25)], axis=-1
        )
        subunit = np.concatenate([head, stem])
        places = np.einsum("gij,nj->gni", truth.point_group("C3"), subunit).reshape(-1, 3)
        axis = (np.arange(64) - 32) * pixel
        x, y, z = np.exp(-((axis - places.T[..., None]) ** 2) / (2 * 4.0**2))
        save_map(path, np.einsum("nz,ny,nx->zyx", z, y, x), pixel)
    return path


def low_signal_images(name: str, reference: Path, *, n: int, snr: float) -> Path:
    """Folder of n images of a map with a little coloured noise and shifts of 2 pixels (root mean
    square); at every SNR the same poses.

    Raises:
        Skip: it must be made, and the simulator is not there.
    """
    folder, simulator = (
        DATA / f"low_{name}_{snr:g}_{n}",
        SHARED / "tools" / "simulate_reference.py",
    )
    if not (folder / "truth.star").exists():
        if not simulator.exists():
            raise Skip(f"{folder} does not exist, and no simulator at {simulator}")
        options = ["--n", f"{n}", "--snr", f"{snr:g}", *LOW_SIGNAL_OPTIONS]
        simulate_mixture(simulator, [reference], folder, options)
    return folder


def fourier_pad(volume: np.ndarray, box: int) -> np.ndarray:
    """The volume on a finer grid of the same extent: its transform with zeros around it (even
    boxes)."""
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))
    for axis in range(3):
        np.moveaxis(spectrum, axis, 0)[0] = 0  # its mate at +Nyquist would be missing
    padded = np.pad(spectrum, (box - len(volume)) // 2)
    large = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(padded))).real
    return (large * (box / len(volume)) ** 3).astype(np.float32)


def fourier_cut(volume: np.ndarray, box: int) -> np.ndarray:
    """The volume on a coarser grid of the same extent: the middle of its transform (even boxes)."""
    edge = (len(volume) - box) // 2
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))[
        edge:-edge, edge:-edge, edge:-edge
    ]
    spectrum[0], spectrum[:, 0], spectrum[:, :, 0] = (
        0,
        0,
        0,
    )  # half of what lies at Nyquist is missing
    small = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum))).real
    return (small * (box / len(volume)) ** 3).astype(np.float32)


def save_map(path: Path, volume: np.ndarray, pixel_size_angstrom: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.asarray(volume, dtype=np.float32))
        file.voxel_size = pixel_size_angstrom
