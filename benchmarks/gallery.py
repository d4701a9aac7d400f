"""The lecture's pictures from real runs."""

from common import (
    HALFMAP,
    SETS,
    THREADS,
    Report,
    job_folder,
    keep_picture,
    run,
    simulated,
    third_party,
)
from datasets import first_images

IMAGES = 1000


def gallery() -> Report:
    """The lecture's pictures, as the jobs draw them: Gamma over the sphere of viewing directions
    for some particles at first, middle and last iterations of `refine` (1,000 images of `ribo`),
    and class averages at iterations 0, 1, 2, 4, 6 and 25 of `class2d` (1,000 images of `ribo_mix`).
    """
    report = Report()
    star, reference = (
        first_images(simulated("ribo") / "particles.star", IMAGES),
        third_party("maps", SETS["ribo"][0][0]),
    )
    refined, classes = job_folder("gallery_refine"), job_folder("gallery_class2d")
    command = [
        HALFMAP,
        "refine",
        "--particles",
        star,
        "--reference",
        reference,
        "--diameter",
        "270",
        "--threads",
        f"{THREADS}",
    ]
    run(report, [*command, "--out", refined, "--overwrite", "--quiet"], log=refined.name)
    star = first_images(simulated("ribo_mix") / "particles.star", IMAGES)
    command = [
        HALFMAP,
        "class2d",
        "--particles",
        star,
        "--classes",
        "10",
        "--iterations",
        "25",
        "--diameter",
        "270",
    ]
    run(
        report,
        [*command, "--threads", f"{THREADS}", "--out", classes, "--overwrite", "--quiet"],
        log=classes.name,
    )
    for folder, picture in ((refined, "posterior_weights"), (classes, "class_history")):
        path = folder / "pictures" / f"{picture}.png"
        drawn = path.exists()
        report.add(f"{folder.name}: {picture}", "below" if drawn else "not drawn")
        if drawn:
            keep_picture(report, path, f"{folder.name}_{picture}.png")
    return report
