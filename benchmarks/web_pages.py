"""What the pages of `halfmap web` weigh and how fast they are, in headless chromium on this machine.

    python benchmarks/web_pages.py

prints the table of docs/web.md. Chromium draws without a GPU here (SwiftShader, on the CPU), so that
frames a second are the least that a machine with a screen has.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright
from scipy.ndimage import zoom

import halfmap
from halfmap.io.mrc import read_map, write_map

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
JOBS, PAGES, UPDATES = 200, 20, 12


def make_jobs(root: Path) -> None:
    """One refinement of simulated particles, and enough copies of it; maps of 128^3 and 256^3."""
    quiet: dict[str, Any] = {"quiet": True}
    simulated = root / "particles"
    halfmap.simulate("phantom", simulated, n=200, snr=0.5, box=64, pixel_size_angstrom=3.5, **quiet)
    truth = simulated / "truth_1.mrc"
    done = root / "refined"
    halfmap.refine(simulated / "particles.star", truth, done, symmetry="C4", iterations=5, **quiet)
    volume, _ = read_map(truth)
    rng = np.random.default_rng(1)
    for box in (128, 256):
        folder = root / f"map{box}"
        folder.mkdir()
        large = zoom(volume, box / len(volume), order=3).astype(np.float32)
        noise = rng.normal(0, 0.05 * large.max(), large.shape).astype(np.float32)
        write_map(folder / "map.mrc", large + noise, 3.5 * len(volume) / box)
        shutil.copy(done / "job.json", folder / "job.json")
    for k in range(JOBS - 4):
        folder = root / f"job{k:03d}"
        folder.mkdir()
        for name in ("job.json", "events.jsonl", "map.mrc", "fsc.star"):
            shutil.copy(done / name, folder / name)


def serve(root: Path) -> tuple[subprocess.Popen[str], str]:
    words = [sys.executable, "-m", "halfmap.cli.main", "web", str(root), "--port=0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"(http://\S+)", process.stdout.readline())
    assert found
    return process, found[1]


def until(page: Page, expression: str) -> None:
    while not page.evaluate(f"Boolean({expression})"):
        time.sleep(0.005)


ROWS = "document.querySelectorAll('.jobs tbody tr').length >= "
DRAWN = "document.querySelector('.viewer .scale')?.textContent.includes('triangles')"


def first_views(browser: Any, address: str) -> dict[str, str]:
    told = {}
    for name, where, seen in (
        (f"list of {JOBS} jobs", "", f"{ROWS}{JOBS}"),
        ("a job, its map drawn", "#/job?id=refined", DRAWN),
    ):
        page = browser.new_page()
        weight = 0

        def count(response: Any) -> None:
            nonlocal weight
            weight += int(response.headers.get("content-length") or 0)

        page.on("response", count)
        start = time.monotonic()
        page.goto(address + where)
        until(page, seen)
        seconds = time.monotonic() - start
        page.wait_for_timeout(3000)
        told[f"time to first view, {name}"] = f"{seconds:.2f} s"
        told[f"weight of the page, {name}"] = f"{weight / 1e6:.2f} MB"
        page.close()
    return told


def update_delay(browser: Any, address: str, root: Path) -> dict[str, str]:
    """From the end of writing an event to its number in the text of the page."""
    folder = root / "job000"
    record = json.loads((folder / "job.json").read_text())
    record |= {"status": "running", "results": {}, "machine": {"host": "elsewhere"}}
    (folder / "job.json").write_text(json.dumps(record))
    page = browser.new_page()
    page.goto(f"{address}#/job?id=job000")
    page.get_by_text("refine running").wait_for()
    event = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    delays = []
    for k in range(UPDATES):
        time.sleep(1.0 + 0.13 * k)
        told = 90.0 - k
        with open(folder / "events.jsonl", "a") as file:
            new = event | {"iteration": event["iteration"] + 1 + k, "resolution_angstrom": told}
            file.write(json.dumps(new) + "\n")
        start = time.monotonic()
        until(page, f"document.querySelector('.fact b').textContent === '{told:.1f} Å'")
        delays.append(time.monotonic() - start)
    page.close()
    delays.sort()
    middle = statistics.median(delays)
    return {
        "from an iteration's end to its number on the page": f"{middle:.2f} s, at most {delays[-1]:.2f} s"
    }


def frames(browser: Any, address: str) -> dict[str, str]:
    told = {}
    for box in (128, 256):
        page = browser.new_page(viewport={"width": 1280, "height": 850})
        page.goto(f"{address}#/job?id=map{box}")
        until(page, DRAWN)
        if box > 128:
            page.get_by_label("full detail").check()
            page.wait_for_timeout(500)
            until(page, DRAWN)
        page.wait_for_timeout(2000)
        start = time.monotonic()
        got = page.evaluate("document.querySelector('.viewer').viewer.frames(4000)")
        assert time.monotonic() - start > 3
        text = page.locator(".viewer .scale").inner_text()
        triangles = text.split("·")[-1].strip()
        told[f"frames a second at {box}^3 while it turns, without a GPU"] = (
            f"{got['rate']:.1f} (of {triangles}, {got['triangles']:,.0f} while it turns)"
        )
        told[f"one picture at {box}^3 when it rests, without a GPU"] = f"{got['rest'] / 1e3:.2f} s"
        page.close()
    return told


def memory(browser: Any, address: str, process: subprocess.Popen[str]) -> dict[str, str]:
    pages = [browser.new_page() for _ in range(PAGES)]
    for k, page in enumerate(pages):
        page.goto(address + ("" if k % 2 else "#/job?id=refined"))
    for page in pages:
        page.locator(".live.on").wait_for()
    time.sleep(3)
    own = psutil.Process(process.pid)
    worker = sum(one.memory_info().rss for one in own.children(recursive=True))
    server = own.memory_info().rss
    for page in pages:
        page.close()
    return {
        f"memory of the server, {JOBS} jobs and {PAGES} open pages": f"{server / 1e6:.0f} MB",
        "memory of its workers, while pictures are asked for": f"{worker / 1e6:.0f} MB",
    }


def reports(address: str, root: Path) -> dict[str, str]:
    import urllib.request

    chain = urllib.request.urlopen(f"{address}report?id=refined&chain=1").read()
    alone = (root / "refined" / "report.html").stat().st_size
    return {
        "weight of report.html of a refinement": f"{alone / 1e6:.2f} MB",
        "weight of the report of its chain": f"{len(chain) / 1e6:.2f} MB",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        root = Path(folder).resolve()
        make_jobs(root)
        process, address = serve(root)
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            told = first_views(browser, address)
            told |= update_delay(browser, address, root)
            told |= frames(browser, address)
            told |= reports(address, root)
            told |= memory(browser, address, process)
        finally:
            browser.close()
            process.terminate()
            process.wait()
    print("| what | measured |\n|---|---|")
    for name, value in told.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
