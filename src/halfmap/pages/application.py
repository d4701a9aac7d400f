"""The server: its routes, its errors, and how it is started."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from halfmap.errors import InputError
from halfmap.pages.changes import Changes
from halfmap.pages.safety import Gate
from halfmap.pages.server import Server
from halfmap.pages.shown import Shown


def make_application(server: Server) -> Starlette:
    """The application, without its gate."""
    shown, changes = Shown(server), Changes(server)

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
            get("/", shown.page),
            get("/static/{path:path}", shown.static),
            get("/events", shown.events),
            get("/report", shown.report),
            get("/api/rows", shown.rows),
            get("/api/job", shown.job),
            get("/api/directions", shown.directions),
            get("/api/thumbnail", shown.thumbnail),
            get("/api/surface", shown.surface),
            get("/api/slice", shown.slice),
            get("/api/projection", shown.projection),
            get("/api/classes", shown.classes),
            get("/api/class-likelihoods", shown.class_likelihoods),
            get("/api/some-particles", shown.some_particles),
            get("/api/particles", shown.particles),
            get("/api/particle", shown.particle),
            get("/api/picture", shown.picture),
            get("/api/file", shown.file),
            get("/api/commands", shown.commands),
            get("/api/inputs", shown.inputs),
            get("/api/log", shown.log),
            post("/api/start", changes.start),
            post("/api/estimate", changes.estimate),
            post("/api/stop", changes.stop),
            post("/api/resume", changes.resume),
            post("/api/select", changes.select),
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

    from halfmap.pages.connections import Impatient

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
        http=Impatient,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=500,
        h11_max_incomplete_event_size=1 << 16,
    )
    uvicorn.Server(config).run(sockets=[listening])
