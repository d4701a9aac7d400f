"""The routes of the server: pages, what they ask for, and what they may do."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from halfmap.commands._signatures import command_signature
from halfmap.errors import InputError
from halfmap.pages import forms
from halfmap.pages.processes import Processes
from halfmap.pages.safety import Gate, inside, within_new
from halfmap.pages.watch import Watch
from halfmap.pages.workers import Workers
from halfmap.reports.job_data import job_data
from halfmap.reports.jobs import job_record
from halfmap.reports.report import STATIC, report_policy

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
LARGEST_SURFACE = 320  # box: beyond, triangles outnumber the pixels of a screen
_FOR_A_DAY = "private, max-age=86400"


class Server:
    """What the routes share: the folder, its watch, the worker and the jobs started here."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root, self.read_only = root, read_only
        self.processes = Processes(root)
        self.watch = Watch(root, self.processes.told)
        self.workers = Workers()
        self.torch_workers = Workers()  # what loads torch takes seconds, and must not be waited for

    # --- what is asked for with GET: nothing changes

    async def page(self, request: Request) -> Response:
        return self._static("index.html")

    async def static(self, request: Request) -> Response:
        return self._static(request.path_params["path"])

    def _static(self, name: str) -> Response:
        path = inside(STATIC.resolve(), name)
        if path.suffix not in KINDS or not path.is_file():
            raise InputError("no such file")
        return FileResponse(
            path, media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"}
        )

    async def events(self, request: Request) -> Response:
        return StreamingResponse(
            self.watch.follow(),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no"},
        )

    async def rows(self, request: Request) -> Response:
        await asyncio.to_thread(self.watch.look, search=True)
        rows = list(self.watch.rows.values())
        return JSONResponse({"rows": rows, "root": str(self.root), "read_only": self.read_only})

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        return JSONResponse(await asyncio.to_thread(job_data, self.root, job, command_signature))

    async def directions(self, request: Request) -> Response:
        job = self._job(request)
        symmetry = job_record(self.root, job)["parameters"].get("symmetry") or "C1"
        found = await self.torch_workers.run(
            "pages.pictures:directions_of", str(self.root / job), symmetry
        )
        return JSONResponse(found)

    async def thumbnail(self, request: Request) -> Response:
        job = self._job(request)
        return _png(await self.workers.run("pages.pictures:thumbnail", str(self.root / job)))

    async def surface(self, request: Request) -> Response:
        level = _number(request, "level", None)
        size = int(_number(request, "size", 128) or 128)
        body = await self.workers.run(
            "pages.pictures:surface",
            str(self._map(request)),
            self._class(request),
            level,
            max(16, min(size, LARGEST_SURFACE)),
        )
        return Response(body, media_type="application/octet-stream")

    async def slice(self, request: Request) -> Response:
        axis, at = int(_number(request, "axis", 0) or 0), _number(request, "at", 0.5) or 0.0
        path, index = str(self._map(request)), self._class(request)
        return _png(await self.workers.run("pages.pictures:slice_png", path, index, axis % 3, at))

    async def projection(self, request: Request) -> Response:
        axis = int(_number(request, "axis", 0) or 0)
        path, index = str(self._map(request)), self._class(request)
        return _png(await self.workers.run("pages.pictures:projection_png", path, index, axis % 3))

    async def classes(self, request: Request) -> Response:
        path = inside(self.root, f"{self._job(request)}/classes.mrcs")
        return _png(await self.workers.run("pages.pictures:classes_png", str(path)))

    async def some_particles(self, request: Request) -> Response:
        job = self._job(request)
        chosen = [int(k) for k in request.query_params.get("classes", "").split(",") if k]
        path = self._particles(job)
        return _png(await self.workers.run("pages.selection:some_particles_png", str(path), chosen))

    async def particles(self, request: Request) -> Response:
        path = self._particles(self._job(request))
        first = int(_number(request, "first", 0) or 0)
        sort = request.query_params.get("sort", "")
        only = int(_number(request, "class", 0) or 0)
        found = await self.workers.run(
            "pages.selection:particle_rows", str(path), first, sort, only
        )
        return JSONResponse(found)

    async def particle(self, request: Request) -> Response:
        job, index = self._job(request), int(_number(request, "index", 0) or 0)
        part = "particle_posterior" if "posterior" in request.query_params else "particle"
        told = await self.torch_workers.run(f"pages.particle:{part}", str(self.root / job), index)
        return JSONResponse(told)

    async def class_likelihoods(self, request: Request) -> Response:
        job = self._job(request)
        if not (self.root / job / "particles.star").exists():
            return JSONResponse({})
        path = self._particles(job)
        return JSONResponse(await self.workers.run("pages.selection:class_likelihoods", str(path)))

    async def picture(self, request: Request) -> Response:
        path = inside(self.root, f"{self._job(request)}/{request.query_params.get('name', '')}")
        if path.suffix != ".png" or not path.is_file():
            raise InputError("no such picture")
        return FileResponse(path, media_type="image/png")

    async def file(self, request: Request) -> Response:
        job, name = self._job(request), request.query_params.get("name", "")
        of_selection = (self.root / job).is_file()
        path = inside(self.root, job if of_selection else f"{job}/{name}")
        if not path.is_file():
            raise InputError("no such file")
        # never opened by the browser: what lies in a folder may be anybody's
        return FileResponse(
            path, media_type="application/octet-stream", filename=path.name, stat_result=path.stat()
        )

    async def report(self, request: Request) -> Response:
        job = self._job(request)
        chain = "chain" in request.query_params
        page = await self.torch_workers.run(
            "reports.report:report_page", self.root, job, command_signature, chain
        )
        name = f"{(self.root / job).name}_{'chain' if chain else 'report'}.html"
        headers = {"content-security-policy": report_policy()}
        if "save" in request.query_params:
            headers["content-disposition"] = f'attachment; filename="{_plain(name)}"'
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def commands(self, request: Request) -> Response:
        return JSONResponse([forms.form(name) for name in forms.commands()])

    async def inputs(self, request: Request) -> Response:
        return JSONResponse(await self.workers.run("pages.selection:inputs", self.root))

    async def log(self, request: Request) -> Response:
        return Response(
            self.processes.log(int(_number(request, "start", 0) or 0)), media_type="text/plain"
        )

    # --- what changes something: POST, from the server's own pages

    async def start(self, request: Request) -> Response:
        self._may_change()
        asked = await _json(request)
        command, values = str(asked.get("command")), _values(asked)
        out = within_new(self.root, str(values.get("out") or "")) if "out" in values else None
        if out is not None:
            values["out"] = out.relative_to(self.root).as_posix()
        words = forms.words_of(command, values)
        told = self.processes.start(words, values.get("out"))
        self.watch.wake()
        return JSONResponse(told)

    async def estimate(self, request: Request) -> Response:
        asked = await _json(request)
        command, given = str(asked.get("command")), _values(asked)
        try:
            values = forms.values_of(command, given)
            told = await self.torch_workers.run(
                "pages.forms:estimate", command, values, str(self.root)
            )
            return JSONResponse({**told, "shell": _shell(command, given)})
        except InputError as error:  # what a form says while it is being filled in is no failure
            return JSONResponse({"error": " ".join(str(error).split())})

    async def stop(self, request: Request) -> Response:
        self._may_change()
        asked = await _json(request)
        self.processes.stop(self._known(str(asked.get("id"))))
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        self._may_change()
        asked = await _json(request)
        job = self._known(str(asked.get("id")))
        return JSONResponse(self.processes.start(["resume", "--", job], job))

    async def select(self, request: Request) -> Response:
        self._may_change()
        asked = await _json(request)
        job = self._known(str(asked.get("id")))
        classes = asked.get("classes")
        if not isinstance(classes, list) or not all(type(k) is int for k in classes):
            raise InputError("classes: a list of class numbers is expected")
        out = within_new(self.root, str(asked.get("out") or ""))
        if out.suffix != ".star":
            raise InputError(f"--out {asked.get('out')}: a name that ends in .star is expected")
        out.parent.mkdir(parents=True, exist_ok=True)
        kept, of = await self.workers.run(
            "pages.selection:write_selection", str(self.root / job), classes, str(out)
        )
        name = out.relative_to(self.root).as_posix()
        return JSONResponse({"out": name, "kept": kept, "of": of})

    # --- what they share

    def _may_change(self) -> None:
        if self.read_only:
            raise InputError("this server only shows; start it without --read-only")

    def _job(self, request: Request) -> str:
        return self._known(request.query_params.get("id", ""))

    def _known(self, job: str) -> str:
        """The name of a job below the folder, as it was given, if there is one.

        Raises:
            InputError: no job, or not below the folder.
        """
        inside(self.root, job)
        job_record(self.root, job)
        return job

    def _map(self, request: Request) -> Path:
        path = inside(self.root, f"{self._job(request)}/{request.query_params.get('file', '')}")
        if path.suffix not in (".mrc", ".npz") or not path.is_file():
            raise InputError("no such map")
        return path

    def _class(self, request: Request) -> int:
        return int(_number(request, "class", 1) or 1) - 1

    def _particles(self, job: str) -> Path:
        if (self.root / job).is_file():
            return inside(self.root, job)
        return inside(self.root, f"{job}/particles.star")


