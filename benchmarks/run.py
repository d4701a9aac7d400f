"""Every figure of docs/benchmarks.md and the pages behind it, by one command.

    python benchmarks/run.py             all of them (make benchmarks); about two hours
    python benchmarks/run.py trpv1 estep some of them
    python benchmarks/run.py --share 0.05 yardstick_in_full trpv1_in_full   a twentieth of hours
    python benchmarks/run.py --list      what there is
    python benchmarks/run.py --table     only write the pages again from benchmarks/results

Data are simulated on demand into benchmarks/data; results are appended to benchmarks/results, and
docs/benchmarks.md and docs/benchmarks/ are written from the newest of each. What needs data or programs that are absent
is skipped with a line that says so.
"""

import argparse
import os
import sys
import traceback

import accuracy
import bias
import branch_and_bound
import class_posteriors
import classes2d
import classes3d
import dirty
import dirty_initial_maps
import documentation
import estep
import finishing
import from_nothing
import gallery
import known_poses
import local_regularisation
import low_signal
import low_signal_cost
import low_signal_numbers
import many_processes
import optics
import others
import preferred_views
import purity
import real_data
import refine_simulated
import relion_beside
import scaling
import sizes
import stages
import symmetry_finding
from common import Skip, keep
from table import write_docs

ALL = {
    function.__name__: function
    for function in (
        refine_simulated.trpv1,
        refine_simulated.ribo,
        low_signal.low_signal,
        low_signal_numbers.low_signal_numbers,
        low_signal_cost.low_signal_cost,
        class_posteriors.class_posteriors,
        bias.bias,
        classes2d.ribo_mix_2d,
        classes2d.ribo_mix_2d_template,
        relion_beside.relion_beside,
        purity.mixture_purity_2d,
        classes2d.mixture_2d,
        classes3d.ribo_mix_3d,
        classes3d.phantom_mix_3d,
        dirty.dirty_2d,
        dirty.dirty_abinitio,
        dirty.dirty_class3d,
        dirty.dirty_refine,
        dirty.dirty_relion,
        from_nothing.abinitio_trpv1_c4,
        from_nothing.abinitio_trpv1_c1,
        from_nothing.abinitio_ribo,
        from_nothing.abinitio_phantom,
        from_nothing.abinitio_low_signal,
        dirty_initial_maps.abinitio_dirty_classes,
        from_nothing.abinitio_classes,
        from_nothing.abinitio_averages,
        branch_and_bound.branch_and_bound,
        scaling.yardstick,
        scaling.cost_growth,
        sizes.sizes,
        sizes.memory,
        sizes.memory_of_other_jobs,
        sizes.memory_large,
        sizes.symmetry,
        sizes.yardstick_in_full,
        sizes.trpv1_in_full,
        optics.optics_groups,
        many_processes.many_processes,
        stages.stages,
        estep.estep,
        accuracy.accuracy,
        gallery.gallery,
        refine_simulated.reconstruct,
        local_regularisation.local_regularisation,
        known_poses.ctfrefine,
        known_poses.ctfrefine_magnification,
        known_poses.focus,
        known_poses.relaxed,
        real_data.real_ribosome,
        real_data.trpv1_real,
        finishing.mask,
        finishing.postprocess,
        finishing.localres,
        preferred_views.orientations,
        symmetry_finding.symmetry_found,
        symmetry_finding.symmetry_departure,
        symmetry_finding.symmetry_of_molecules,
        others.restore_methods,
        others.star_readers,
        documentation.gallery_built,
        documentation.docstring_examples,
        documentation.biased_start,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="benchmarks to run; all if none is given"
    )
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--table", action="store_true", help="only write the pages again")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the particles of the two sets in full"
    )
    options = parser.parse_args()
    sizes.SHARE = options.share
    if unknown := [name for name in options.names if name not in ALL]:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(ALL)}")
    if options.list:
        for name, function in ALL.items():
            print(f"{name:26}{' '.join(function.__doc__.split())}")
        return 0
    failed = []
    for name in [] if options.table else options.names or ALL:
        print(f"\n{name}", flush=True)
        load = os.getloadavg()[0]
        try:
            report = ALL[name]()
        except Skip as reason:
            print(f"  skipped: {reason}", flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        else:
            keep(name, report, load=load)
    write_docs(ALL)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
