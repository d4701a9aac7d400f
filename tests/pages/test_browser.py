"""The pages in a real browser: what a person would do with them, and what she would see."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfmap
from halfmap.commands._signatures import command_signature
from halfmap.io.mrc import write_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.reports.report import write_report

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: scripts/install_browser.sh installs it"
)
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
PATIENCE = 60_000  # milliseconds, of a machine on which much else runs


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Exception as error:
            pytest.skip(f"chromium does not start here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """A page, with what it complained of and where it went beyond the server."""

    def __init__(self, context: Any, server: Any) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self._server = server
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", self._seen)
        self.page.on("response", self._answered)

    def _seen(self, request: Any) -> None:
        if not request.url.startswith((self._server.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _answered(self, response: Any) -> None:
        """Tell which request a complaint of the browser is about."""
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def open(self, where: str = "") -> Any:
        self.page.goto("about:blank")
        self.page.goto(self._server.address + where)
        return self.page


@pytest.fixture
def visit(chromium, server) -> Iterator[Any]:
    made = []

    def start(at: Any = server, **how: Any) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 850}, **how})
        one = Visit(context, at)
        made.append((context, one))
        return one

    yield start
    for context, one in made:
        context.close()
        assert not one.complaints
        assert not one.elsewhere


def job_line(page: Any, name: str) -> Any:
    return page.locator(f'tr[data-id="{name}"]')


def wait(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Wait until an expression holds on the page. (The page's policy refuses the browser's own way
    to wait, which evaluates text inside it.)"""
    wait(
        lambda: (
            page.evaluate(expression, arg)
            if "=>" in expression[:12]
            else page.evaluate(f"Boolean({expression})")
        )
    )


def leave(page: Any) -> None:
    """Close what is looked at before it is removed: a page that asks for what is gone complains."""
    page.goto("about:blank")


def test_the_list_of_jobs_is_a_tree(visit) -> None:
    page = visit().open()
    job_line(page, "refined").wait_for()
    names = page.locator("tbody tr .name")
    wait(lambda: names.all_inner_texts() == ["particles", "classes", "good.star", "refined"])
    depth = [len(text) for text in page.locator("tbody tr .tree").all_text_contents()]
    assert depth == [0, 2, 4, 6]
    assert "Å" in job_line(page, "refined").inner_text()


def test_keys(visit) -> None:
    page = visit().open()
    job_line(page, "refined").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.id") == "classes"
    page.keyboard.press("Enter")
    page.locator(".tile").first.wait_for()
    assert "job?id=classes" in page.url
    page.keyboard.press("g")
    page.locator(".jobs").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("refi")
    wait(lambda: page.locator(".jobs tbody tr").count() == 1)
    page.keyboard.press("Escape")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1


def test_the_map_is_drawn_turns_and_follows_the_threshold(visit) -> None:
    page = visit().open("#/job?id=refined")
    until(
        page,
        "document.querySelector('.viewer')?.viewer?.drawnFrames() > 0 && document.querySelector('.scale').textContent.includes('triangles')",
    )

    def grey() -> list[int]:
        """How many colours the middle of the canvas shows, and a digest of it."""
        return page.evaluate("""async () => {
          const v = document.querySelector('.viewer'), c = v.querySelector('canvas');
          v.viewer.paint();
          const copy = document.createElement('canvas'); copy.width = 64; copy.height = 64;
          const x = copy.getContext('2d'); x.drawImage(c, 0, 0, 64, 64);
          const d = x.getImageData(0, 0, 64, 64).data, seen = new Set(); let sum = 0;
          for (let i = 0; i < d.length; i += 4) { seen.add(d[i] * 65536 + d[i+1] * 256 + d[i+2]); sum = (sum * 31 + d[i]) % 1000003; }
          return [seen.size, sum]; }""")

    first = grey()
    assert first[0] > 20  # not blank: light and shade
    canvas = page.locator(".viewer canvas").first
    canvas.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    turned = grey()
    assert turned[1] != first[1]
    told = page.locator(".viewer output").first.inner_text()  # read first: the answer may be quick
    page.evaluate("""() => { const s = document.querySelector('.viewer input[type=range]'); s.value = 700;
      s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); }""")
    until(page, "t => document.querySelector('.viewer output').textContent !== t", told)
    assert grey()[1] != turned[1]