def make_application(server: Server) -> Starlette:
    """The application, without its gate."""

    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["GET"])

    def post(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["POST"])

    @asynccontextmanager
    async def life(app: Starlette) -> Any:
        resting = asyncio.create_task(_let_rest(server))
        yield
        resting.cancel()
        server.workers.close()
        server.torch_workers.close()

    return Starlette(
        lifespan=life,
        middleware=[Middleware(GZipMiddleware, minimum_size=4000, compresslevel=4)],
        routes=[
            get("/", server.page),
            get("/static/{path:path}", server.static),
            get("/events", server.events),
            get("/report", server.report),
            get("/api/rows", server.rows),
            get("/api/job", server.job),
            get("/api/directions", server.directions),
            get("/api/thumbnail", server.thumbnail),
            get("/api/surface", server.surface),
            get("/api/slice", server.slice),
            get("/api/projection", server.projection),
            get("/api/classes", server.classes),
            get("/api/class-likelihoods", server.class_likelihoods),
            get("/api/some-particles", server.some_particles),
            get("/api/particles", server.particles),
            get("/api/particle", server.particle),
            get("/api/picture", server.picture),
            get("/api/file", server.file),
            get("/api/commands", server.commands),
            get("/api/inputs", server.inputs),
            get("/api/log", server.log),
            post("/api/start", server.start),
            post("/api/estimate", server.estimate),
            post("/api/stop", server.stop),
            post("/api/resume", server.resume),
            post("/api/select", server.select),
        ],
        exception_handlers={InputError: _refused, OSError: _gone},
    )


