"""Where the system has neither `fcntl` nor `resource` (Windows), jobs run all the same."""

import subprocess
import sys
import textwrap
from pathlib import Path

from halfmap.workspace import machine

WITHOUT_UNIX = textwrap.dedent("""
    import importlib.abc, os, sys
    from pathlib import Path

    class Hide(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name in ("fcntl", "resource"):
                raise ImportError(name)

    for name in ("fcntl", "resource"):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hide())
    from halfmap.workspace import machine
    from halfmap.workspace.job import Job, read_job

    sum(range(3_000_000))
    with Job.create("simulate", {"n": 3}, Path(sys.argv[1]) / "job", seed=1) as job:
        job.path("map.mrc").write_text("made")
    record = read_job(job.folder)
    assert record["status"] == "finished", record
    assert record["peak_memory_bytes"] == 0  # and so it says where the system does not tell
    assert machine.cpu_seconds() > 0
    assert not any(name in sys.modules for name in ("fcntl", "resource"))
    assert sorted(entry.name for entry in job.folder.iterdir()) == ["job.json", "map.mrc"]
""")


def test_a_job_runs_without_fcntl_and_resource(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_memory_is_told_in_bytes() -> None:
    assert 1e7 < machine.peak_memory_bytes() < machine.physical_memory_bytes() < 1e14