def test_a_map_that_turns_without_a_gpu_is_drawn_light_and_in_full_when_it_rests(visit) -> None:
    page = visit().open("#/job?id=refined")
    until(page, "document.querySelector('.scale')?.textContent.includes('triangles')")
    until(page, "document.querySelector('.viewer').viewer.drawnFrames() > 0")
    turning = page.evaluate("""() => {
      const viewer = document.querySelector('.viewer').viewer;
      document.querySelector('.viewer canvas').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
      viewer.paint();
      return viewer.detail(); }""")
    assert turning["turned"]
    assert turning["slow"]  # chromium draws by the CPU here
    until(page, "!document.querySelector('.viewer').viewer.detail().turned")
    until(page, f"document.querySelector('.viewer').viewer.detail().width > {turning['width']}")
    resting = page.evaluate("document.querySelector('.viewer').viewer.detail()")
    told = page.locator(".viewer .scale").inner_text()
    assert f"{resting['triangles']:,.0f} triangles" in told
    assert turning["triangles"] <= min(resting["triangles"], 1.1 * 14_000)


def test_a_lighter_sphere_is_a_sphere(visit) -> None:
    """Of few triangles, on the same radius, with normals that point out."""
    page = visit().open()
    told = page.evaluate("""async () => {
      const { lighter } = await import('./static/js/lighter.js');
      const m = 200, positions = [], normals = [], triangles = [];
      for (let i = 0; i <= m; i += 1) for (let j = 0; j < m; j += 1) {
        const t = (Math.PI * i) / m, p = (2 * Math.PI * j) / m;
        const one = [Math.sin(t) * Math.cos(p), Math.sin(t) * Math.sin(p), Math.cos(t)];
        positions.push(...one.map((v) => 20000 * v), 0);
        normals.push(...one.map((v) => 127 * v), 0);
        if (i === m) continue;
        const [a, b, c, d] = [i * m + j, i * m + ((j + 1) % m), (i + 1) * m + j, (i + 1) * m + ((j + 1) % m)];
        triangles.push(a, c, b, b, c, d);
      }
      const found = lighter({ positions: Int16Array.from(positions), normals: Int8Array.from(normals), triangles: Uint32Array.from(triangles) }, 2000);
      const radii = [], outward = [];
      for (let v = 0; v < found.positions.length; v += 4) {
        const [x, y, z] = found.positions.slice(v, v + 3), [nx, ny, nz] = found.normals.slice(v, v + 3);
        const r = Math.hypot(x, y, z);
        radii.push(r);
        outward.push((x * nx + y * ny + z * nz) / r / 127);
      }
      return [found.triangles.length / 3, Math.min(...radii), Math.max(...radii), Math.min(...outward)]; }""")
    assert 500 < told[0] <= 2200
    assert 18_500 < told[1] <= told[2] < 20_100
    assert told[3] > 0.9


COLOURS = """() => {
  const v = document.querySelector('.viewer'), c = v.querySelector('canvas');
  v.viewer.paint();
  const copy = document.createElement('canvas'); copy.width = 96; copy.height = 96;
  const x = copy.getContext('2d'); x.drawImage(c, 0, 0, 96, 96);
  const d = x.getImageData(0, 0, 96, 96).data; let red = 0, blue = 0;
  for (let i = 0; i < d.length; i += 4) {
    if (d[i + 3] < 128) continue;
    if (d[i] > d[i + 2] + 40) red += 1;
    if (d[i + 2] > d[i] + 40) blue += 1;
  }
  return [red, blue]; }"""


