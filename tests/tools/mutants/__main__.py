"""python -m tests.tools.mutants TARGET [--count 60] [--seed 0]: see the package."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from queue import Queue

from .common import Mutant, sample
from .report import SURVIVORS, Results, conclude, describe, equivalent, explained
from .runner import Broken, Outcome, Workplace, digest, files_of
from .targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[3]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutants", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=60, help="mutants to judge (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that work side by side (default 1)")
    parser.add_argument("--limit", type=float, help="processor seconds a test may take (default: 2 x the baseline's)")
    parser.add_argument("--least", type=float, default=0.95, help="part that must be killed (default 0.95)")
    parser.add_argument("--match", default="", help="only mutants of files whose path contains this")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only mutants of these kinds, as --list names them")
    parser.add_argument("--list", action="store_true", help="show the sample, and run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree (default: this one)")
    return parser.parse_args()


def judge_all(
    chosen: list[Mutant], known: dict[tuple[str, ...], str], target: Target, args, results: Results
) -> Iterator[Mutant]:
    """Judge mutants in the order given until enough are; yields them as they come.

    One that does not build, or that computes the same, is no wrong kernel: the next one takes its place.
    """
    files = files_of(args.root, target)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(args.jobs) as pool:
        free: Queue[Workplace] = Queue()
        for job in range(args.jobs):
            free.put(Workplace(args.root, files, target, Path(folder) / str(job)))
        first = free.get()
        seconds = first.baseline({target.stage(mutant.file) for mutant in chosen[: args.count]}, args.limit)
        limit = args.limit or 30 + 2 * seconds
        print(f"the tests pass without a mutant, in {seconds:.0f} processor seconds", flush=True)
        free.put(first)

        def judge(mutant: Mutant) -> tuple[Mutant, Outcome]:
            workplace = free.get()
            try:
                return mutant, workplace.judge(mutant, limit)
            finally:
                free.put(workplace)

        try:
            waiting, wrong = iter(chosen), 0
            while wrong < args.count and (batch := list(islice(waiting, args.count - wrong))):
                yield from [mutant for mutant in batch if results.get(mutant)]
                running = [pool.submit(judge, mutant) for mutant in batch if not results.get(mutant)]
                for future in as_completed(running):
                    mutant, outcome = future.result()
                    results.add(mutant, outcome)
                    yield mutant
                outcomes = [(mutant, results.get(mutant)) for mutant in batch]
                wrong += sum(o.status != "unbuildable" and not equivalent(m, o, known) for m, o in outcomes)
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption waits for the mutants at work alone


def main() -> int:
    args = arguments()
    target = TARGETS[args.target]
    everything = [mutant for mutant in target.mutants(args.root) if args.match in mutant.file]
    if args.kinds:
        possible = sorted({mutant.kind for mutant in everything})
        if unknown := set(args.kinds) - set(possible):
            sys.exit(f"--kinds must be of {', '.join(possible)}, got {', '.join(sorted(unknown))}")
        everything = [mutant for mutant in everything if mutant.kind in args.kinds]
    chosen = sample(everything, args.seed)
    known = explained(args.root / SURVIVORS)
    print(f"{len(everything)} mutants of {args.target}, {min(args.count, len(everything))} of them by seed {args.seed}")
    if args.list:
        print("\n".join(describe(mutant, None, known) for mutant in chosen[: args.count]))
        return 0
    path = args.root / "build" / "mutants" / f"{args.target}.jsonl"
    results = Results(path, digest(args.root, files_of(args.root, target)))
    judged = []
    for mutant in judge_all(chosen, known, target, args, results):
        outcome = results.get(mutant)
        print(describe(mutant, outcome, known), flush=True)
        if outcome.status != "unbuildable":
            judged.append((mutant, outcome))
    text, enough = conclude(judged, known, args.least)
    print(text)
    return 0 if enough else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"{error}")
