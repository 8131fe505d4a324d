"""Small kernels that tell a repaired interpreter from the stock one.

Run as a program, under TRITON_INTERPRET=1, it prints what the interpreter as it is makes of bfloat16, as JSON.
"""

import json

import torch
import triton
import triton.language as tl


@triton.jit
def plus_one(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


@triton.jit
def plus_one_unmasked(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at) + 1, mask=at < n)


@triton.jit
def store_unmasked(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n))


@triton.jit
def strided_copy(x, out, stride, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at * stride, mask=at < n), mask=at < n)


@triton.jit
def one_of_two(x, y, out, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(tl.where(at % 2 == WHICH, x + at, y + at)))


@triton.jit
def masked_without_other(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n))


@triton.jit
def order_of_programs(ticket, out, WIDTH: tl.constexpr):
    at = tl.program_id(0) * WIDTH + tl.program_id(1)
    tl.store(out + tl.atomic_add(ticket, 1), at)


@triton.jit
def sum_by_the_last(x, parts, counter, out, SEM: tl.constexpr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    program, at = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(parts + program * BLOCK + at, tl.load(x + program * BLOCK + at))
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem=SEM) == tl.num_programs(0) - 1:
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(tl.num_programs(0)):
            total += tl.load(parts + i * BLOCK + at)
        tl.store(out, tl.sum(total))


@triton.jit
def shift(x, out, BY: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at + BY))


@triton.jit
def divide_exactly(x, out, divisor: tl.float64):
    tl.store(out, tl.load(x) / divisor)


@triton.jit
def divide(x, out, divisor):
    tl.store(out, tl.load(x) / divisor)


@triton.jit
def _square(x):
    return x * x


@triton.jit
def sum_of_squares(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(_square(tl.load(x + tl.arange(0, BLOCK)).to(tl.float32))))


@triton.jit
def fails_inside(x, out):
    tl.store(out, _refuse(tl.load(x)))


@triton.jit
def _refuse(x):
    tl.static_assert(False, "refused")
    return x


@triton.jit
def matmul(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    left, right = tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n)
    tl.store(out + m * N + n, tl.dot(left, right, input_precision=PRECISION))


@triton.jit
def binary(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(x + at), tl.load(y + at)
    if OP == "add":
        result = a + b
    elif OP == "sub":
        result = a - b
    elif OP == "mul":
        result = a * b
    elif OP == "div":
        result = a / b
    elif OP == "max":
        result = tl.maximum(a, b)
    elif OP == "less":
        result = tl.where(a < b, a, b)
    elif OP == "fma":
        result = tl.fma(a, b, a)
    elif OP == "neg":
        result = -a + 2.5 * b
    tl.store(out + at, result.to(out.dtype.element_ty))


@triton.jit
def cast(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.autotune(configs=[triton.Config({"BLOCK": b}) for b in (4, 8, 16)], key=["n"])
@triton.jit
def tuned(x, seen, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)
    tl.store(seen + BLOCK, BLOCK)


@triton.autotune(configs=[triton.Config({"BLOCK": b}) for b in (4, 8)], key=["n"], restore_value=["x"])
@triton.jit
def tuned_in_place(x, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": torch.maximum,
    "less": torch.minimum,
    "fma": lambda a, b: (a.float() * b.float() + a.float()).bfloat16(),
    "neg": lambda a, b: -a + 2.5 * b,
}


def random(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run_binary(name):
    a, b, out = random(64), random(64, seed=1), random(64, seed=2)
    binary[(1,)](a, b, out, OP=name, BLOCK=64)
    return torch.equal(out, OPERATIONS[name](a, b))


def run_dot():
    a, b, out = random(16, 16), random(16, 16, seed=1), torch.empty(16, 16)
    matmul[(1,)](a, b, out, 16, 16, 16, "ieee")
    return torch.allclose(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def run_cast(source, target):
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -0.0])
    values = torch.cat([1000 * random(60, dtype=torch.float32), halfway]).clamp(-60000, 60000).to(source)
    out = torch.empty(64, dtype=target)
    cast[(1,)](values, out, BLOCK=64)
    return torch.equal(out, values.to(target))


CASTS = {
    "round": (torch.float32, torch.bfloat16),
    "from_half": (torch.half, torch.bfloat16),
    "from_double": (torch.double, torch.bfloat16),
    "from_int": (torch.int32, torch.bfloat16),
    "to_half": (torch.bfloat16, torch.half),
    "to_double": (torch.bfloat16, torch.double),
    "to_int": (torch.bfloat16, torch.int32),
}
CASES = {name: (run_binary, name) for name in OPERATIONS} | {"dot": (run_dot,)}
CASES |= {name: (run_cast, *dtypes) for name, dtypes in CASTS.items()}
RIGHT_IN_STOCK = {"max", "to_half", "to_double", "to_int"}  # by way of float32


def bf16_results() -> dict[str, bool]:
    """Is it right? For each thing done with bfloat16."""
    right = {}
    for name, (run, *arguments) in CASES.items():
        try:
            right[name] = run(*arguments)
        except triton.InterpreterError:
            right[name] = False
    return right


if __name__ == "__main__":
    print(json.dumps(bf16_results()))
