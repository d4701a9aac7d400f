"""Nothing leaves the folder, nothing changes but from the server's own pages, nobody comes in
without the token: attacks, tried on a server as it runs."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import quote

import pytest

import halfmap
from halfmap.reports.job_data import MOST_EVENT_BYTES
from halfmap.reports.jobs import MOST_RECORD_BYTES

OUTSIDE = [
    "../secret.txt",
    "..",
    "/etc/passwd",
    "//etc/passwd",
    "refined/../../secret.txt",
    "refined/./../../secret.txt",
    "..\\secret.txt",
    "refined\\..\\..\\secret.txt",
    "~/secret.txt",
    "refined/\0",
    "leads_out",
    "leads_out/secret.txt",
    ".hidden",
    ".halfmap",
    "",
    "%2e%2e/secret.txt",
    "..%2fsecret.txt",
    "%252e%252e%252fsecret.txt",
    "refined/..;/secret.txt",
    "．．/secret.txt",
]
ASKED = [
    "api/job?id={}",
    "api/file?id=refined&name={}",
    "api/surface?id=refined&file={}",
    "api/picture?id=refined&name={}",
    "api/surface?id=refined&file=map.mrc&colour={}",
    "api/slice?id={}&file=map.mrc",
    "api/thumbnail?id={}",
    "report?id={}",
    "api/particles?id={}",
    "api/directions?id={}",
]


@pytest.fixture(scope="module")
def outside(jobs: Path):
    """A secret beside the folder, and links in it that lead there."""
    beside = jobs.parent
    (beside / "secret.txt").write_text("SECRET")
    other = beside / "other_job"
    if not other.exists():
        shutil.copytree(jobs / "refined", other)
    (jobs / "leads_out").symlink_to(beside)
    (jobs / "link.mrc").symlink_to(other / "map.mrc")
    (jobs / "refined" / "stolen.txt").symlink_to(beside / "secret.txt")
    (jobs / "refined" / "stolen.mrc").symlink_to(other / "map.mrc")
    (jobs / "refined" / "stolen.png").symlink_to(beside / "secret.txt")
    yield beside
    for name in (
        "leads_out",
        "link.mrc",
        "refined/stolen.txt",
        "refined/stolen.mrc",
        "refined/stolen.png",
    ):
        (jobs / name).unlink()


@pytest.mark.parametrize("asked", ASKED)
def test_no_path_leaves_the_folder(server, outside, asked) -> None:
    tried = [
        *OUTSIDE,
        "../other_job",
        "leads_out/other_job",
        str(outside / "other_job"),
        "stolen.txt",
        "stolen.mrc",
        "stolen.png",
    ]
    for path in tried:
        for way in (quote(path, safe=""), quote(path), quote(quote(path, safe=""), safe="")):
            status, _, body = server.ask("/" + asked.format(way))
            assert status >= 400, (path, body[:200])
            assert b"SECRET" not in body
            assert b"root:" not in body


def test_what_lies_inside_is_given(server, jobs) -> None:
    """The test above would pass on a server that gives nothing."""
    for asked in ASKED:
        name = {"api/file": "job.json", "api/surface": "map.mrc", "api/picture": "pictures/map.png"}
        job = name.get(asked.split("?")[0], "refined")
        assert server.ask("/" + asked.format(job))[0] == 200, asked
    _, headers, body = server.ask("/api/file?id=refined&name=job.json")
    assert body == (jobs / "refined" / "job.json").read_bytes()
    assert headers["content-disposition"].startswith("attachment")


def test_raw_paths_do_not_leave_the_static_files(server) -> None:
    for path in (
        "/static/../../jobs.py",
        "/static/..%2f..%2fjobs.py",
        "/static//etc/passwd",
        "/../secret.txt",
        "/static/%2e%2e/jobs.py",
        "/static/js/%2e%2e%2f%2e%2e%2f..%2fjobs.py",
        "/static/js",
    ):
        assert server.ask(path)[0] >= 400
    assert server.ask("/static/js/main.js")[0] == 200


CHANGES = {
    "/api/start": {
        "command": "simulate",
        "values": {"source": "phantom", "out": "new", "n": "4", "snr": "1"},
    },
    "/api/stop": {"id": "refined"},
    "/api/resume": {"id": "refined"},
    "/api/select": {"id": "classes", "classes": [1], "out": "chosen.star"},
}


@pytest.mark.parametrize("path", CHANGES)
def test_nothing_changes_on_get_or_from_another_site(server, jobs, path) -> None:
    before = sorted(p.name for p in jobs.iterdir())
    own = {"X-Halfmap": "1"}
    assert server.ask(path)[0] == 405
    assert server.ask(path, method="HEAD")[0] == 405
    body = CHANGES[path]
    for headers in (
        {},  # what a form of any site can send
        {"Content-Type": "text/plain"},
        {**own, "Origin": "http://evil.example"},
        {**own, "Origin": "null"},
        {**own, "Origin": "https://127.0.0.1:1"},
        {**own, "Sec-Fetch-Site": "cross-site"},
        {**own, "Sec-Fetch-Site": "same-site"},
    ):
        assert server.ask(path, method="POST", body=body, headers=headers)[0] == 403, headers
    assert (
        server.ask(path, method="POST", body=body, headers={**own, "Content-Type": "text/plain"})[0]
        == 400
    )
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert server.ask(path, method=method, headers=own)[0] in (403, 405)
    assert sorted(p.name for p in jobs.iterdir()) == before


def test_other_sites_may_not_read_either(server) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert server.ask("/api/rows", headers=headers)[0] == 403
    opened = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert server.ask("/", headers=opened)[0] == 200  # a link in a mail may be followed
    framed = {**opened, "Sec-Fetch-Dest": "iframe"}
    assert server.ask("/", headers=framed)[0] == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1", "localhost.evil"],
)
def test_another_host_name_is_refused(server, host) -> None:
    assert server.ask("/api/rows", headers={"Host": host})[0] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "[::1]:8765", "LOCALHOST:1"])
def test_this_machine_by_any_name_and_port_is_answered(server, host) -> None:
    """A tunnel ends at another port than the server listens at."""
    assert server.ask("/api/rows", headers={"Host": host})[0] == 200


def test_headers_of_every_answer(server) -> None:
    for path in ("/", "/api/rows", "/static/js/main.js", "/api/job?id=..", "/nothing"):
        _, headers, _ = server.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    _, headers, _body = server.ask("/report?id=refined")
    policy = headers["content-security-policy"]
    script = policy.split("script-src")[1].split(";")[0]
    assert "unsafe" not in script
    assert "sandbox" in policy
    assert "allow-same-origin" not in policy


def test_a_body_without_end_is_cut_off(server) -> None:
    own = {"X-Halfmap": "1"}
    large = b'{"command": "' + b"a" * (2 << 20) + b'"}'
    assert server.ask("/api/start", method="POST", body=large, headers=own)[0] == 413
    for body in (b"", b"[]", b"{", b"\xff\xfe", b"null", json.dumps({"command": "rm"}).encode()):
        assert server.ask("/api/start", method="POST", body=body, headers=own)[0] == 400


def test_another_address_needs_the_token(jobs, serve) -> None:
    one = serve(jobs, "--host=0.0.0.0")
    assert len(one.token) > 30
    assert one.ask("/api/rows")[0] == 401
    assert one.ask("/")[0] == 401
    for wrong in (one.token[:-1], one.token + "x", one.token.swapcase(), "", "ü"):
        assert one.ask(f"/?token={quote(wrong)}")[0] == 401
        assert one.ask("/api/rows", headers={"Cookie": f"halfmap_token={quote(wrong)}"})[0] == 401
        assert one.ask("/api/rows", headers={"Authorization": f"Bearer {quote(wrong)}"})[0] == 401
    assert one.ask("/api/rows", headers={"Cookie": 'halfmap_token="; a=[]{}'})[0] == 401
    status, headers, _ = one.ask(f"/?token={one.token}")
    assert status == 303
    assert one.token not in headers["location"]
    cookie = headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert one.ask("/api/rows", headers={"Cookie": cookie.split(";")[0]})[0] == 200
    assert one.ask("/api/rows", headers={"Authorization": f"Bearer {one.token}"})[0] == 200
    assert (
        one.ask(
            "/api/rows", headers={"Authorization": f"Bearer {one.token}", "Host": "evil.example"}
        )[0]
        == 421
    )


def test_a_form_cannot_make_an_option_of_a_value_or_write_outside(server, jobs) -> None:
    def start(command: str, **values: object) -> tuple[int, object]:
        return server.post("/api/start", {"command": command, "values": values})

    base = {"source": "phantom", "n": "4", "box": "16", "snr": "1"}
    for out in (
        "../new",
        "/tmp/halfmap_attack",
        "a/../../new",
        ".hidden",
        "",
        "new\0",
        str(jobs.parent / "new"),
    ):
        status, told = start("simulate", **base, out=out)
        assert status == 400, (out, told)
    assert start("simulate", **base, out="new", nonsense="1")[0] == 400
    assert start("simulate", **base, out="new", resume=True)[0] == 400
    assert start("os.system", out="new")[0] == 400
    assert start("web", out="new")[0] == 400
    assert not (jobs.parent / "new").exists()
    assert not Path("/tmp/halfmap_attack").exists()
    status, told = server.post(
        "/api/estimate",
        {
            "command": "simulate",
            "values": {**base, "source": "--overwrite; touch x", "out": "--help"},
        },
    )
    words = told["shell"]
    assert "--out=--help" in words
    assert words.endswith("-- '--overwrite;' touch x")


def test_read_only_starts_nothing(jobs, serve) -> None:
    one = serve(jobs, "--read-only")
    for path, body in CHANGES.items():
        status, told = one.post(path, body)
        assert status == 400
        assert "only shows" in told["error"]
    assert not (jobs / "chosen.star").exists()


def test_a_server_behind_a_prefix(jobs, serve) -> None:
    one = serve(jobs, "--root-path=/user/me")
    for path in ("/user/me/", "/user/me/api/rows", "/api/rows", "/user/me/static/js/main.js"):
        assert one.ask(path)[0] == 200
    assert one.ask("/user/me/user/me/api/rows")[0] == 404
    assert one.ask("/user/menace/api/rows")[0] == 404


def test_a_folder_that_is_removed_and_files_that_are_broken(jobs, server, tmp_path) -> None:
    gone = jobs / "gone"
    shutil.copytree(jobs / "refined", gone, symlinks=True)
    assert "gone" in [row["id"] for row in server.get("/api/rows")["rows"]]
    (gone / "map.mrc").write_bytes(b"no map")
    (gone / "fsc.star").write_text("data_\nloop_\n_a\n")
    (gone / "particles.star").write_bytes(os.urandom(1000))
    (gone / "events.jsonl").write_text('{"iteration": 1}\n{"iteration": 2, "class_si')
    for path in ("job", "surface", "slice", "directions", "particles", "thumbnail"):
        assert server.ask(f"/api/{path}?id=gone&file=map.mrc")[0] in (200, 400, 404)
    assert server.get("/api/job?id=gone")["iteration"] == 1
    (gone / "job.json").write_text("{")
    assert server.ask("/api/job?id=gone")[0] == 400
    shutil.rmtree(gone)
    assert server.ask("/api/job?id=gone")[0] == 400
    assert "gone" not in [row["id"] for row in server.get("/api/rows")["rows"]]


def test_commands_of_forms_are_those_of_the_package() -> None:
    from halfmap.pages.forms import NO_FORM, commands, form

    assert {*commands(), *NO_FORM} == set(halfmap._COMMANDS)
    for name in commands():
        assert form(name)["options"]


def test_connections_that_ask_for_nothing_do_not_take_them_all(server) -> None:
    """More than the server holds at once, silent or with half a request: others are answered."""
    lines = []
    for k in range(520):
        line = socket.create_connection(("127.0.0.1", server.port))
        line.sendall(b"GET / HTTP/1.1\r\nHost: loc" if k % 2 else b"")
        lines.append(line)
    end = time.monotonic() + 90
    while server.ask("/api/rows")[0] != 200:  # 503 until the first of them are closed
        assert time.monotonic() < end
        time.sleep(1)
    for line in lines:
        line.close()


def test_files_that_have_grown_beyond_measure_are_read_in_part(jobs, server, tmp_path) -> None:
    folder = jobs / "grown"
    shutil.copytree(jobs / "refined", folder)
    try:
        last = (folder / "events.jsonl").read_text().splitlines()[-1]
        with open(folder / "events.jsonl", "a") as file:
            for _ in range(60):
                file.write("".join(f"{last}\n" for _ in range(1000)))
            file.write(json.dumps(json.loads(last) | {"iteration": 77, "class_sizes": [1]}) + "\n")
        assert (folder / "events.jsonl").stat().st_size > 2 * MOST_EVENT_BYTES
        (folder / "messages.txt").write_text("word\n" * 1_000_000 + "the end\n")
        told = server.get("/api/job?id=grown")
        assert told["iteration"] == 77
        assert told["messages"][-1] == "the end"
        assert len(told["messages"]) == 300
        assert 1 < len(told["series"]["iteration"]) <= 600
        (folder / "job.json").write_text(" " * (MOST_RECORD_BYTES + 1) + "{}")
        assert server.ask("/api/job?id=grown")[0] == 400
        assert server.ask("/api/rows")[0] == 200
    finally:
        shutil.rmtree(folder)
