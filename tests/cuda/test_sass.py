"""The reader of SASS, on what cuobjdump prints for each generation, and on instructions made up."""

from collections import Counter

import pytest

from bench import sass

# A loop of a streaming kernel: two loads, the first guarded; both are used by what follows.
AMPERE = """
		Function : _Z4flat
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_PTX_SM(EF_CUDA_SM80)"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                      /* 0x00000a0000017a02 */
                                                                               /* 0x000fe40000000f00 */
        /*0010*/                   S2R R0, SR_TID.X ;                          /* 0x0000000000007919 */
        /*0020*/              @!P0 LDG.E.EF.128 R8, [R2.64] ;                  /* 0x0000000402088981 */
        /*0030*/                   LDG.E.EF.128 R12, [R2.64+0x10] ;            /* 0x000010040204b981 */
        /*0040*/                   BAR.SYNC 0x0 ;                              /* 0x0000000000007b1d */
        /*0050*/                   FMUL R4, R15, c[0x0][0x18c] ;               /* 0x000000120f047220 */
        /*0060*/                   HMMA.1688.F32.TF32 R20, R16, R6, RZ ;       /* 0x000000061014723c */
        /*0070*/                   STG.E.128 [R2.64], R4 ;                     /* 0x0000000402007986 */
        /*0080*/               @P0 BRA 0x20 ;                                  /* 0x0000000000280947 */
        /*0090*/                   EXIT ;                                      /* 0x000000000000794d */
        /*00a0*/                   BRA 0xa0;                                   /* 0xfffffffc00fc7947 */
        /*00b0*/                   NOP;                                        /* 0x0000000000007918 */
		..........
"""
HOPPER = AMPERE.replace("[R2.64", "desc[UR4][R2.64").replace("BAR.SYNC 0x0", "BAR.SYNC.DEFER_BLOCKING 0x0")
BLACKWELL = HOPPER.replace("LDG.E.EF.128 R8,", "LDG.E.NA.128.CONSTANT R8,").replace("0x0000", "0x0012")


def lines(*instructions):
    """As cuobjdump prints them."""
    return sass.parse(
        "".join(f"        /*{16 * i:04x}*/   {each} ;   /* 0x00 */\n" for i, each in enumerate(instructions))
    )


@pytest.mark.parametrize("text", [AMPERE, HOPPER, BLACKWELL], ids=["sm_80", "sm_90", "sm_100"])
def test_every_generation_is_read(text):
    found = sass.functions(text)
    assert list(found) == ["_Z4flat"]
    facts = sass.facts(found["_Z4flat"])
    assert facts == sass.Facts(
        instructions=11,
        loads=Counter({128: 2}),
        stores=Counter({128: 1}),
        in_flight=2,
        barriers=1,
        tensor=1,
        double=0,
        local=0,
    )
    assert facts.instructions_a_load == 5.5


def test_functions_are_told_apart():
    found = sass.functions(AMPERE + HOPPER.replace("_Z4flat", "_Z4rows"))
    assert {symbol: len(code) for symbol, code in found.items()} == {"_Z4flat": 12, "_Z4rows": 12}


@pytest.mark.parametrize(
    ("opcode", "width"),
    [
        ("LDG.E", 32),
        ("LDG.E.U8", 8),
        ("LDG.E.U16", 16),
        ("LDG.E.S16.CONSTANT", 16),
        ("LDG.E.64.STRONG.GPU", 64),
        ("LDG.E.128", 128),
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.EF.128", 128),
        ("LDG.E.NA.128.CONSTANT", 128),
        ("LDG.E.LTC128B.128", 128),
        ("LDG.E.LTC128B", 32),
        ("LDG.E.ENL2.256", 256),
    ],
)
def test_widths(opcode, width):
    assert lines(f"{opcode} R4, [R2.64]")[0].width == width


def test_what_is_not_global_memory_is_no_load():
    facts = sass.facts(lines("LDS.128 R4, [R2]", "LDGSTS.E.128 [R1], [R2.64]", "LDC.64 R2, c[0x0][R3]"))
    assert facts.loads == facts.stores == Counter()
    assert facts.instructions_a_load == float("inf")


LOADS = [f"LDG.E.128 R{4 * i}, [R100.64+{16 * i:#x}]" for i in range(1, 9)]


