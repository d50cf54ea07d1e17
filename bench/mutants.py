"""Deliberate faults, one at a time, in a copy of the product: does a test see each of them?

Puts each mutant of bench/mutants/faults into a copy, runs only the tests that are mapped to it, and
tells which test caught it. Without --only, writes bench/results/mutants.json too. Ends with an
error when less than 95 % are caught, or when a mutant could not be judged.

    python bench/mutants.py                      # all of them: a quarter of an hour on two cores
    python bench/mutants.py --only ack-late      # one of them
    python bench/mutants.py --write              # puts the table into docs/mutations.md as well
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.comparison import machine  # noqa: E402
from bench.mutants import report, running  # noqa: E402
from bench.mutants.catalogue import ALL  # noqa: E402
from bench.mutants.mutant import Mutant  # noqa: E402
from bench.mutants.project import LORAD, CannotRun  # noqa: E402
from bench.mutants.running import Result  # noqa: E402

DOCUMENT = ROOT / "docs" / "mutations.md"
RESULTS = ROOT / "bench" / "results" / "mutants.json"


def main() -> int:
    # Terminated, it ends what it started and removes its copies, as after a Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = parse_arguments()
    mutants = chosen(given.only)
    if given.list:
        for mutant in mutants:
            print(f"{mutant.name:45} {mutant.violates:12} {mutant.breaks}")
        return 0
    print(f"{len(mutants)} mutants; first their tests without any fault", flush=True)

    def tell(result: Result) -> None:
        why = f"\n    {result.why}" if given.why and result.why else ""
        print(report.line(result) + why, flush=True)

    try:
        results = running.examine(LORAD, mutants, jobs=given.jobs, tell=tell)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report.summary(results))
    if not given.only:
        keep(results, writes_document=given.write)
    return 0 if report.is_good(results) else 1


def chosen(names: Sequence[str]) -> Sequence[Mutant]:
    """Return the mutants of these names, or all of them.

    Raises:
        SystemExit: There is none of that name.
    """
    unknown = sorted(set(names) - {mutant.name for mutant in ALL})
    if unknown:
        raise SystemExit(f"there is no mutant {', '.join(unknown)}; --list shows those there are")
    return [mutant for mutant in ALL if not names or mutant.name in names]


def keep(results: Sequence[Result], *, writes_document: bool) -> None:
    facts = machine.facts()
    RESULTS.write_text(json.dumps(report.to_json(results, facts), indent=2) + "\n", "utf-8")
    if writes_document:
        text = report.placed(DOCUMENT.read_text("utf-8"), report.to_markdown(results, facts))
        DOCUMENT.write_text(text, "utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="repeatable")
    parser.add_argument("--list", action="store_true", help="show the mutants and end")
    parser.add_argument("--jobs", type=int, default=1, help="mutants examined at the same time")
    parser.add_argument("--why", action="store_true", help="show what the tests said, too")
    parser.add_argument("--write", action="store_true", help="put the table into docs/mutations.md")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    if given.write and given.only:
        parser.error("--write needs all mutants; leave --only out")
    return given


if __name__ == "__main__":
    sys.exit(main())
