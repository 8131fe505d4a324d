"""What kernels do to memory: bounds of their tensors, bytes and sectors, races between programs. See `interpreter`."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

SECTOR = 32  # bytes: the unit in which a GPU reads and writes its memory


class OutOfBounds(IndexError):
    """A kernel touched memory outside the tensor that its pointer came from."""


class Traffic(NamedTuple):
    """What tl.load, tl.store or atomics moved.

    bytes: distinct ones, access by access (one access: one call in one program); sectors: distinct 32-byte ones.
    """

    bytes: int = 0
    sectors: int = 0
    accesses: int = 0

    @property
    def sector_use(self) -> float:
        """The part of the touched sectors that was asked for, 0 to 1; 1 where nothing was."""
        return self.bytes / (SECTOR * self.sectors) if self.sectors else 1.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


class Dot(NamedTuple):
    """One tl.dot: dtype of its operands, of its accumulator, and its precision: ieee, tf32, tf32x3, ..."""

    operands: str
    accumulator: str
    precision: str


class Argument:
    """A tensor given to a launch: the bytes a kernel may touch through it."""

    def __init__(self, launch: Launched, name: str, tensor: torch.Tensor):
        self.launch, self.name, self.tensor = launch, name, tensor
        self.start = tensor.data_ptr()
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.stop = self.start + (last + 1) * tensor.element_size() if tensor.numel() else self.start

    def __str__(self) -> str:
        return f"{self.name} {tuple(self.tensor.shape)} of {self.launch.kernel}"


class Launched:
    """One launch: kernel, grid, tensors by parameter name."""

    def __init__(self, kernel: str):
        self.kernel, self.grid = kernel, (0, 0, 0)
        self.races: Races | None = None  # if they are looked for
        self.arguments: dict[int, Argument] = {}  # by id of the tensor

    def add(self, name: str, value) -> None:
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                self.add(f"{name}[{i}]", item)
        elif isinstance(value := getattr(value, "base", value), torch.Tensor):
            self.arguments[id(value)] = Argument(self, name, value)


class Counts:
    """What ran inside `counting()`."""

    def __init__(self):
        self.launches: list[Launched] = []
        self.dots: Counter[Dot] = Counter()
        self._traffic: dict[tuple[Argument, str], Traffic] = {}

    def loads(self, tensor: torch.Tensor | None = None) -> Traffic:
        """What was loaded from `tensor`, given to kernels whole or in parts; None: from everything.

        LookupError if no kernel was given it: a typing error must not look like no traffic.
        """
        return self._sum("load", tensor)

    def stores(self, tensor: torch.Tensor | None = None) -> Traffic:
        """What was stored to `tensor`, or to everything."""
        return self._sum("store", tensor)

    def atomics(self, tensor: torch.Tensor | None = None) -> Traffic:
        """What atomics changed in `tensor`, or in everything."""
        return self._sum("atomic", tensor)

    def rounded_dots(self) -> list[Dot]:
        """The kinds of dot that rounded float32 operands (tf32), and did not make up for it (tf32x3)."""
        return [dot for dot in self.dots if dot.operands == "fp32" and dot.precision not in ("ieee", "tf32x3")]

    def __str__(self) -> str:
        """A table: kernel, parameter, kind, bytes, use of sectors."""
        rows: dict[tuple[str, str, str], Traffic] = {}
        for (argument, kind), traffic in self._traffic.items():
            key = argument.launch.kernel, argument.name, kind
            rows[key] = rows.get(key, Traffic()) + traffic
        return "\n".join(
            f"{kernel:32} {name:24} {kind:6} {t.bytes:12,} B {t.sector_use:4.0%} of {t.sectors:,} sectors"
            for (kernel, name, kind), t in rows.items()
        )

    def _sum(self, kind, tensor):
        given = [argument for launch in self.launches for argument in launch.arguments.values()]
        if tensor is not None:
            whole = Argument(Launched(""), "", tensor)
            given = [a for a in given if whole.start <= a.start and a.stop <= whole.stop]
            if not given:
                raise LookupError(f"no kernel was given this tensor {tuple(tensor.shape)}, or a part of it")
        return sum((self._traffic.get((argument, kind), Traffic()) for argument in given), Traffic())

    def _add(self, kind, argument, addresses, size):
        distinct = np.unique(addresses)
        sectors = np.unique(np.concatenate([distinct, distinct + np.uint64(size - 1)]) // np.uint64(SECTOR))
        traffic = Traffic(distinct.size * size, sectors.size, 1)
        self._traffic[argument, kind] = self._traffic.get((argument, kind), Traffic()) + traffic


class Race(RuntimeError):
    """Two programs of one launch touched one byte, one of them by a store, and nothing says in which order."""


class Races:
    """Which programs touched which bytes in one launch; of the loads of a byte, the last one is remembered.

    Programs are ordered by atomics alone: whoever acquires a counter sees what those who released it had done before
    their last `tl.debug_barrier()`; without one, only the warp that does the atomic is known to have come so far. A
    time is the number of accesses before it.
    """

    def __init__(self):
        self.time = 0
        self.fenced: dict[int, int] = {}  # by program: its last barrier
        self.seen: dict[int, dict[int, int]] = {}  # by program: until when it sees each other program's accesses
        self.released: dict[int, dict[int, int]] = {}  # by address of a counter: what the next to acquire it sees
        self.marks: dict[tuple[int, str], np.ndarray] = {}  # by memory and kind: program and time, [2, bytes]

    def barrier(self, program: int) -> None:
        self.fenced[program] = self.time

    def atomic(self, program: int, addresses: list[int], acquires: bool, releases: bool) -> None:
        self.time += 1
        seen = self.seen.setdefault(program, {})
        for address in addresses:
            counter = self.released.setdefault(address, {})
            if acquires:
                seen.update({other: max(until, seen.get(other, 0)) for other, until in counter.items()})
            if releases:
                counter.update({**seen, program: self.fenced.get(program, 0)})

    def access(self, kind: str, program: int, argument: Argument, addresses: np.ndarray, size: int) -> None:
        """Raise Race if another program stored there unseen, or, for a store, loaded from there unseen."""
        self.time += 1
        memory = argument.tensor.untyped_storage()
        start = memory.data_ptr()
        at = ((addresses - np.uint64(start)).astype(np.int64)[:, None] + np.arange(size)).ravel()
        for earlier in ("store",) if kind == "load" else ("store", "load"):
            if (start, earlier) in self.marks:
                programs, times = self.marks[start, earlier][:, at]
                for other in np.unique(programs[(programs >= 0) & (programs != program)]).tolist():
                    if times[programs == other].max() > self.seen.get(program, {}).get(other, 0):
                        raise Race(f"{kind} of {argument} by program {program} after a {earlier} by program {other}")
        if (start, kind) not in self.marks:
            self.marks[start, kind] = np.full((2, memory.nbytes()), -1, dtype=np.int32)
        self.marks[start, kind][:, at] = [[program], [self.time]]
