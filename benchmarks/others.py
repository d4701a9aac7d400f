"""Benchmarks that print their own tables: run, and their tables taken over word by word."""

import sys

from common import BENCHMARKS, RUNS, Report, run, third_party


def restore_methods() -> Report:
    """Undoing the CTF by each of the lecture's methods; docs/restore.md shows the pictures and says
    what they mean."""
    return printed("restore_methods", [])


def star_readers() -> Report:
    """STAR readers on 1,000,000 rows x 25 columns and on the dialects of the third-party data;
    docs/io.md says what they mean."""
    return printed("star_readers", ["--dialects", str(third_party("star"))])


def printed(name: str, options: list[str]) -> Report:
    report = Report()
    cost = run(report, [sys.executable, BENCHMARKS / f"{name}.py", *options], log=name)
    report.numbers["printed"] = (RUNS / f"{name}.log").read_text()
    report.add("the whole benchmark", str(cost))
    return report
