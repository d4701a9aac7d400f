"""Molecules of which a part is not the same in every image, refined with references filtered by
place and without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation, gaussian_filter

import halfmap
import truth
from common import DATA, HALFMAP, Report, job_folder, run
from halfmap.commands._simulated_tables import particle_tables
from halfmap.fourier import lowpass
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import write_star
from halfmap.simulation.forward_model import (
    Recipe,
    clean_images,
    draw_truth,
    noise_amplitude,
    noise_images,
    normalise,
)
from halfmap.simulation.phantom import phantom
from refine_simulated import resolution_of

BOX, PIXEL = 64, 3.5
DIAMETER_ANGSTROM = 190.0
SETS = {
    "rigid": "a rigid molecule",
    "micelle": "a core in a disordered belt",
    "domain": "a core with a floppy domain",
    "noise": "noise alone",
}
LOOSE = ("micelle", "domain")


def local_regularisation(n: int = 800, snr: float = 0.05) -> Report:
    """The embedded phantom without symmetry (64^2, 3.5 A, 800 images; its own signal has SNR 0.05):
    alone; in a belt, as of a micelle, that has another density in every image, and four times its
    power; with a domain on its side that swings by 30 degrees (standard deviation, each of two
    axes); and images of noise alone. `refine` from the mean map at 40 A, with
    `--local-regularisation` and without. Judged is the core: poses against the truth, and the FSC
    of the map to the true core inside the core's mask. What halves agree on by chance must not be
    picked out in both: in the part that differs from image to image, away from the core, their mean
    FSC beyond 15 A stands beside that at the true poses. Goals: core and poses better where a part
    is disordered; the rigid molecule no worse by more than half a shell; the halves' FSC of noise no
    higher."""
    report = Report()
    for name in SETS:
        folder = made(DATA / f"local_{name}", name, n=n, snr=snr)
        found = {}
        for way, extra in (("without", []), ("with", ["--local-regularisation"])):
            out = job_folder(f"local_{name}_{way}")
            command = [HALFMAP, "refine", "--particles", folder / "particles.star", *extra]
            command += ["--reference", folder / "start.mrc", "--initial-lowpass", "40"]
            command += ["--diameter", f"{DIAMETER_ANGSTROM:g}", "--threads", "1", "--out", out]
            cost = run(report, [*command, "--overwrite", "--quiet"], log=out.name)
            found[way] = judged(folder, out) | {"cpu_s": cost.cpu_s}
        if name in LOOSE:
            out = job_folder(f"local_{name}_true")
            command = [HALFMAP, "reconstruct", "--particles", folder / "truth.star", "--halves"]
            run(report, [*command, "--out", out, "--overwrite", "--quiet"], log=out.name)
            halves = [truth.read_volume(out / f"half{h}.mrc")[0] for h in (1, 2)]
            found["true poses"] = {"loose_fsc_beyond_15": loose_fsc(folder, *halves)}
        tell(report, name, found)
        report.numbers[name] = found
    goals(report)
    return report


def judged(folder: Path, out: Path) -> dict[str, float]:
    errors = truth.pose_errors(
        truth.read_poses(out / "particles.star"),
        truth.read_poses(folder / "truth.star"),
        symmetry="C1",
    )
    core, inside = (truth.read_volume(folder / f"{n}.mrc")[0] for n in ("core", "core_mask"))
    volume, half1, half2 = (
        truth.read_volume(out / f"{name}.mrc")[0] for name in ("map", "half1", "half2")
    )
    volume, half1, half2 = (
        truth.into_frame_of_truth(one, errors, PIXEL) for one in (volume, half1, half2)
    )
    curve = truth.fsc(volume, core, inside)
    return {
        "error_median_deg": float(np.median(errors.angle_deg)),
        "within_10_deg": float((errors.angle_deg < 10).mean()),
        "core_angstrom": float(truth.resolution_at(curve, 0.5, BOX, PIXEL)),
        "core_fsc_area_shells": float(curve[1:].sum()),
        "reported_angstrom": float(resolution_of(out)),
        "halves_fsc_area_shells": float(truth.fsc(half1, half2)[1:].sum()),
        "loose_fsc_beyond_15": loose_fsc(folder, half1, half2),
    }


def loose_fsc(folder: Path, half1: np.ndarray, half2: np.ndarray) -> float:
    loose = truth.read_volume(folder / "loose_mask.mrc")[0]
    return float(truth.fsc(half1, half2, loose)[math.ceil(BOX * PIXEL / 15) :].mean())


def tell(report: Report, name: str, found: dict[str, dict[str, float]]) -> None:
    title, ours, plain = SETS[name], found["with"], found["without"]

    def line(what: str, key: str, form: str) -> None:
        report.add(f"{title}: {what}", form.format(ours[key]), f"{form.format(plain[key])} without")

    if name != "noise":
        line("pose error, median", "error_median_deg", "{:.2f} deg")
        line("within 10 degrees", "within_10_deg", "{:.1%}")
        line("core to truth, FSC 0.5", "core_angstrom", "{:.2f} A")
        line("core to truth, area under the FSC", "core_fsc_area_shells", "{:.2f} shells")
    if name in LOOSE:
        key = "loose_fsc_beyond_15"
        report.add(
            f"{title}: halves in the loose part, mean FSC beyond 15 A",
            f"{ours[key]:.3f}",
            f"{plain[key]:.3f} without; {found['true poses'][key]:.3f} at the true poses",
        )
    line("halves, area under the unmasked FSC", "halves_fsc_area_shells", "{:.2f} shells")
    line("reported", "reported_angstrom", "{:.2f} A")
    line("CPU", "cpu_s", "{:.0f} s")


def goals(report: Report) -> None:
    def of(name: str, key: str) -> tuple[float, float]:
        found = report.numbers[name]
        return found["with"][key], found["without"][key]

    shells = [BOX * PIXEL / one for one in of("rigid", "core_angstrom")]
    areas = of("noise", "halves_fsc_area_shells")
    better = all(
        of(name, key)[0] < of(name, key)[1]
        for name in LOOSE
        for key in ("error_median_deg", "core_angstrom")
    )
    met = {
        "core and poses better where a part is disordered": better,
        "rigid molecule no worse by half a shell": shells[0] > shells[1] - 0.5,
        "halves of noise agree no more": areas[0] <= areas[1] + 1e-6,
    }
    for goal, is_met in met.items():
        report.add(f"goal: {goal}", "met" if is_met else "NOT met")


# --- the sets ----------------------------------------------------------------------------------


def made(folder: Path, kind: str, *, n: int, snr: float, seed: int = 1) -> Path:
    """Images of one of `SETS`, the maps they are judged by, and the mean map to start from."""
    if (folder / "truth.star").exists():
        return folder
    print(f"  simulating {folder.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    core = phantom(BOX, PIXEL, symmetry="C1")
    drawn, indices = draw_truth(Recipe(n=n, seed=seed, shift_rms_px=1.5)), torch.arange(n)
    alone = clean_images([core], drawn, indices, PIXEL)
    clean, mean, loose = alone, core, torch.ones_like(core)
    if kind == "noise":
        clean = torch.zeros_like(alone)
    elif kind != "rigid":
        part = Micelle.around(core) if kind == "micelle" else Domain.beside(core)
        clean = clean_images(Varied(core, part, n), replace(drawn, state=indices), indices, PIXEL)
        mean, loose = core + part.mean, part.place * (1 - near(core))
    variance = float(alone.var(dim=(1, 2)).mean())
    amplitude = noise_amplitude(BOX, PIXEL, 0.5) * math.sqrt(variance / snr)
    with StackWriter(folder / "particles.mrcs", PIXEL) as stack:
        stack.append(normalise(clean + noise_images(indices, seed, amplitude)).numpy())
    inside = gaussian_filter(core.numpy(), 1.5) / float(core.max())
    maps = {"core": core, "start": mean, "loose_mask": loose}
    for name, density in (maps | {"core_mask": np.clip((inside - 0.08) / 0.06, 0, 1)}).items():
        halfmap.write_map(folder / f"{name}.mrc", np.asarray(density, np.float32), PIXEL)
    names = [f"{i + 1:06d}@particles.mrcs" for i in range(n)]
    particles, known, optics = particle_tables(drawn, drawn.ctf, names, [(BOX, PIXEL)], PIXEL)
    write_star(folder / "particles.star", {"optics": optics, "particles": particles})
    write_star(
        folder / "truth.star", {"optics": optics, "particles": particles.with_columns(known)}
    )
    return folder


@dataclass(frozen=True)
class Varied(Sequence[torch.Tensor]):
    """One volume per image, made when it is asked for: the core, and a part that each image has in
    its own way."""

    core: torch.Tensor
    part: "Micelle | Domain"
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        if index >= self.n:
            raise IndexError(index)
        return self.core + self.part.of(index)


@dataclass(frozen=True)
class Micelle:
    """A belt around the middle of the core, half as dense as the core in the mean, with random
    density down to 12 A of as large a standard deviation as the core is dense."""

    place: torch.Tensor
    level: float

    @classmethod
    def around(cls, core: torch.Tensor) -> "Micelle":
        x, y, z = _coordinates()
        away = (x**2 + y**2).sqrt()
        belt = _inside(away - 42) * _inside(85 - away) * _inside(22 - z.abs())
        free = 1 - (core / core.max()).clamp(0, 1)
        return cls(belt * free, float(core[core > 0.2 * core.max()].mean()))

    @property
    def mean(self) -> torch.Tensor:
        return self.level * self.place / 2

    def of(self, index: int) -> torch.Tensor:
        noise = torch.randn((BOX,) * 3, generator=torch.Generator().manual_seed(10**6 + index))
        noise = lowpass(noise, 12.0, PIXEL, dimensions=3)
        return self.level * self.place * (0.5 + noise / noise.std())


@dataclass(frozen=True)
class Domain:
    """Gaussian blobs in a ball on the side of the core, turned about the hinge where it is attached,
    by angles of 30 degrees standard deviation about two axes."""

    blobs: torch.Tensor  # (M, 3) x, y, z from the hinge, A
    level: float

    HINGE, RADIUS, SIGMA = (42.0, 0.0, 0.0), 24.0, 4.0

    @classmethod
    def beside(cls, core: torch.Tensor) -> "Domain":
        draw = np.random.default_rng(7)
        points = draw.normal(size=(60, 3))
        points *= (cls.RADIUS * draw.random(60) ** (1 / 3) / np.linalg.norm(points, axis=1))[
            :, None
        ]
        points[:, 0] += cls.RADIUS
        return cls(torch.from_numpy(points), float(core[core > 0.2 * core.max()].mean()))

    @property
    def mean(self) -> torch.Tensor:
        return torch.stack([self.of(-1 - i) for i in range(60)]).mean(0)

    @property
    def place(self) -> torch.Tensor:
        return (self.mean / self.level * 10).clamp(0, 1)

    def of(self, index: int) -> torch.Tensor:
        angles = np.random.default_rng(10**6 + index).normal(size=2) * 30
        turned = halfmap.euler_to_matrix(torch.tensor([[0.0, angles[0], 0.0]]).double())[0]
        turned = halfmap.euler_to_matrix(torch.tensor([[angles[1], 0.0, 0.0]]).double())[0] @ turned
        places = self.blobs @ turned.T + torch.tensor(self.HINGE)
        axis = (torch.arange(BOX) - BOX // 2) * PIXEL
        line = torch.exp(-((axis - places[..., None]) ** 2) / (2 * self.SIGMA**2)).float()
        return self.level * torch.einsum("mz,my,mx->zyx", line[:, 2], line[:, 1], line[:, 0])


def near(core: torch.Tensor) -> torch.Tensor:
    """1 within some 10 A of the core, 0 away from it."""
    held = gaussian_filter(core.numpy(), 1.0) > 0.03 * float(core.max())
    return torch.from_numpy(gaussian_filter(binary_dilation(held, iterations=2).astype("f"), 1.0))


def _coordinates() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axis = (torch.arange(BOX) - BOX // 2) * PIXEL
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return x, y, z


def _inside(distance_angstrom: torch.Tensor) -> torch.Tensor:
    """1 inside, 0 outside, over some 10 A."""
    return torch.sigmoid(distance_angstrom / 3)