def test_a_surface_is_coloured_by_local_resolution(visit, jobs, serve, tmp_path) -> None:
    """Fine below, coarse above: blue and red on the page, light or heavy, and in the report; plain
    when it is switched off."""
    root = tmp_path.resolve()
    shutil.copytree(jobs / "refined", root / "local")
    volume, pixel = halfmap.read_map(root / "local" / "map.mrc")
    place = np.linspace(4, 9, len(volume))[None, :, None] + 0 * volume
    write_map(root / "local" / "local_resolution.mrc", place.astype(np.float32), pixel)
    write_report(root / "local", command_signature)
    visited = visit(serve(root))
    page = visited.open("#/job?id=local")
    drawn = "document.querySelector('.viewer')?.viewer?.drawnFrames() > 0"
    ready = "document.querySelector('.scale')?.textContent.includes('triangles')"
    for where in ("", f"file://{root / 'local' / 'report.html'}"):
        if where:
            page.goto(where)
        until(page, f"{drawn} && {ready}")
        key = page.locator(".viewer .colours").first
        assert "local resolution" in key.inner_text()
        low, high = (float(t.split()[0]) for t in key.locator("div span").all_inner_texts())
        inside = halfmap.read_map(root / "local" / "mask.mrc")[0] > 0.5
        assert (low, high) == pytest.approx(np.quantile(place[inside], [0.02, 0.98]), abs=0.02)
        red, blue = page.evaluate(COLOURS)
        assert min(red, blue) > 20
        # and of fewer triangles, while it turns
        page.locator(".viewer canvas").first.focus()
        page.keyboard.press("ArrowRight")
        red, blue = page.evaluate(COLOURS)
        assert min(red, blue) > 20
        page.get_by_label("by local resolution").first.uncheck()
        assert page.evaluate(COLOURS)[0] == 0
        assert not key.is_visible()
    visited.elsewhere.clear()  # the file itself


def test_a_command_without_a_folder_is_stopped_by_its_button(visit, serve, tmp_path) -> None:
    root = tmp_path.resolve()
    os.mkfifo(root / "pipe.star")
    server = serve(root)
    values = {"source": "pipe.star", "out": "some.star", "share": "0.5"}
    assert server.post("/api/start", {"command": "select", "values": values})[0] == 200
    page = visit(server).open()
    page.get_by_text("select some.star is at work").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Stop select some.star").click()
    page.get_by_text("select some.star is at work").wait_for(state="detached")
    assert page.locator(".message.bad").count() == 0
    assert not (root / "some.star").exists()


def test_clicking_classes_writes_the_right_particles(visit, jobs) -> None:
    page = visit().open("#/job?id=classes")
    page.locator(".tile").first.wait_for()
    page.locator('.tile[data-class="2"]').click()
    page.locator('.tile[data-class="4"]').click()
    page.locator('.tile[data-class="2"]').click()  # and not
    page.locator('.tile[data-class="1"]').focus()
    page.keyboard.press("Space")
    sizes = [one["size"] for one in json.loads(server_job(page, "classes"))["classes2d"]]
    assert f"2 of 4 classes, {sizes[0] + sizes[3]} of 60" in page.locator(".sticky").inner_text()
    page.get_by_text("Look at ten").click()
    until(page, "document.querySelector('.strip').naturalWidth > 0")
    page.get_by_label("Name of the STAR to write").fill("by_hand.star")
    with page.expect_response(lambda answer: "api/job?id=by_hand" in answer.url):
        page.get_by_text("Write STAR").click()  # and the page of the selection is asked for
    wait(lambda: (jobs / "by_hand.star.json").exists())
    halfmap.select(jobs / "classes", jobs / "by_shell.star", classes=[1, 4])
    assert (jobs / "by_hand.star").read_bytes() == (jobs / "by_shell.star").read_bytes()
    page.wait_for_url("**by_hand.star")
    leave(page)
    for name in ("by_hand", "by_shell"):
        (jobs / f"{name}.star").unlink()
        (jobs / f"{name}.star.json").unlink()


def server_job(page: Any, job: str) -> str:
    return page.evaluate("id => fetch('api/job?id=' + id).then((a) => a.text())", job)


