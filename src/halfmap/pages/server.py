"""What all routes share: the folder that is served, what of it may be named, and who works."""

from pathlib import Path, PurePosixPath

from starlette.requests import Request

from halfmap.errors import InputError
from halfmap.pages.processes import Processes
from halfmap.pages.safety import inside
from halfmap.pages.watch import Watch
from halfmap.pages.workers import Workers
from halfmap.reports.jobs import beside, job_record


class Server:
    """The folder, its watch, the workers and the jobs started here."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root, self.read_only = root, read_only
        self.processes = Processes(root)
        self.watch = Watch(root, self.processes.told)
        self.workers = Workers()
        self.torch_workers = Workers()  # what loads torch takes seconds, and must not be waited for

    def may_change(self) -> None:
        if self.read_only:
            raise InputError("this server only shows; start it without --read-only")

    def job(self, request: Request) -> str:
        return self.known(request.query_params.get("id", ""))

    def known(self, job: str) -> str:
        """The name of a job below the folder, as it was given, if there is one.

        Raises:
            InputError: no job, or not below the folder.
        """
        inside(self.root, job)
        job_record(self.root, job)
        return job

    def path_of(self, job: str, name: str) -> Path:
        """The path of a file of a job: in its folder, or beside it where its record names it.

        Raises:
            InputError: not there, or not below the folder.
        """
        place = self.root / job
        if name in beside(job_record(self.root, job), place) and not (place / name).exists():
            above = PurePosixPath(job).parent
            return inside(self.root, (above / name).as_posix())
        return inside(self.root, f"{job}/{name}")

    def map(self, request: Request, named: str = "file") -> Path:
        path = self.path_of(self.job(request), request.query_params.get(named, ""))
        if path.suffix not in (".mrc", ".npz") or not path.is_file():
            raise InputError("no such map")
        return path

    def particles(self, job: str) -> Path:
        if (self.root / job).is_file():
            return inside(self.root, job)
        return inside(self.root, f"{job}/particles.star")
