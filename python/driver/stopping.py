"""How a training ends before its time: SIGTERM as an exception, a rank that is told to end, how to go on."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from .ranks import Ranks
from .settings import Settings

AGAIN = 5.0  # seconds, from an exception to the next: one that is raised inside a destructor is lost
GRACE = 5.0  # seconds, for the exception to end a rank that was told to; torchrun gives 30


class Terminated(BaseException):
    """The process was told to end, by torchrun for instance, when another rank has died."""


def stop_rank(here: Ranks, chosen: Settings | None, reason: str) -> NoReturn:
    """Say why one of several processes ends, and how to go on, and end it."""
    print(f"\nRank {here.rank} of {here.world} stops: {reason}", file=sys.stderr)
    print(f"If another rank died, this is why. {how_to_go_on(chosen, here)}", file=sys.stderr, flush=True)
    os._exit(1)  # the process group is broken: to leave it in order would be to wait for the dead


@contextmanager
def terminable(here: Ranks, chosen: Callable[[], Settings | None]):
    """SIGTERM as an exception, so that a message can be printed; raised again until it has arrived here."""

    def stop(number, frame):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise Terminated

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        with watched(here, chosen) if here.world > 1 else nullcontext():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watched(here: Ranks, chosen: Callable[[], Settings | None]):
    """A thread ends a rank after SIGTERM: where NCCL waits for a dead rank, no exception reaches the main thread."""
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell)  # Python's handler in C writes to it, whatever the main thread does
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what workers are told is not meant for us

    over = threading.Event()

    def watch() -> None:
        with open(told, "rb", buffering=0) as signals:
            while not over.is_set():
                if signals.read(1)[0] == signal.SIGTERM and not over.wait(GRACE):
                    stop_rank(here, chosen(), "it was told to end")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.write(tell, b"\0")
        watcher.join()  # it holds the process group, which must be gone before the interpreter ends
        os.close(tell)


def how_to_go_on(chosen: Settings | None, here: Ranks) -> str:
    """What is kept, and the command that continues."""
    if chosen is None:
        return "Nothing was trained yet."
    start = [sys.executable] if here.world == 1 else ["torchrun", "--nproc-per-node", str(here.world)]
    command = [*start, sys.argv[0], "--resume", "--output", chosen.output]
    return f"All that the last checkpoints hold is kept. To go on:\n\n    {shlex.join(command)}\n"
