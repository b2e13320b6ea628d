"""Run the benchmarks one after another and print the number of each: what `make bench` calls.

    python benchmarks/run.py                    # quick settings, minutes
    python benchmarks/run.py --full             # the settings of docs/benchmarks.md
    python benchmarks/run.py patches embed      # some of them

Those on real fields look in `--data`, in `$CYTONYM_DATA` or in `../shared/data` beside the checkout, those on numbers of the
published programs in `$CYTONYM_PARITY` or `../shared/parity`; they are left out where there is no such folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = Path(os.environ.get("CYTONYM_DATA", HERE.parents[1] / "shared" / "data"))
PARITY = Path(os.environ.get("CYTONYM_PARITY", HERE.parents[1] / "shared" / "parity"))


@dataclass(frozen=True)
class Benchmark:
    """A script and its arguments, None where it is not to run; `{field}` stands for the folder of a real field."""

    script: str
    quick: str | None = ""
    full: str | None = ""
    fields: tuple[str, ...] = ()


SMALL = "--size 2048 --cells 10500 --repeats 2"
BENCHMARKS = (
    Benchmark("patches", quick=f"{SMALL} --sample 5"),
    Benchmark("embed", quick=SMALL),
    Benchmark(
        "find_cells",
        quick="--data {codex_lymphoid_crop}",
        full="--data {mibi_tb_granuloma} {codex_lymphoid_crop} {imc_pancreas}",
        fields=("codex_lymphoid_crop", "mibi_tb_granuloma", "imc_pancreas"),
    ),
    Benchmark(
        "interpretability",
        quick="--train {codex_lymphoid_crop} --seeds 1",
        full="--train {codex_lymphoid_crop}",
        fields=("codex_lymphoid_crop",),
    ),
    Benchmark("interpretability", quick=None, full="--train {mibi_lymphnode} --seeds 3", fields=("mibi_lymphnode",)),
    Benchmark(
        "resolution",
        quick="--data {mif_lymphoma_fihc4} --steps 50",
        full="--data {mibi_tb_granuloma} {mibi_breast_fov8} {mif_lymphoma_fihc4}",
        fields=("mif_lymphoma_fihc4", "mibi_tb_granuloma", "mibi_breast_fov8"),
    ),
    Benchmark(
        "ihc",
        quick="--train {ihc_deepliif} --scanners {ihc_ki67_openslide}",
        full="--train {ihc_deepliif} --points {ihc_ki67_points} --scanners {ihc_ki67_openslide}",
        fields=("ihc_deepliif", "ihc_ki67_points", "ihc_ki67_openslide"),
    ),
    Benchmark("ihc_slide", quick="--size 2048 --filters 16 --blocks 4 --depth 7 --network-px 256 --speed-size 704"),
    Benchmark(
        "ihc_learning",
        quick="--train {ihc_deepliif} --steps 20",
        full="--train {ihc_deepliif} --points {ihc_ki67_points}",
        fields=("ihc_deepliif", "ihc_ki67_points"),
    ),
    Benchmark("experiment1", quick="--seeds 1 --cells 1000"),
    Benchmark("parity", quick="--fixtures {parity}", full="--fixtures {parity}", fields=("parity",)),
    Benchmark(
        "few_labels",
        quick="--train {codex_lymphoid_crop} --draws 2 --no-clearit --fractions 0.05 0.25 --only default maps mean_lr mean_rf intensity",
        full="--train {codex_lymphoid_crop} --draws 5",
        fields=("codex_lymphoid_crop",),
    ),
    *(
        Benchmark("few_labels", quick=None, full=f"--train {{{field}}} --draws 5", fields=(field,))
        for field in ("mibi_lymphnode", "imc_pancreas", "mif_lymphoma_fihc4")
    ),
    Benchmark("few_labels", quick=None, full="--phantom --draws 5"),
    Benchmark("labelling", quick="--kills 5 --actions 500"),
    Benchmark("labelling_browser", quick="--cells 20000 --size 1024"),
    Benchmark("labelling_efficiency", quick="--phantom --cells 1500 --steps 60 --seeds 1", full="--phantom"),
    Benchmark("labelling_efficiency", quick=None, full="--phantom --hard"),
    Benchmark(
        "labelling_efficiency", quick=None, full="--train {codex_lymphoid_crop}", fields=("codex_lymphoid_crop",)
    ),
    Benchmark("labelling_efficiency", quick=None, full="--rgb {mif_lung_6plex_rgb}", fields=("mif_lung_6plex_rgb",)),
    Benchmark("clearit_speed", quick="--windows 128 --repeats 2"),
    Benchmark(
        "suggest",
        quick="--train {codex_lymphoid_crop} --seeds 2",
        full="--train {codex_lymphoid_crop}",
        fields=("codex_lymphoid_crop",),
    ),
    Benchmark("suggest", quick=None, full="--train {mibi_lymphnode}", fields=("mibi_lymphnode",)),
    Benchmark("suggest", quick=None, full="--phantom"),
    Benchmark("positivity", quick="--phantom --steps 60", full="--phantom"),
    *(
        Benchmark("positivity", quick=None, full=f"--train {{{field}}}", fields=(field,))
        for field in ("codex_lymphoid_crop", "mibi_lymphnode", "imc_pancreas", "mif_lymphoma_fihc4")
    ),
    Benchmark("positivity", quick=None, full="--phantom --noise 0.1 0.2 0.3"),
    Benchmark("positivity", quick=None, full="--phantom --noise 0.1 0.2 0.3 --noise-of labels"),
    Benchmark(
        "scoring",
        quick="--size 2048 --channels 8 --speed-size 2000 --speed-channels 2",
        full="--size 8192 --channels 40",
    ),
)


def missing(benchmark: Benchmark, arguments: str, data: Path) -> str:
    """Why a benchmark cannot run here; empty where it can."""
    if not (HERE / f"{benchmark.script}.py").exists():
        return "no such script"
    lacking = [f for f in benchmark.fields if f"{{{f}}}" in arguments and not folder(f, data).is_dir()]
    where = f"{PARITY}: set CYTONYM_PARITY" if lacking == ["parity"] else f"{data}: give --data or set CYTONYM_DATA"
    return f"{', '.join(lacking)} not found in {where}" if lacking else ""


def folder(field: str, data: Path) -> Path:
    """Where a field is, or the numbers of the published programs."""
    return PARITY if field == "parity" else data / field / "dev"


def run(benchmark: Benchmark, arguments: str, data: Path) -> dict[str, Any] | None:
    """Run a script, showing what it prints; its JSON line, or None where it failed."""
    folders = {field: str(folder(field, data)) for field in benchmark.fields}
    words = [word.format(**folders) for word in arguments.split()]
    call = [sys.executable, str(HERE / f"{benchmark.script}.py"), *words, "--json"]
    last = ""
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line if line.strip() else last
    if process.returncode:
        return None
    result: dict[str, Any] = json.loads(last)
    return result


def main() -> int:
    names = list(dict.fromkeys(benchmark.script for benchmark in BENCHMARKS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of the real fields; default: {DATA}")
    parser.add_argument("--full", action="store_true", help="full settings, which take long")
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(names))
    if unknown:
        parser.error(f"no benchmark {unknown}. Available: {names}")

    summary: list[tuple[str, str]] = []
    failed = False
    for benchmark in BENCHMARKS:
        if options.only and benchmark.script not in options.only:
            continue
        arguments = benchmark.full if options.full else benchmark.quick
        if arguments is None:
            continue
        reason = missing(benchmark, arguments, options.data)
        if reason:
            summary.append((benchmark.script, f"left out: {reason}"))
            continue
        print(f"\n== {benchmark.script} {arguments}", flush=True)
        start = time.perf_counter()
        result = run(benchmark, arguments, options.data)
        failed |= result is None
        found = "FAILED" if result is None else json.dumps(result)
        summary.append((benchmark.script, f"{found}  ({time.perf_counter() - start:.0f} s)"))
    print("\n== summary")
    for name, found in summary:
        print(f"{name:18}{found}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