async def _let_rest(server: Server) -> None:
    while True:
        await asyncio.sleep(10)
        server.workers.rest()
        server.torch_workers.rest()


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, status_code=400)


async def _gone(request: Request, error: Exception) -> Response:
    """A file that was there a moment ago, or cannot be read."""
    return JSONResponse({"error": "the file cannot be read; was it removed?"}, status_code=404)


async def _json(request: Request) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise InputError("JSON is expected")
    try:
        asked = json.loads(await request.body())
    except ValueError:
        raise InputError("JSON is expected") from None
    if not isinstance(asked, dict):
        raise InputError("a JSON object is expected")
    return asked


def _values(asked: dict[str, Any]) -> dict[str, Any]:
    values = asked.get("values") or {}
    if not isinstance(values, dict):
        raise InputError("values: a JSON object is expected")
    return dict(values)


def _number(request: Request, name: str, default: float | None) -> float | None:
    text = request.query_params.get(name)
    if text in (None, ""):
        return default
    try:
        value = float(text or "")
    except ValueError:
        raise InputError(f"{name}: a number is expected") from None
    if not -1e30 < value < 1e30:
        raise InputError(f"{name}: a finite number is expected")
    return value


def _png(body: bytes) -> Response:
    return Response(body, media_type="image/png", headers={"cache-control": _FOR_A_DAY})


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _shell(command: str, values: dict[str, Any]) -> str:
    import shlex

    return shlex.join(["halfmap", *forms.words_of(command, values)])


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    token: str | None,
    root_path: str,
    host_names: tuple[str, ...],
    read_only: bool,
    ready: Callable[[int], None],
) -> None:
    """Serve a folder until the process is told to stop; `ready` is called with the port.

    Raises:
        InputError: the address cannot be had.
    """
    import socket

    import uvicorn

    server = Server(folder.resolve(), read_only=read_only)
    app = Gate(make_application(server), host, token, root_path.rstrip("/"), host_names)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError(
            f"--port {port}: {host} cannot be listened at ({error}); try --port 0"
        ) from None
    listening.listen(128)
    ready(listening.getsockname()[1])
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=500,
        h11_max_incomplete_event_size=1 << 16,
    )
    uvicorn.Server(config).run(sockets=[listening])