def test_filters_of_classes(visit) -> None:
    page = visit().open("#/job?id=classes")
    page.locator(".tile").first.wait_for()
    table = json.loads(server_job(page, "classes"))["classes2d"]
    least = sorted(one["size"] for one in table)[2]
    page.get_by_label("Particles at least").fill(str(least))
    page.get_by_text("Choose those shown bright").click()
    chosen = page.locator('.tile[aria-pressed="true"]').evaluate_all(
        "t => t.map((x) => +x.dataset.class)"
    )
    assert sorted(chosen) == [one["number"] for one in table if one["size"] >= least]
    page.get_by_label("Order").select_option("resolution")
    order = page.locator(".tile").evaluate_all("t => t.map((x) => +x.dataset.class)")
    best = {one["number"]: one["resolution_angstrom"] or 1e9 for one in table}
    assert [best[k] for k in order] == sorted(best.values())


def test_classes_are_chosen_by_their_likelihood(visit, server) -> None:
    found = server.get("/api/class-likelihoods?id=classes")
    least = sorted(found.values())[-2]
    page = visit().open("#/job?id=classes")
    until(page, "document.querySelectorAll('.tile[title]').length > 1")  # likelihoods are there
    page.get_by_label("Log likelihood at least").fill(repr(least))
    page.get_by_text("Choose those shown bright").click()
    chosen = page.locator('.tile[aria-pressed="true"]').evaluate_all(
        "t => t.map((x) => x.dataset.class)"
    )
    assert sorted(chosen) == sorted(k for k, value in found.items() if value >= least)


