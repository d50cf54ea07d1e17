"""Break everything, many times, and let the oracle judge: seeded, replayable, written down.

    python bench/chaos.py --seed 1 --kills 200
    python bench/chaos.py --seed 1 --kills 100 --nemesis recovery-remote
    python bench/chaos.py --seed 1 --kills 60 --tier real

Writes bench/results/chaos-<nemesis>-<database>-<seed>.json, and ends with status 1 when anything
that the product promises did not hold; then the home folder is kept.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.chaos.harness import artifact, catalogue, nemeses, run  # noqa: E402
from tests.chaos.harness.catalogue import Plan  # noqa: E402

RESULTS = ROOT / "bench" / "results"


def main() -> None:
    given = parse_arguments()
    plan = planned(given)
    arguments: dict[str, Any] = {
        "nemesis": given.nemesis,
        "seed": given.seed,
        "kills": given.kills,
        "database": plan.only_on or given.database,
        "tier": plan.shape.tier,
        "profile": plan.shape.profile,
        "workers": plan.shape.num_workers,
        "slots": plan.shape.slots,
    }
    verdict = run.execute(
        plan.make(given.kills),
        seed=given.seed,
        database=arguments["database"],
        shape=plan.shape,
        checks=plan.checks,
        folder=given.folder,
    )
    summary = artifact.summarize(verdict, arguments=arguments)
    name = f"chaos-{'-'.join(given.nemesis)}-{arguments['database']}-{given.seed}.json"
    path: Path = given.out or RESULTS / name
    artifact.write(summary, path)
    print(json.dumps(summary, indent=1))
    print(f"written to {path}")
    if verdict.violations:
        print(f"VIOLATED: {', '.join(verdict.violations)}; the home is kept: {verdict.home}")
        print(f"replay: python bench/chaos.py {options(arguments)}")
        raise SystemExit(1)


def planned(given: argparse.Namespace) -> Plan:
    """Return the scenario with the layout that was asked for instead of its own."""
    plan = catalogue.plan_of(given.nemesis)
    wanted = {"profile": given.profile, "num_workers": given.workers, "slots": given.slots}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return replace(plan, shape=replace(plan.shape, **changes))


def options(arguments: dict[str, Any]) -> str:
    """Return the command line that repeats a run."""
    values = {**arguments, "nemesis": " ".join(arguments["nemesis"])}
    return " ".join(f"--{name} {value}" for name, value in values.items())


def parse_arguments() -> argparse.Namespace:
    known = sorted({*catalogue.PLANS, *nemeses.STRIKES})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kills", type=int, default=100, help="blows that land, trials, or seeds of each failpoint"
    )
    parser.add_argument("--tier", choices=("fast", "real"), help="real: only the chains")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--profile", choices=("mass", "recovery"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--slots", type=int)
    parser.add_argument(
        "--nemesis",
        nargs="+",
        choices=known,
        metavar="NAME",
        help=f"one scenario, or nemeses that strike in turn: {', '.join(known)}",
    )
    parser.add_argument("--folder", type=Path, help="where the home is made")
    parser.add_argument("--out", type=Path, help="where the figures are written")
    given = parser.parse_args()
    given.nemesis = given.nemesis or (["chains"] if given.tier == "real" else ["storm"])
    if given.tier is not None and (given.tier == "real") != (given.nemesis == ["chains"]):
        parser.error("the chains are of the real tier, and everything else of the fast one")
    return given


if __name__ == "__main__":
    main()
