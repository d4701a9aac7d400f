"""A folder of jobs as commands leave them, and a server of it in a process of its own."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import halfmap


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """particles -> classes -> a selection -> refined, small."""
    root = tmp_path_factory.mktemp("jobs").resolve()
    how: dict[str, Any] = {"quiet": True}
    halfmap.simulate(
        "phantom", root / "particles", n=60, snr=1.0, box=24, pixel_size_angstrom=8.0, **how
    )
    star = root / "particles" / "particles.star"
    halfmap.class2d(star, root / "classes", classes=4, iterations=3, threads=1, **how)
    halfmap.select(root / "classes", root / "good.star", classes=[1, 2, 3])
    truth = root / "particles" / "truth_1.mrc"
    halfmap.refine(
        root / "good.star", truth, root / "refined", symmetry="C4", iterations=3, threads=1, **how
    )
    return root


class Served:
    """A server at work: its address, and a way to ask it without a browser's good manners."""

    def __init__(self, process: subprocess.Popen[str], port: int, token: str, prefix: str) -> None:
        self.process, self.port, self.token, self.prefix = process, port, token, prefix
        self.address = f"http://127.0.0.1:{port}{prefix}/"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; the path is sent exactly as it is."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = (
            None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        line.putrequest(method, path, skip_host="host" in {n.lower() for n in headers or {}})
        given = dict(headers or {})
        if sent is not None:
            given.setdefault("Content-Type", "application/json")
            given.setdefault("Content-Length", str(len(sent)))
        for name, value in given.items():
            line.putheader(name, value)
        line.endheaders(sent)
        answer = line.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        content = answer.read()
        line.close()
        return answer.status, told, content

    def get(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, content = self.ask(
            path, method="POST", body=body, headers={"X-Halfmap": "1", **headers}
        )
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Served]]:
    """Start `halfmap web FOLDER OPTIONS`; all are ended with the tests."""
    running: list[Served] = []

    def start(folder: Path, *options: str, port: int = 0) -> Served:
        words = [
            sys.executable,
            "-m",
            "halfmap.cli.main",
            "web",
            str(folder),
            f"--port={port}",
            *options,
        ]
        source = str(Path(halfmap.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": source,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"at http://[^/]*:(\d+)(/\S*?)?/(?:\?token=(\S+))?$", line.strip())
        assert found, line
        one = Served(process, int(found[1]), found[3] or "", found[2] or "")
        running.append(one)
        return one

    yield start
    for one in running:
        one.process.terminate()
        one.process.wait(20)
        if one.process.stdout:
            one.process.stdout.close()


@pytest.fixture(scope="session")
def server(jobs: Path, serve: Callable[..., Served]) -> Served:
    return serve(jobs)
