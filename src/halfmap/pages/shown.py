"""What is asked for with GET: pages, numbers, pictures, files. Nothing changes."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from halfmap.commands._signatures import command_signature
from halfmap.errors import InputError
from halfmap.pages import forms
from halfmap.pages.asked import class_of, number, png_answer
from halfmap.pages.safety import inside
from halfmap.pages.server import Server
from halfmap.reports.directions import read_views
from halfmap.reports.job_data import job_data
from halfmap.reports.jobs import job_record
from halfmap.reports.report import STATIC, report_policy
from halfmap.workspace.records import as_json

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
LARGEST_SURFACE = 320  # box: beyond, triangles outnumber the pixels of a screen


@dataclass(frozen=True)
class Shown:
    """The routes that show something."""

    server: Server

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
            self.server.watch.follow(),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no"},
        )

    async def rows(self, request: Request) -> Response:
        await asyncio.to_thread(self.server.watch.look, search=True)
        rows = list(self.server.watch.rows.values())
        return JSONResponse(
            {"rows": rows, "root": str(self.server.root), "read_only": self.server.read_only}
        )

    async def job(self, request: Request) -> Response:
        job = self.server.job(request)
        return JSONResponse(
            await asyncio.to_thread(job_data, self.server.root, job, command_signature)
        )

    async def directions(self, request: Request) -> Response:
        job = self.server.job(request)
        if not (self.server.root / job / "particles.star").exists():  # it runs, or did not end
            views = await asyncio.to_thread(read_views, self.server.root / job)
            return JSONResponse(as_json(views))
        symmetry = job_record(self.server.root, job)["parameters"].get("symmetry") or "C1"
        found = await self.server.torch_workers.run(
            "pages.pictures:directions_of", str(self.server.root / job), symmetry
        )
        return JSONResponse(found)

    async def thumbnail(self, request: Request) -> Response:
        job = self.server.job(request)
        return png_answer(
            await self.server.workers.run("pages.pictures:thumbnail", str(self.server.root / job))
        )

    async def surface(self, request: Request) -> Response:
        level = number(request, "level", None)
        size = int(number(request, "size", 128) or 128)
        coloured = "colour" in request.query_params
        body = await self.server.workers.run(
            "pages.pictures:surface",
            str(self.server.map(request)),
            class_of(request),
            level,
            max(16, min(size, LARGEST_SURFACE)),
            str(self.server.map(request, "colour")) if coloured else None,
        )
        return Response(body, media_type="application/octet-stream")

    async def slice(self, request: Request) -> Response:
        axis, at = int(number(request, "axis", 0) or 0), number(request, "at", 0.5) or 0.0
        path, index = str(self.server.map(request)), class_of(request)
        return png_answer(
            await self.server.workers.run("pages.pictures:slice_png", path, index, axis % 3, at)
        )

    async def projection(self, request: Request) -> Response:
        axis = int(number(request, "axis", 0) or 0)
        path, index = str(self.server.map(request)), class_of(request)
        return png_answer(
            await self.server.workers.run("pages.pictures:projection_png", path, index, axis % 3)
        )

    async def classes(self, request: Request) -> Response:
        path = inside(self.server.root, f"{self.server.job(request)}/classes.mrcs")
        return png_answer(await self.server.workers.run("pages.pictures:classes_png", str(path)))

    async def some_particles(self, request: Request) -> Response:
        job = self.server.job(request)
        chosen = [int(k) for k in request.query_params.get("classes", "").split(",") if k]
        path = self.server.particles(job)
        return png_answer(
            await self.server.workers.run("pages.selection:some_particles_png", str(path), chosen)
        )

    async def particles(self, request: Request) -> Response:
        path = self.server.particles(self.server.job(request))
        first = int(number(request, "first", 0) or 0)
        sort = request.query_params.get("sort", "")
        only = int(number(request, "class", 0) or 0)
        found = await self.server.workers.run(
            "pages.selection:particle_rows", str(path), first, sort, only
        )
        return JSONResponse(found)

    async def particle(self, request: Request) -> Response:
        job, index = self.server.job(request), int(number(request, "index", 0) or 0)
        asked = request.query_params
        if "micrograph" in asked:
            place = str(self.server.root / job)
            found = await self.server.workers.run(
                "pages.micrograph:particle_micrograph", place, index
            )
            return JSONResponse(as_json(found))
        part = "particle_posterior" if "posterior" in asked else "particle"
        told = await self.server.torch_workers.run(
            f"pages.particle:{part}", str(self.server.root / job), index
        )
        return JSONResponse(told)

    async def class_likelihoods(self, request: Request) -> Response:
        job = self.server.job(request)
        if not (self.server.root / job / "particles.star").exists():
            return JSONResponse({})
        path = self.server.particles(job)
        return JSONResponse(
            await self.server.workers.run("pages.selection:class_likelihoods", str(path))
        )

    async def picture(self, request: Request) -> Response:
        job, name = self.server.job(request), request.query_params.get("name", "")
        path = self.server.path_of(job, name)
        if path.suffix != ".png" or not path.is_file():
            raise InputError("no such picture")
        return FileResponse(path, media_type="image/png")

    async def file(self, request: Request) -> Response:
        job, name = self.server.job(request), request.query_params.get("name", "")
        path = self.server.path_of(job, name)
        if not path.is_file():
            raise InputError("no such file")
        # never opened by the browser: what lies in a folder may be anybody's
        return FileResponse(
            path, media_type="application/octet-stream", filename=path.name, stat_result=path.stat()
        )

    async def report(self, request: Request) -> Response:
        job = self.server.job(request)
        chain = "chain" in request.query_params
        page = await self.server.torch_workers.run(
            "reports.report:report_page", self.server.root, job, command_signature, chain
        )
        name = f"{(self.server.root / job).name}_{'chain' if chain else 'report'}.html"
        headers = {"content-security-policy": report_policy()}
        if "save" in request.query_params:
            headers["content-disposition"] = f'attachment; filename="{_plain(name)}"'
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def commands(self, request: Request) -> Response:
        return JSONResponse([forms.form(name) for name in forms.commands()])

    async def inputs(self, request: Request) -> Response:
        return JSONResponse(
            await self.server.workers.run("pages.selection:inputs", self.server.root)
        )

    async def log(self, request: Request) -> Response:
        return Response(
            self.server.processes.log(int(number(request, "start", 0) or 0)),
            media_type="text/plain",
        )


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
