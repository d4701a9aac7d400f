"""What a job's events tell of each iteration, as a table and as a plot; and the cost that is left
when start and end are taken off."""

from collections.abc import Mapping, Sequence

from common import FIGURES, Cost, Report

COLUMNS = (
    ("iteration", "iteration", "{:d}"),
    ("resolution_angstrom", "resolution A", "{:.1f}"),
    ("radius", "shells", "{:d}"),
    ("ms_per_image", "ms an image", "{:.2f}"),
    ("mean_largest_weight", "largest weight", "{:.3f}"),
    ("mean_significant", "poses", "{:.1f}"),
    ("angular_change_deg", "moved deg", "{:.2f}"),
    ("accuracy_deg", "accuracy deg", "{:.2f}"),
)


def table(events: Sequence[Mapping]) -> str:
    """One line per iteration: wall milliseconds an image, mean largest weight of the posterior
    (Pmax), mean number of poses that hold 99.9 % of it, median change of angle, median of the
    accuracy that the posterior's curvature tells."""
    rows = [[words for _, words, _ in COLUMNS]]
    for event in events:
        rows.append(
            [
                form.format(event[key]) if event.get(key) is not None else "-"
                for key, _, form in COLUMNS
            ]
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def add_table(report: Report, events: Sequence[Mapping], title: str) -> None:
    """The table among what the report prints."""
    before = str(report.numbers.get("printed", ""))
    report.numbers["printed"] = f"{before}{title}\n{table(events)}\n\n"
    print(
        f"    {title}\n" + "\n".join(f"    {line}" for line in table(events).splitlines()),
        flush=True,
    )


def plot(report: Report, jobs: Mapping[str, Sequence[Mapping]], name: str) -> None:
    """Milliseconds an image (solid) beside the number of significant poses (dashed), by iteration,
    one colour a job; as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), facecolor="white", layout="constrained")
    cost = figure.add_subplot()
    poses = cost.twinx()
    for number, (label, events) in enumerate(jobs.items()):
        at, colour = [e["iteration"] for e in events], f"C{number}"
        cost.plot(
            at, [e["ms_per_image"] for e in events], "o-", color=colour, markersize=4, label=label
        )
        poses.plot(at, [e["mean_significant"] for e in events], "--", color=colour)
    cost.set(xlabel="iteration", ylabel="ms an image (solid)", ylim=(0, None))
    poses.set(ylabel="poses that hold 99.9 % (dashed)", yscale="log")
    cost.legend(frameon=False)
    figure.savefig(FIGURES / name, dpi=90)
    report.pictures.append(name)


def marginal_ms(many: tuple[Cost, int, int], few: tuple[Cost, int, int]) -> float:
    """CPU milliseconds per image and iteration from two jobs (cost, images, iterations): what they
    share, start and end, is gone."""
    (cost, n, done), (less, m, also_done) = many, few
    return 1e3 * (cost.cpu_s - less.cpu_s) / (n * done - m * also_done)
