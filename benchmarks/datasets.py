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
