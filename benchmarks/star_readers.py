"""Which reader for STAR files: time and peak memory on a big one, and what survives on every
dialect.

    python benchmarks/star_readers.py [--rows 1000000] [--dialects FOLDER]

Writes a STAR of `--rows` rows and 25 columns into a temporary folder. Each reader runs in a fresh
process, on one thread, and must end with two float columns as arrays and the image names as text;
"particles" is `load_particles`, which makes everything that a job needs. "Bit-equal" means: written
again by the same library, every cell of the file has the same bytes, quotes aside. starfile and
pandas turn columns into numbers, so their text is lost; that is what the count shows.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READERS = ("halfmap", "gemmi", "pandas", "starfile", "particles")
NAMES = (
    "CoordinateX",
    "CoordinateY",
    "ImageName",
    "MicrographName",
    "CtfMaxResolution",
    "CtfFigureOfMerit",
    "DefocusU",
    "DefocusV",
    "DefocusAngle",
    "CtfBfactor",
    "CtfScalefactor",
    "PhaseShift",
    "AngleRot",
    "AngleTilt",
    "AnglePsi",
    "ClassNumber",
    "NormCorrection",
    "RandomSubset",
    "LogLikeliContribution",
    "MaxValueProbDistribution",
    "NrOfSignificantSamples",
    "OpticsGroup",
    "OriginXAngst",
    "OriginYAngst",
    "GroupNumber",
)
INTEGERS = ("ClassNumber", "RandomSubset", "NrOfSignificantSamples", "OpticsGroup", "GroupNumber")


def write_big(path: Path, rows: int) -> None:
    """RELION 3.1's layout and number widths."""
    import numpy as np

    random = np.random.default_rng(1)
    with open(path, "w") as out:
        optics = {
            "OpticsGroup": 1,
            "ImagePixelSize": 1.06,
            "ImageSize": 256,
            "Voltage": 300,
            "SphericalAberration": 2.7,
        }
        optics["AmplitudeContrast"] = 0.1
        out.write(
            "\n# version 30001\n\ndata_optics\n\nloop_ \n"
            + "".join(f"_rln{name} #{i} \n" for i, name in enumerate(optics, 1))
        )
        out.write(" ".join(map(str, optics.values())) + " \n \n")
        out.write(
            "\n# version 30001\n\ndata_particles\n\nloop_ \n"
            + "".join(f"_rln{name} #{i} \n" for i, name in enumerate(NAMES, 1))
        )
        for first in range(0, rows, 10000):
            numbers = random.normal(0, 100, (10000, len(NAMES))).tolist()
            for i, values in enumerate(numbers[: rows - first], first):
                stack = f"Micrographs/FoilHole_{i // 300:08d}_Data_10985376_10985377_20180810_2123-144102_DW.mrc"
                text = {name: f"{x:12.6f}" for name, x in zip(NAMES, values, strict=True)}
                text |= {name: f"{1:12d}" for name in INTEGERS} | {
                    "RandomSubset": f"{i % 2 + 1:12d}"
                }
                text |= {
                    "ImageName": f"{i % 300 + 1:06d}@Extract/job133/{stack}s",
                    "MicrographName": stack,
                }
                out.write(" ".join(text.values()) + " \n")
        out.write(" \n")


def read(reader: str, path: Path) -> list:
    """Open the file and make two columns floats and one text."""
    wanted = ("rlnDefocusU", "rlnAngleRot")
    if reader == "halfmap":
        from halfmap.io.star import read_star

        table = read_star(path).blocks["particles"]
        return [*(table.floats(name) for name in wanted), table.strings("rlnImageName")]
    if reader == "particles":
        from halfmap.particles import load_particles

        particles = load_particles(path, check_images=False)
        return [
            particles.transfer.defocus_u_angstrom,
            particles.rotations_deg,
            particles.image_index,
        ]
    if reader == "gemmi":
        import numpy as np
        from gemmi import cif

        block = cif.read_file(str(path)).find_block("particles")
        return [
            *(np.array(list(block.find_loop("_" + name)), float) for name in wanted),
            list(block.find_loop("_rlnImageName")),
        ]
    if reader == "pandas":
        import pandas as pd

        with open(path) as file:  # the header by hand: the last loop of the file
            lines = [next(file) for _ in range(50)]
        last = max(i for i, line in enumerate(lines) if line.startswith("_rln"))
        names = [line.split()[0][1:] for line in lines[: last + 1] if line.startswith("_rln")][
            -len(NAMES) :
        ]
        frame = pd.read_csv(
            path,
            sep=r"\s+",
            skiprows=last + 1,
            names=names,
            dtype="string[pyarrow]",
            engine="c",
            na_filter=False,
        )
        return [*(frame[name].astype(float).to_numpy() for name in wanted), frame["rlnImageName"]]
    import starfile

    frame = starfile.read(path)["particles"]
    return [*(frame[name].to_numpy() for name in wanted), frame["rlnImageName"]]


