"""The pictures of docs/web.md: every page of a small project in chromium, light, dark and narrow.

    python benchmarks/web_pictures.py [--project DIR] [--out docs/figures]

makes the project (simulated particles on simulated micrographs, a few minutes of CPU), serves it and
writes `web_PAGE.png`, and all pages dark and narrow in one picture each.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy.ndimage import gaussian_filter

import halfmap
from halfmap.io.mrc import write_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.particles import load_particles
from halfmap.simulation.phantom import phantom

sys.path.insert(0, str(Path(__file__).parent))
from web_pages import FLAGS, serve

PIXEL, BOX = 3.0, 64
HEIGHT, WIDTH, SPACING = 1500, 2000, 150  # of a micrograph, and between its particles
WIDE, NARROW = {"width": 1280, "height": 850}, {"width": 400, "height": 850}
DARK_WIDTH, NARROW_WIDTH = 480, 250  # of a page in the pictures of all pages
COLOURS = 200
TILT_MRAD, ASTIGMATISM_ANGSTROM = 3.0, 600.0  # told to ctfrefine, and not so
FLOPPY_PX, NOISE = 2.2, 1.5  # deviation of a blur; of noise, in deviations of the map
# page, what is opened, what is there when it is ready
PAGES = {
    "jobs": ("", ".jobs tbody tr:nth-child(8)"),
    "job": ("#/job?id=5_refined", "section[aria-label='Viewing directions']"),
    "sharpened": ("#/job?id=7_sharpened", ".uplot"),
    "local": ("#/job?id=10_floppy", ".viewer .colours"),
    "ctf": ("#/job?id=9_ctf", ".uplot"),
    "classes": ("#/job?id=2_classes", ".tiles[data-painted]"),
    "particle": ("#/particles?id=5_refined", "canvas.micrograph[data-drawn]"),
    "micrograph": ("#/particles?id=5_refined", "canvas.micrograph[data-drawn]"),
    "form": (
        "#/new?command=class3d&particles=3_good.star&reference=5_refined/map.mrc&classes=3",
        ".field",
    ),
    "compare": ("#/compare?a=4_initial&b=5_refined", ".uplot"),
    "report": ("report?id=5_refined&chain=1", ".uplot"),
}
WORDS = {"particle": "Spread over", "micrograph": "Spread over"}  # what comes last
PICTURES_THERE = (
    "[...document.querySelectorAll('img')].every((i) => i.complete || "
    "i.getBoundingClientRect().top > innerHeight)"
)
SCROLLED = {"sharpened": ".uplot", "ctf": "h2:text('Pictures')", "micrograph": "canvas.micrograph"}


def make_project(root: Path) -> None:
    quiet: dict[str, Any] = {"quiet": True}
    first = root / "1_particles"
    halfmap.simulate("phantom", first, n=400, snr=0.15, box=BOX, pixel_size_angstrom=PIXEL, **quiet)
    pick(root, first / "particles.star")
    halfmap.class2d(
        first / "particles.star", root / "2_classes", classes=16, iterations=12, **quiet
    )
    halfmap.select(root / "2_classes", root / "3_good.star", resolved_within=2.0)
    good = root / "3_good.star"
    halfmap.abinitio(good, root / "4_initial", symmetry="C4", **quiet)
    start = root / "4_initial" / "map.mrc"
    halfmap.refine(good, start, root / "5_refined", symmetry="C4", **quiet)
    halfmap.mask(root / "5_refined", root / "6_mask.mrc")
    halfmap.postprocess(root / "5_refined", root / "7_sharpened", mask=root / "6_mask.mrc", **quiet)
    halfmap.localres(root / "5_refined", root / "8_local", mask=root / "6_mask.mrc", **quiet)
    refine_ctf(root)
    make_floppy(root)


def refine_ctf(root: Path) -> None:
    """The refined particles, told a beam tilt and an astigmatism that they have not, and their
    transfer functions refined."""
    refined = root / "5_refined" / "particles.star"
    particles = load_particles(refined)
    right, one = particles.transfer, np.ones(len(particles))
    wrong = replace(
        right,
        beam_tilt_x_mrad=TILT_MRAD * one,
        defocus_u_angstrom=right.defocus_u_angstrom + ASTIGMATISM_ANGSTROM / 2,
        defocus_v_angstrom=right.defocus_v_angstrom - ASTIGMATISM_ANGSTROM / 2,
    )
    particles.with_transfer(wrong).write_star(refined.with_name("tilted.star"))
    halfmap.ctfrefine(
        refined.with_name("tilted.star"),
        root / "9_ctf",
        symmetry="C4",
        beam_tilt=True,
        astigmatism=True,
        quiet=True,
    )


def make_floppy(root: Path) -> None:
    """Half maps of the phantom with noise, one end of it blurred as a floppy end is, and their local
    resolution."""
    box, pixel, sharpest = 96, 1.6, phantom(96, 1.6, symmetry="C4").numpy()
    y = np.arange(box)[None, :, None] - box // 2
    share = 1 / (1 + np.exp(-y / (box / 12)))  # blurred from the middle on
    blurred = gaussian_filter(sharpest, FLOPPY_PX)
    rng = np.random.default_rng(1)
    (root / "halves").mkdir(exist_ok=True)
    halves = [root / "halves" / f"half{k}.mrc" for k in (1, 2)]
    for path in halves:
        noise = gaussian_filter(rng.normal(size=sharpest.shape), 0.7) * NOISE * sharpest.std()
        volume = (1 - share) * sharpest + share * blurred + noise
        write_map(path, volume.astype(np.float32), pixel)
    halfmap.localres(halves, root / "10_floppy", quiet=True)


def pick(root: Path, star: Path) -> None:
    """Lay the particles on micrographs of noise, as if they had been picked there."""
    particles, rng = load_particles(star), np.random.default_rng(1)
    x, y = np.zeros((2, len(particles)))
    names = particles.table.strings("rlnMicrographName").astype(object)
    grid = np.stack(np.mgrid[90 : HEIGHT - 90 : SPACING, 90 : WIDTH - 90 : SPACING]).reshape(2, -1)
    (root / "micrographs").mkdir()
    for number in np.unique(particles.micrograph):
        rows = np.flatnonzero(particles.micrograph == number)
        whole = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
        places = grid[:, rng.permutation(grid.shape[1])[: len(rows)]]
        places = places + rng.integers(-40, 41, places.shape)
        half = BOX // 2
        for row, (cy, cx), image in zip(rows, places.T, particles.images(rows), strict=True):
            whole[cy - half : cy + half, cx - half : cx + half] = image
            x[row], y[row] = cx, cy
        path = root / "micrographs" / str(names[rows[0]])
        ice = 60 * gaussian_filter(rng.normal(size=whole.shape), 150)
        write_stack(path, (gaussian_filter(whole, 1.2) + ice)[None].astype(np.float32), PIXEL)
        names[rows] = f"micrographs/{path.name}"
    blocks = read_star(star).blocks
    columns = {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnMicrographName": names.astype(str)}
    write_star(star, {**blocks, "particles": blocks["particles"].with_columns(columns)})


def photograph(browser: Any, address: str, folder: Path, look: str) -> list[Path]:
    size, scheme = (NARROW if look == "narrow" else WIDE), ("dark" if look == "dark" else "light")
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(180_000)
    made = []
    for name, (where, ready) in PAGES.items():
        page.goto("about:blank")
        page.goto(address + where)
        page.locator(ready).first.wait_for(state="attached")
        if name in ("job", "sharpened", "compare", "local"):
            page.locator(".viewer .scale", has_text="triangles").first.wait_for()
        until(page, PICTURES_THERE)
        if name in WORDS:
            page.get_by_text(WORDS[name]).first.wait_for()
        page.wait_for_timeout(4000)  # a map at rest
        if name in SCROLLED:
            page.locator(SCROLLED[name]).first.evaluate(
                "e => e.scrollIntoView({ block: 'center' })"
            )
            page.wait_for_timeout(500)
        made.append(folder / f"{look}_{name}.png")
        page.screenshot(path=str(made[-1]))
    context.close()
    return made


def until(page: Any, expression: str) -> None:
    """The page's policy refuses playwright's own way to wait for an expression."""
    while not page.evaluate(expression):
        page.wait_for_timeout(300)


def keep(picture: Image.Image, path: Path) -> None:
    # few colours, the rare ones among them
    rgb = picture.convert("RGB")
    method, none = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    few = rgb.quantize(COLOURS, method, kmeans=2, dither=none)
    few.save(path, optimize=True)


def sheet(pictures: list[Path], width: int, columns: int) -> Image.Image:
    tiles = [Image.open(one).convert("RGB") for one in pictures]
    tiles = [
        t.resize((width, round(t.height * width / t.width)), Image.Resampling.LANCZOS)
        for t in tiles
    ]
    height, gap = max(t.height for t in tiles), 8
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * (width + gap), rows * (height + gap)), (128, 128, 128))
    for k, tile in enumerate(tiles):
        row, column = divmod(k, columns)
        whole.paste(tile, (column * (width + gap), row * (height + gap)))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--project", type=Path, help="a project made before, or where to make one")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as play:
        root = (asked.project or Path(temporary) / "project").resolve()
        if not (root / "10_floppy").exists():
            root.mkdir(parents=True, exist_ok=True)
            make_project(root)
        process, address = serve(root)
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            folder = Path(temporary)
            for one in photograph(browser, address, folder, "light"):
                keep(Image.open(one), asked.out / one.name.replace("light_", "web_"))
            keep(
                sheet(photograph(browser, address, folder, "dark"), DARK_WIDTH, 3),
                asked.out / "web_dark.png",
            )
            keep(
                sheet(photograph(browser, address, folder, "narrow"), NARROW_WIDTH, 5),
                asked.out / "web_narrow.png",
            )
        finally:
            browser.close()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
