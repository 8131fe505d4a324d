"""Results of mutants: kept as they come, so that an interrupted run goes on; survivors explained in a document."""

import json
import re
from pathlib import Path

from .common import Mutant, collapse
from .runner import Outcome

SURVIVORS = "tests/tools/mutants/survivors.md"
# One survivor: a list item of that document, whose lines are joined before they are read.
EXPLAINED = re.compile(
    r"`(?P<file>[^`]+)` (?P<function>\S+), (?P<kind>\w+): `(?P<old>[^`]+)` → `(?P<new>[^`]*)`: (?P<why>\S.*)"
)


class Results:
    """Lines of JSON in one file, each of one mutant of one state of the tree."""

    def __init__(self, path: Path, digest: str):
        self.path, self.digest = path, digest
        self.known: dict[tuple, Outcome] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            record = json.loads(line)
            if record["digest"] == digest:
                key = *(record[k] for k in ("file", "function", "kind", "original", "mutated")), record["line"]
                self.known[key] = Outcome(record["status"], record["by"], record["seconds"])

    def get(self, mutant: Mutant) -> Outcome | None:
        return self.known.get((*mutant.identity, mutant.line))

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        self.known[(*mutant.identity, mutant.line)] = outcome
        record = {k: v for k, v in mutant._asdict().items() if k != "edit"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**record, **outcome._asdict(), "digest": self.digest}) + "\n")


def explained(document: Path) -> dict[tuple[str, ...], str]:
    """Identities of the survivors that a document explains, and why they survive."""
    if not document.exists():
        return {}
    items = re.split(r"^- ", document.read_text(), flags=re.MULTILINE)
    found = (EXPLAINED.match(collapse(item)) for item in items)
    return {match.group("file", "function", "kind", "old", "new"): match["why"] for match in found if match}


def item(mutant: Mutant, reason: str = "") -> str:
    """What `explained` reads, ready for a reason."""
    return f"- `{mutant.file}` {mutant.function}, {mutant.kind}: `{mutant.original}` → `{mutant.mutated}`: {reason}"


def describe(mutant: Mutant, outcome: Outcome | None, known: dict[tuple[str, ...], str]) -> str:
    """Three lines of the table."""
    status = ""
    if outcome:
        status = f": {outcome.status} by {outcome.by}" if outcome.by else f": {outcome.status}"
        status += ", explained" if outcome.status == "survived" and mutant.identity in known else ""
    where = f"{mutant.file}:{mutant.line} {mutant.function}, {mutant.kind}"
    return f"{where}{status}\n  - {mutant.original}\n  + {mutant.mutated}"


def equivalent(mutant: Mutant, outcome: Outcome, known: dict[tuple[str, ...], str]) -> bool:
    """Is it explained as one that computes the same, and was it not killed all the same?"""
    return outcome.status != "killed" and known.get(mutant.identity, "").startswith("equivalent")


def conclude(judged: list[tuple[Mutant, Outcome]], known: dict[tuple[str, ...], str], least: float) -> tuple[str, bool]:
    """The figures, and whether at least that part was killed and each survivor is explained.

    A mutant explained as equivalent computes the same: no test can kill it, and the part is of the others.
    """
    count = {status: sum(o.status == status for _, o in judged) for status in ("killed", "timeout", "survived")}
    left = [mutant for mutant, outcome in judged if outcome.status != "killed"]
    same = sum(equivalent(mutant, outcome, known) for mutant, outcome in judged)
    total = len(judged) - same
    rate = count["killed"] / total if total else 0.0
    unexplained = [mutant for mutant in left if mutant.identity not in known]
    text = f"{count['killed']} of {total} killed, {rate:.1%}; {len(judged)} drawn, {count['survived']} survived, "
    text += f"{count['timeout']} timeout, of which {same} equivalent"
    if unexplained:
        text = "\n".join(["to be killed or explained:", *map(item, unexplained), text])
    return text, bool(total) and rate >= least and not unexplained