def test_a_form_starts_the_job_that_a_shell_would_and_it_is_followed_to_its_end(
    visit, jobs
) -> None:
    page = visit().open(
        "#/new?command=refine&symmetry=C4&particles=good.star&reference=particles/truth_1.mrc"
    )
    page.locator('[data-name="out"] input').fill("by_form")
    page.locator("summary").click()
    page.locator('[data-name="iterations"] input').fill("2")
    page.locator('[data-name="threads"] input').fill("1")
    shell = page.locator("pre[aria-label='The command']")
    until(
        page,
        "document.querySelector('pre[aria-label=\"The command\"]').textContent.includes('--threads=1')",
    )
    words = shell.inner_text().split()
    assert words[:2] == ["halfmap", "refine"]
    page.locator("button[type=submit]").click()
    # the live update: nothing is reloaded
    page.evaluate("window.still = true")
    job_line(page, "by_form").wait_for()
    until(page, "document.querySelector('tr[data-id=by_form] .status')?.textContent === 'finished'")
    assert page.evaluate("window.still")
    words[words.index("--out=by_form")] = "--out=by_shell"
    source = str(Path(halfmap.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run(
        [sys.executable, "-m", "halfmap.cli.main", *words[1:]],
        cwd=jobs,
        env=environment,
        check=True,
    )
    for name in ("map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "particles.star"):
        assert (jobs / "by_form" / name).read_bytes() == (jobs / "by_shell" / name).read_bytes(), (
            name
        )
    leave(page)
    for name in ("by_form", "by_shell"):
        shutil.rmtree(jobs / name)


def test_a_form_says_what_is_wrong_where_it_is_wrong(visit) -> None:
    page = visit().open("#/new?command=class2d&particles=good.star")
    page.locator('[data-name="classes"] input').fill("0")
    page.locator('.field.bad[data-name="classes"] .wrong').wait_for()
    assert "1 or more" in page.locator(".field.bad .wrong").inner_text()
    assert page.locator("button[type=submit]").is_disabled()


def follow(folder: Path, iterations: int, stop: threading.Event) -> None:
    """Write what a job of a node of a cluster writes, and nothing else."""
    record = json.loads((folder / "job.json").read_text())
    record |= {"status": "running", "ended": None, "machine": {"host": "node17"}, "results": {}}
    (folder / "job.json.new").write_text(json.dumps(record))
    (folder / "job.json.new").replace(
        folder / "job.json"
    )  # whole at every moment, as a job does it
    (folder / "events.jsonl").write_text("")
    for iteration in range(1, iterations + 1):
        if stop.wait(0.7):
            return
        event = {
            "iteration": iteration,
            "resolution_angstrom": 30.0 - iteration,
            "class_sizes": [60],
            "seconds": {"search": 1.0},
            "elapsed_seconds": iteration,
        }
        with open(folder / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")


def test_a_job_of_another_machine_is_followed_by_its_files(visit, jobs) -> None:
    shutil.copytree(jobs / "refined", jobs / "node")
    stop = threading.Event()
    page = visit().open("#/job?id=node")
    writer = threading.Thread(target=follow, args=(jobs / "node", 40, stop))
    writer.start()
    try:
        page.get_by_text("refine running").wait_for()
        for resolution in (28.0, 26.0):
            until(
                page, f"parseFloat(document.querySelector('.fact b').textContent) <= {resolution}"
            )
        until(
            page, "document.querySelector('section[aria-label=\"Resolution by iteration\"] canvas')"
        )
    finally:
        stop.set()
        writer.join()
        leave(page)
        shutil.rmtree(jobs / "node")


def test_a_server_that_was_killed_comes_back(visit, jobs, serve, chromium) -> None:
    first = serve(jobs)
    one = visit(first)
    page = one.open()
    page.locator(".live.on").wait_for()
    first.process.kill()
    first.process.wait()
    page.locator(".live.off").wait_for()
    second = serve(jobs, port=first.port)
    page.locator(".live.on").wait_for()
    assert job_line(page, "refined").count() == 1
    assert second.port == first.port
    one.complaints.clear()  # a browser says that it was refused, as it should


def test_a_server_that_only_shows_has_no_buttons_that_change(visit, jobs, serve) -> None:
    visited = visit(serve(jobs, "--read-only"))
    for where, there in (("", ".jobs tbody tr"), ("#/job?id=classes", ".tile")):
        page = visited.open(where)
        page.locator(there).first.wait_for()
        page.locator("html.read-only").wait_for()
        buttons = page.locator("button:visible, a:visible").all_inner_texts()
        assert not {"New job", "Resume", "Write STAR", "Starting map"} & set(buttons)
        assert "Compare" in buttons


def test_names_with_tags_are_shown_as_they_are(visit, jobs) -> None:
    tag = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
    folder = jobs / '"><svg onload=window.hit=1>'
    shutil.copytree(jobs / "refined", folder)
    record = json.loads((folder / "job.json").read_text())
    record["message"] = record["parameters"]["mask"] = record["machine"]["host"] = tag
    record["versions"][tag] = record["results"]["<b>"] = tag
    (folder / "job.json").write_text(json.dumps(record))
    (folder / "a<script>window.hit=1.txt").write_text("text")
    star = (folder / "particles.star").read_text()
    (folder / "particles.star").write_text(
        star.replace("mic00001.mrc", "<img/src=x/onerror=window.hit=1>")
    )
    halfmap_report = folder / "report.html"
    write_report(folder, command_signature)
    visited = visit()
    try:
        from urllib.parse import quote

        page = visited.open()
        job_line(page, folder.name.replace('"', '\\"')).wait_for()
        page = visited.open(f"#/job?id={quote(folder.name)}")
        page.get_by_text(tag).first.wait_for()
        assert page.evaluate("window.hit") is None
        page = visited.open(f"#/particles?id={quote(folder.name)}")
        page.get_by_text("<img/src=x/onerror=window.hit=1>").first.wait_for()
        assert page.evaluate("window.hit") is None
        page.goto(f"file://{quote(str(halfmap_report))}")
        page.locator("h1").wait_for()
        assert page.evaluate("window.hit") is None
        visited.elsewhere.clear()  # the file itself
    finally:
        shutil.rmtree(folder)


def test_the_report_opens_without_a_network(chromium, jobs, server) -> None:
    """From a file, with every other address refused."""
    context = chromium.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    path = jobs / "refined" / "report.html"
    assert path.stat().st_size < 10e6
    page.goto(f"file://{path}")
    page.locator(".viewer canvas").first.wait_for()
    until(page, "document.querySelector('.viewer').viewer.drawnFrames() > 0")
    assert "refined in" not in page.inner_text("body")
    assert "Å at a Fourier shell correlation" in page.inner_text("body").replace(" A at", " Å at")
    assert page.locator(".uplot").count() >= 4
    assert [one for one in asked if not one.startswith(("file:", "data:", "blob:"))] == []
    assert [c for c in complaints if "GPU stall" not in c] == []
    context.close()
    status, headers, body = server.ask("/report?id=refined&chain=1&save=1")
    assert status == 200
    assert "attachment" in headers["content-disposition"]
    assert len(body) < 10e6
    assert body.count(b'"command": "') >= 4  # particles, classes, the selection, the refinement


def test_two_jobs_beside_each_other(visit) -> None:
    page = visit().open("#/compare?a=refined&b=particles")
    until(
        page,
        "document.querySelectorAll('.viewer').length === 2 && [...document.querySelectorAll('.viewer')].every((v) => v.viewer.drawnFrames() > 0)",
    )
    before = page.evaluate("document.querySelectorAll('.viewer')[1].viewer.drawnFrames()")
    page.locator(".viewer canvas").first.focus()
    page.keyboard.press("ArrowLeft")
    until(page, f"document.querySelectorAll('.viewer')[1].viewer.drawnFrames() > {before}")


def test_a_single_particle(visit) -> None:
    page = visit().open("#/particles?id=refined")
    page.get_by_text("best projection").wait_for()
    page.get_by_text("Posterior over viewing directions").wait_for()
    page.get_by_text("is not on this machine's disk").wait_for()  # its micrograph
    for name in ("image", "phases flipped", "CTF"):
        picture = page.locator(f'.looks img[alt="{name}"]')
        wait(lambda picture=picture: picture.evaluate("(i) => i.naturalWidth") > 0)
    page.keyboard.press("j")
    page.get_by_text("Particle 2 of").wait_for()


# what is there once a page has what it asked for
LOADED = {
    "": ".jobs tbody tr",
    "#/job": ".uplot, .tile",
    "#/new": ".field",
    "#/particles": ".looks img",
}


@pytest.mark.parametrize("width", [380, 700])
def test_a_narrow_window_shows_all_without_scrolling_sideways(visit, width) -> None:
    visited = visit(viewport={"width": width, "height": 800})
    for where in (
        "",
        "#/job?id=refined",
        "#/job?id=classes",
        "#/new?command=refine",
        "#/particles?id=refined",
    ):
        page = visited.open(where)
        page.locator(LOADED[where.split("?")[0]]).first.wait_for()
        until(page, "document.readyState === 'complete'")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
        if not where:  # the names are what a list is for
            shown = page.locator(".jobs td.job").evaluate_all("c => c.map((x) => x.clientWidth)")
            assert min(shown) > 100


def test_plots_are_saved_as_tables_and_pictures(visit, jobs, tmp_path) -> None:
    """The table holds the numbers of the STAR; the picture is one."""
    from halfmap.io.star import read_star

    page = visit(accept_downloads=True).open("#/job?id=refined")
    panel = page.locator('section[aria-label="Fourier shell correlation of the half maps"]')
    panel.locator(".uplot").wait_for()
    for kind in ("CSV", "PNG"):
        with page.expect_download() as got:
            panel.get_by_role("button", name=kind).click()
        got.value.save_as(tmp_path / f"curve.{kind}")
    table = read_star(jobs / "refined" / "fsc.star").blocks["fsc"]
    lines = (tmp_path / "curve.CSV").read_text().splitlines()
    column = lines[0].split(",").index("unmasked")
    told = [float(line.split(",")[column]) for line in lines[1:]]
    np.testing.assert_allclose(told, table.floats("rlnFourierShellCorrelationUnmaskedMaps"))
    assert (tmp_path / "curve.PNG").read_bytes().startswith(b"\x89PNG")
    sphere = page.locator('section[aria-label="Viewing directions"]')
    with page.expect_download() as got:
        sphere.get_by_role("button", name="CSV").click()
    got.value.save_as(tmp_path / "views.csv")
    views = [line.split(",") for line in (tmp_path / "views.csv").read_text().splitlines()[1:]]
    assert sum(int(row[2]) for row in views) == 4 * len(
        read_star(jobs / "refined" / "particles.star").blocks["particles"]
    )


SHIFTS = """() => { window.shifts = [];
  new PerformanceObserver((list) => { for (const e of list.getEntries()) window.shifts.push(
    [e.value, ...e.sources.map((s) => s.node?.className || s.node?.nodeName)]); })
    .observe({ type: 'layout-shift' }); }"""


def test_nothing_jumps_when_numbers_arrive(visit, jobs) -> None:
    """As the browser counts it: 0.1 is what a reader begins to notice."""
    shutil.copytree(jobs / "refined", jobs / "steady")
    stop = threading.Event()
    page = visit(viewport={"width": 1280, "height": 1600}).open("#/job?id=steady")
    writer = threading.Thread(target=follow, args=(jobs / "steady", 40, stop))
    writer.start()
    try:
        page.get_by_text("refine running").wait_for()
        until(page, "parseFloat(document.querySelector('.fact b').textContent) <= 28")
        page.locator(".viewer .scale", has_text="triangles").first.wait_for()
        page.evaluate(SHIFTS)
        until(page, "parseFloat(document.querySelector('.fact b').textContent) <= 25")
        shifts = page.evaluate("window.shifts")
        assert sum(one[0] for one in shifts) < 0.1, shifts
    finally:
        stop.set()
        writer.join()
        leave(page)
        shutil.rmtree(jobs / "steady")


@pytest.fixture(scope="module")
def many(tmp_path_factory, jobs) -> Path:
    """200 jobs, and 200 classes in one of them."""
    root = tmp_path_factory.mktemp("many").resolve()
    template = json.loads((jobs / "refined" / "job.json").read_text())
    events = (jobs / "refined" / "events.jsonl").read_text()
    for k in range(200):
        folder = root / f"job{k:03d}"
        folder.mkdir()
        record = dict(
            template,
            parameters={
                **template["parameters"],
                "reference": str(root / f"job{k // 3:03d}" / "map.mrc"),
            },
        )
        (folder / "job.json").write_text(json.dumps(record))
        (folder / "events.jsonl").write_text(events)
    n, rng = 200, np.random.default_rng(1)
    folder = root / "job007"
    write_stack(folder / "classes.mrcs", rng.normal(size=(n, 32, 32)).astype(np.float32), 4.0)
    sizes = np.sort(rng.integers(1, 900, n))[::-1]
    table = {
        "rlnReferenceImage": [f"{k + 1:06d}@classes.mrcs" for k in range(n)],
        "rlnClassDistribution": sizes / sizes.sum(),
        "rlnEstimatedResolution": rng.uniform(5, 30, n),
        "halfmapClassSize": sizes,
    }
    write_star(folder / "classes.star", {"model_classes": Table.from_columns(table)})
    return root


def test_200_jobs_and_200_classes(visit, serve, many) -> None:
    visited = visit(serve(many))
    page = visited.open()
    until(page, "document.querySelectorAll('.jobs tbody tr').length === 200")
    page.keyboard.press("/")
    page.keyboard.type("job19")
    wait(lambda: page.locator(".jobs tbody tr").count() == 10)
    page = visited.open("#/job?id=job007")
    until(page, "document.querySelectorAll('.tile').length === 200")
    page.get_by_label("Resolution at worst").fill("12")
    page.get_by_text("Choose those shown bright").click()
    assert 0 < page.locator('.tile[aria-pressed="true"]').count() < 200
    visited.complaints.clear()  # a job that lacks its particles has no likelihoods


def test_a_client_that_never_reads_and_thousands_of_events(serve, many, tmp_path) -> None:
    """The server goes on answering, and stays small."""
    import socket

    import psutil

    server = serve(many)
    folder = many / "job150"
    sockets = []
    for _ in range(20):
        line = socket.create_connection(("127.0.0.1", server.port))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        sockets.append(line)
    server.get("/api/rows")
    before = psutil.Process(server.process.pid).memory_info().rss
    event = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    for part in range(20):
        with open(folder / "events.jsonl", "a") as file:
            file.write(
                "".join(
                    json.dumps(event | {"iteration": 250 * part + k}) + "\n" for k in range(4, 254)
                )
            )
        time.sleep(0.3)
    told = server.get("/api/job?id=job150")
    assert told["iteration"] == 5003
    assert len(told["series"]["iteration"]) <= 600
    assert server.get("/api/rows")["rows"]
    grown = psutil.Process(server.process.pid).memory_info().rss - before
    assert grown < 80e6
    for line in sockets:
        line.close()