def cells(path: Path) -> list[str]:
    """Every cell of a file by an independent rule: tokens after the block lines and headers, one
    pair of quotes taken off."""
    found = []
    for line in path.read_text().splitlines():
        tokens = [
            a or b or c
            for a, b, c in re.findall(
                r"""(?:"([^"]*)"|'([^']*)'|(\S+))(?:\s|$)""", line.split(" #")[0]
            )
        ]
        if tokens and tokens[0].startswith("_"):
            tokens = tokens[1:2] if len(tokens) > 1 else []
        if tokens and not tokens[0].startswith(("data_", "loop_", "#")):
            found += [token for token in tokens if token]
    return found


def round_trip(reader: str, path: Path, copy: Path) -> str:
    """'equal', 'changed', or 'failed' for one dialect file."""
    try:
        if reader == "halfmap":
            from halfmap.io.star import read_star, write_star

            write_star(copy, read_star(path).blocks)
        elif reader == "gemmi":
            from gemmi import cif

            cif.read_file(str(path)).write_file(str(copy))
        elif reader == "starfile":
            import starfile

            starfile.write(starfile.read(path, always_dict=True), copy, overwrite=True)
        else:
            return "not a STAR reader"
        before = sorted(cells(path))
        return "equal" if before == sorted(cells(copy)) else "changed"
    except Exception as error:
        return f"failed ({type(error).__name__})"


AWKWARD = (
    "data_set1/x.mrc",
    "_odd/x.mrc",
    "$x/a.mrc",
    "'it",
    ";x",
    "été/é.mrc",
)  # file names that RELION takes and CIF forbids


def reads_awkward_names(reader: str, folder: Path) -> int:
    """How many of `AWKWARD` come back as the first cell of a row."""
    right = 0
    for i, name in enumerate(AWKWARD):
        path = folder / f"awkward{i}.star"  # starfile remembers the lines of a name it has read
        path.write_text(
            f"data_a\n\nloop_\n_rlnImageName #1\n_rlnClassNumber #2\n{name} 1\n{name} 2\n"
        )
        try:
            if reader == "halfmap":
                from halfmap.io.star import read_star

                found = read_star(path).blocks["a"].strings("rlnImageName")[0]
            elif reader == "gemmi":
                from gemmi import cif

                found = cif.read_file(str(path))["a"].find_loop("_rlnImageName")[0]
            elif reader == "starfile":
                import starfile

                found = starfile.read(path)["rlnImageName"].iloc[0]
            else:
                continue
            right += found == name
        except Exception:
            continue
    return right


def child(reader: str, big: Path, dialects: Path | None, folder: Path) -> None:
    import resource

    started = time.perf_counter()
    kept = read(reader, big)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = len(kept[0])
    outcomes = (
        {
            path.name: round_trip(reader, path, folder / "copy.star")
            for path in sorted(dialects.glob("*.star"))
        }
        if dialects
        else {}
    )
    awkward = reads_awkward_names(reader, folder)
    print(
        json.dumps(
            {
                "rows": rows,
                "awkward": awkward,
                "seconds": seconds,
                "peak_gib": peak,
                "outcomes": outcomes,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--dialects", type=Path, default=None, help="folder of STAR files to round-trip"
    )
    parser.add_argument("--child", nargs=2, metavar=("READER", "BIG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        reader, big = arguments.child
        return child(reader, Path(big), arguments.dialects, Path(big).parent)
    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder) / "big.star"
        write_big(big, arguments.rows)
        print(
            f"{arguments.rows} rows x {len(NAMES)} columns, {big.stat().st_size / 2**20:.0f} MiB\n"
        )
        print(
            "| reader | seconds | peak GiB | dialects bit-equal | changed | failed | awkward "
            "names |\n|---|---|---|---|---|---|---|"
        )
        for reader in READERS:
            command = [sys.executable, __file__, "--child", reader, str(big)]
            command += ["--dialects", str(arguments.dialects)] if arguments.dialects else []
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(
                    f"| {reader} | failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]} "
                    "| | | | |",
                    flush=True,
                )
                continue
            result = json.loads(done.stdout.strip().splitlines()[-1])
            kinds = [text.split()[0] for text in result["outcomes"].values()]
            is_star_reader = reader in ("halfmap", "gemmi", "starfile")
            counts = " | ".join(
                str(kinds.count(kind)) if is_star_reader else "-"
                for kind in ("equal", "changed", "failed")
            )
            awkward = f"{result['awkward']} of {len(AWKWARD)}" if is_star_reader else "-"
            print(
                f"| {reader} | {result['seconds']:.1f} | {result['peak_gib']:.2f} | {counts} | "
                f"{awkward} |",
                flush=True,
            )
            for name, text in result["outcomes"].items():
                if not text.startswith(("equal", "not")):
                    print(f"    {name}: {text}", flush=True)


if __name__ == "__main__":
    main()
