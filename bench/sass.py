"""Reads SASS, the machine code of NVIDIA's GPUs, as cuobjdump prints it: what a kernel's instructions are.

Spellings differ between generations: addresses are `[R2.64]` on sm_80 and `desc[UR4][R2.64]` from sm_90 on, modifiers
come in any order and number (`LDG.E.NA.128.CONSTANT`), some sm_100 loads of 32 bytes have two registers to fill. Only
opcodes, their modifiers and the numbers of vector registers are looked at.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*(.*?)\s*;", re.MULTILINE)
FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
REGISTER = re.compile(r"(?<!\w)R(\d+)")
WIDTH = re.compile(r"\.(?:[US])?(8|16|64|128|256)\b")
# Calculations in double precision, conversions included.
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX|MMA|SET)\b|MUFU\.\w*64|(F2F|F2I|I2F|FRND)\b.*\.F64\b")
BOUNDS = re.compile(r"^\.nv\.info\.(\S+)|EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:.*\s+Value:\s+((?:0x\w+ ?)+)", re.M)
LARGEST_BLOCK = 1024  # what a kernel is compiled for that does not say


class Instruction(NamedTuple):
    """One instruction: "@!P0", "LDG.E.128", "R4, desc[UR4][R2.64]"."""

    predicate: str  # empty if it always runs
    opcode: str
    operands: str
    address: int

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bits that a load or a store moves, for one thread."""
        found = WIDTH.search(self.opcode)
        return int(found[1]) if found else 32

    @property
    def registers(self) -> set[int]:
        """Numbers of the vector registers that it names, to write or to read: the first of each operand."""
        return {int(number) for number in REGISTER.findall(self.operands)}

    @property
    def leaves(self) -> bool:
        """Whether the next line is never what runs next."""
        jumps = self.opcode == "BRA" and re.match(r"`\(|0x", self.operands)
        return not self.predicate and bool(jumps or self.name in ("EXIT", "RET", "JMP", "BRX"))

    @property
    def repeats(self) -> int | None:
        """For a branch back, which closes a loop, the address of the loop's first instruction."""
        target = re.search(r"0x([0-9a-f]+)$", self.operands) if self.name == "BRA" else None
        return int(target[1], 16) if target and int(target[1], 16) < self.address else None


class Facts(NamedTuple):
    """Static counts of one kernel's instructions: a loop's body counts once."""

    instructions: int  # padding aside
    loads: Counter  # of global memory, by width in bits
    stores: Counter
    in_flight: int  # most 16-byte loads issued before something uses a result of one of them
    barriers: int
    tensor: int  # HMMA and DMMA
    double: int
    local: int  # loads and stores of local memory: spills, arrays

    @property
    def wide_loads(self) -> int:
        """16-byte loads."""
        return self.loads[128] + 2 * self.loads[256]

    @property
    def instructions_a_load(self) -> float:
        """Instructions for each 16-byte load."""
        return self.instructions / self.wide_loads if self.wide_loads else float("inf")


def functions(text: str) -> dict[str, list[Instruction]]:
    """Symbol -> instructions in the order of their addresses, of what `cuobjdump -sass` printed."""
    parts = FUNCTION.split(text)[1:]
    return {symbol: parse(body) for symbol, body in zip(parts[::2], parts[1::2], strict=True)}


def parse(text: str) -> list[Instruction]:
    """Instructions of one function."""
    return [Instruction(*found, int(address, 16)) for address, *found in LINE.findall(text)]


def facts(instructions: list[Instruction]) -> Facts:
    """Counts of one kernel."""
    kept = [each for each in instructions if each.name != "NOP"]
    names = Counter(each.name for each in kept)
    return Facts(
        instructions=len(kept),
        loads=Counter(each.width for each in kept if each.name == "LDG"),
        stores=Counter(each.width for each in kept if each.name == "STG"),
        in_flight=loads_in_flight(kept),
        barriers=names["BAR"],
        tensor=names["HMMA"] + names["DMMA"],
        double=sum(bool(DOUBLE.match(each.opcode)) for each in kept),
        local=names["LDL"] + names["STL"],
    )


def barriers_run(instructions: list[Instruction], rounds: int) -> int:
    """Barriers that a block comes by where every loop that holds some is run `rounds` times, within one another too."""
    loops = [(each.repeats, each.address) for each in instructions if each.repeats is not None]
    barriers = [each.address for each in instructions if each.name == "BAR"]
    return sum(rounds ** sum(first <= at <= last for first, last in loops) for at in barriers)


def loads_in_flight(instructions: Iterable[Instruction]) -> int:
    """Most 16-byte loads of global memory that are issued before an instruction uses what one of them has loaded.

    A use is a read, or another write, of any of the registers; a load's own address is a read. Code is followed in the
    order of its addresses up to a branch that is always taken, so that the two sides of a branch are not added up.
    """
    most, waiting, count = 0, set(), 0
    for each in instructions:
        if waiting & each.registers:
            waiting, count = set(), 0
        if each.name == "LDG" and each.width >= 128:
            waiting |= _loaded(each)
            count += each.width // 128
            most = max(most, count)
        if each.leaves:
            waiting, count = set(), 0
    return most


def _loaded(load: Instruction) -> set[int]:
    """Registers that a wide load fills; of 32 bytes either eight in a row or two fours."""
    first, *others = load.operands.split(",")
    targets = [first, *(each for each in others if re.fullmatch(r"\s*R\d+", each))]
    each_fills = load.width // 32 // len(targets)
    starts = [int(REGISTER.search(each)[1]) for each in targets if REGISTER.search(each)]
    return {start + i for start in starts for i in range(each_fills)}


def block_sizes(elf: str) -> dict[str, int]:
    """Symbol -> threads of the largest block that the kernel may have, of what `cuobjdump -elf` printed."""
    found, symbol = {}, ""
    for section, value in BOUNDS.findall(elf):
        if section:
            symbol = section
            found[symbol] = LARGEST_BLOCK
        else:
            x, y, z = (int(size, 16) for size in value.split())
            found[symbol] = x * y * z
    return found
