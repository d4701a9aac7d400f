"""What changes something: POST, from the server's own pages. Jobs are started, stopped and resumed,
classes written; and what a form stands for, before it is sent."""

import shlex
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from halfmap.errors import InputError
from halfmap.pages import forms
from halfmap.pages.asked import json_of, values_of
from halfmap.pages.safety import within_new
from halfmap.pages.server import Server


@dataclass(frozen=True)
class Changes:
    """The routes that change something."""

    server: Server

    async def start(self, request: Request) -> Response:
        self.server.may_change()
        asked = await json_of(request)
        command, values = str(asked.get("command")), values_of(asked)
        out = (
            within_new(self.server.root, str(values.get("out") or "")) if "out" in values else None
        )
        if out is not None:
            values["out"] = out.relative_to(self.server.root).as_posix()
        words = forms.words_of(command, values)
        told = self.server.processes.start(words, values.get("out"))
        self.server.watch.wake()
        return JSONResponse(told)

    async def estimate(self, request: Request) -> Response:
        asked = await json_of(request)
        command, given = str(asked.get("command")), values_of(asked)
        try:
            values = forms.values_of(command, given)
            told = await self.server.torch_workers.run(
                "pages.forms:estimate", command, values, str(self.server.root)
            )
            return JSONResponse(
                {**told, "shell": shlex.join(["halfmap", *forms.words_of(command, given)])}
            )
        except InputError as error:  # what a form says while it is being filled in is no failure
            return JSONResponse({"error": " ".join(str(error).split())})

    async def stop(self, request: Request) -> Response:
        self.server.may_change()
        asked = await json_of(request)
        if "start" in asked:  # a command that has no job folder, or none yet
            self.server.processes.stop_start(asked["start"])
        else:
            self.server.processes.stop(self.server.known(str(asked.get("id"))))
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        self.server.may_change()
        asked = await json_of(request)
        job = self.server.known(str(asked.get("id")))
        return JSONResponse(self.server.processes.start(["resume", "--", job], job))

    async def select(self, request: Request) -> Response:
        self.server.may_change()
        asked = await json_of(request)
        job = self.server.known(str(asked.get("id")))
        classes = asked.get("classes")
        if not isinstance(classes, list) or not all(type(k) is int for k in classes):
            raise InputError("classes: a list of class numbers is expected")
        out = within_new(self.server.root, str(asked.get("out") or ""))
        if out.suffix != ".star":
            raise InputError(f"--out {asked.get('out')}: a name that ends in .star is expected")
        out.parent.mkdir(parents=True, exist_ok=True)
        kept, of = await self.server.workers.run(
            "pages.selection:write_selection", str(self.server.root / job), classes, str(out)
        )
        name = out.relative_to(self.server.root).as_posix()
        return JSONResponse({"out": name, "kept": kept, "of": of})