@pytest.mark.parametrize(
    ("instructions", "most"),
    [
        ([], 0),
        (LOADS[:4], 4),
        ([*LOADS[:4], "FADD R50, R4, R8", *LOADS[4:6]], 4),
        ([*LOADS[:2], "FADD R50, R4, R8", *LOADS[2:6]], 4),
        # One at a time, as a loop that is not unrolled has them.
        ([LOADS[0], "FADD R50, R4, R51", LOADS[1], "FADD R50, R8, R50", LOADS[2]], 1),
        # Any of the four registers is a use; their neighbours are none.
        ([LOADS[0], "FADD R50, R50, R7", *LOADS[1:3]], 2),
        ([LOADS[0], "FADD R50, R3, R80", *LOADS[1:3]], 3),
        ([LOADS[0], "STG.E.128 [R60.64], R4", *LOADS[1:3]], 2),
        ([LOADS[0], "@!P1 FFMA R50, -R5.reuse, R51, |R52|", *LOADS[1:3]], 2),
        # An address that was loaded, and a register written again, wait as well.
        ([LOADS[0], "LDG.E.128 R20, [R4.64]", LOADS[5]], 2),
        ([LOADS[0], "MOV R6, RZ", LOADS[1]], 1),
        # Uniform and predicate registers, constants and addresses have numbers of their own.
        ([LOADS[0], "IADD3 R50, P4, R60, UR4, c[0x0][0x4]", "@P5 BRA 0x50", *LOADS[1:3]], 3),
        ([LOADS[0], "LDG.E R4, [R60.64]", LOADS[1]], 1),
        # Narrow loads do not count.
        (["LDG.E.64 R4, [R100.64]", "LDG.E R8, [R100.64]", LOADS[2]], 1),
        # Two sides of a branch are not added up; one that may fall through is followed.
        ([*LOADS[:2], "BRA 0x100", *LOADS[2:5]], 3),
        ([*LOADS[:2], "@P0 BRA 0x100", *LOADS[2:5]], 5),
        ([*LOADS[:2], "BRA.U UP0, 0x100", *LOADS[2:5]], 5),
        ([*LOADS[:2], "@P0 EXIT", *LOADS[2:5]], 5),
        ([*LOADS[:2], "EXIT", *LOADS[2:5]], 3),
        # 32 bytes at once are two.
        (["LDG.E.ENL2.256 R12, R8, desc[UR4][R2.64]", "FADD R50, R9, R10", LOADS[0]], 2),
        (["LDG.E.ENL2.256 R12, R8, desc[UR4][R2.64]", "FADD R50, R16, R7", LOADS[0]], 3),
    ],
)
def test_loads_in_flight(instructions, most):
    assert sass.loads_in_flight(lines(*instructions)) == most


@pytest.mark.parametrize(
    "instruction",
    [
        "DADD R4, R2, R6",
        "DFMA.RM R4, R2, R6, R8",
        "DMUL R4, R2, R6",
        "DSETP.GEU.AND P0, PT, R2, R4, PT",
        "DMNMX R4, R2, R6, !PT",
        "DMMA.8x8x4 R4, R2, R6, R8",
        "F2F.F64.F32 R4, R2",
        "F2F.F32.F64 R4, R2",
        "I2F.F64.S64 R4, R2",
        "I2F.F64 R4, R2",
        "F2I.F64.TRUNC R4, R2",
        "F2I.S64.F64.FLOOR R4, R2",
        "MUFU.RCP64H R4, R2",
        "MUFU.RSQ64H R4, R2",
        "@P0 DADD R4, R2, R6",
    ],
)
def test_double_precision_is_seen(instruction):
    assert sass.facts(lines(instruction)).double == 1


@pytest.mark.parametrize(
    "instruction",
    [
        "F2I.U64.TRUNC R4, R2",
        "I2F.U64.RP R4, R2",
        "F2FP.F16.F32.PACK_AB R4, R2, R3",
        "MUFU.RCP R4, R2",
        "DEPBAR.LE SB0, 0x0",
    ],
)
def test_single_precision_is_none(instruction):
    assert sass.facts(lines(instruction)).double == 0


def test_barriers_tensor_cores_and_local_memory_are_counted():
    facts = sass.facts(
        lines(
            "BAR.SYNC.DEFER_BLOCKING 0x0",
            "@P0 BAR.SYNC 0x1, 0x80",
            "BAR.ARV 0x2, 0x40",
            "WARPSYNC.ALL",
            "HMMA.16816.F32.BF16 R4, R8, R12, R4",
            "DMMA.8x8x4 R4, R2, R6, R8",
            "STL.64 [R1], R4",
            "LDL R4, [R1]",
        )
    )
    assert (facts.barriers, facts.tensor, facts.local) == (3, 2, 2)


ELF = """
    9    690     44  0  4                    CUDA_INFO       40    3        d .nv.info._Z1aPi

.nv.info
	<0x1>
	Attribute:	EIATTR_REGCOUNT
	Format:	EIFMT_SVAL
	Value:	function: a(0xd)	register count: 10
.nv.info._Z1aPi
	<0x1>
	Attribute:	EIATTR_KPARAM_INFO
	Format:	EIFMT_SVAL
	Value:	Index : 0x0	Ordinal : 0x0	Offset  : 0x0	Size    : 0x8
	<0x2>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x100 0x1 0x1
	<0x3>
	Attribute:	EIATTR_CRS_STACK_SIZE
	Format:	EIFMT_SVAL
	Value:	0x0


.nv.info._Z1bPi
	<0x1>
	Attribute:	EIATTR_REQNTID
	Format:	EIFMT_SVAL
	Value:	0x40 0x2 0x1


.nv.info._Z1cPi
	<0x1>
	Attribute:	EIATTR_MAXREG_COUNT
	Format:	EIFMT_HVAL
	Value:	0xff
"""


def test_sizes_of_blocks_are_read():
    """At most that many, exactly that many, nothing said."""
    assert sass.block_sizes(ELF) == {"_Z1aPi": 256, "_Z1bPi": 128, "_Z1cPi": 1024}


def test_barriers_of_loops_count_as_often_as_these_run():
    """One before, one in an outer loop, one in the loop inside; a branch forward and one to itself close no loop."""
    code = lines(
        "BAR.SYNC 0x0", "BAR.SYNC 0x0", "BAR.SYNC 0x0", "@P0 BRA 0x20", "@P1 BRA 0x10", "@P2 BRA 0x70", "BRA 0x60"
    )
    assert [each.repeats for each in code] == [None, None, None, 0x20, 0x10, None, None]
    assert sass.barriers_run(code, 4) == 1 + 4 + 16
    assert sass.barriers_run(code, 1) == sass.facts(code).barriers
