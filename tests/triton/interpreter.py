"""Triton's interpreter, TRITON_INTERPRET=1, made fit to judge a kernel: repaired, checked and counted.

`repair()` changes, for the process, what triton 3.8's own interpreter does:

- bfloat16: dots, arithmetic and comparisons on the values, not on the bit patterns; casts round to nearest even;
- `tl.dot` of float32 in tf32 rounds its operands to tf32, in tf32x3 it is the sum of three such products, and its
  shapes must be those a tensor core takes;
- a Python float given to a kernel is float32, as in a real launch, or float64 where the parameter is annotated so;
- a lane that is masked off and has no `other` reads NaN (integers: their largest value), for it is undefined;
- every load, store and atomic must stay inside the tensor its pointer came from, else `OutOfBounds`;
- autotuning needs no driver: every configuration runs;
- NaN and infinity are values, not warnings; errors come as they were raised; device functions are called faster.

`counting()` counts launches, bytes, sectors and dots, `program_order(seed)` permutes the programs of every launch,
`without_races()` raises `Race` where the result depends on their order.
"""

import contextlib
import dataclasses
import random
import warnings
from typing import ClassVar

import numpy as np
import triton
import triton.language as tl
from triton.runtime import autotuner, interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import _normalize_ty

from tests.triton.interpreter_memory import Argument, Counts, Dot, Launched, OutOfBounds, Race, Races, Traffic

__all__ = ["Counts", "Dot", "OutOfBounds", "Race", "Traffic", "counting", "only_configuration", "program_order"]
__all__ += ["repair", "unfit", "without_races"]


class _State:
    """What the repaired interpreter, one for the process, is to do."""

    repaired = False
    counts: Counts | None = None
    seed: int | None = None
    configuration: int | None = None
    races = False
    launch = Launched("")


def unfit() -> str | None:
    """Why `repair()` cannot be had here, or None."""
    if not triton.__version__.startswith("3.8."):
        return f"the interpreter's repairs fit triton 3.8, not {triton.__version__}"
    if not isinstance(tl.sum, interpreter.InterpretedFunction):
        return "TRITON_INTERPRET=1 must be set before triton is imported"
    return None


def repair() -> None:
    """Repair the interpreter for the whole process; again is nothing. RuntimeError where `unfit()` has a reason."""
    if reason := unfit():
        raise RuntimeError(reason)
    if _State.repaired:
        return
    _State.repaired = True
    builder = interpreter.interpreter_builder
    builder.__class__ = _Builder
    # Without debug it computes which integers overflow and looks at none: half of a kernel's time.
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    builder.codegen_fns["min_dot_size"] = _min_dot_size
    interpreter.GridExecutor = _Executor
    interpreter.InterpretedFunction.__call__ = _call_device_function
    interpreter._convert_float = _convert_float
    interpreter._implicit_cvt = _implicit_cvt
    autotuner.Autotuner.run = _run_every_configuration


@contextlib.contextmanager
def counting():
    """Count what kernels do: yields `Counts`. Tensors given to kernels live until these are dropped."""
    with _state(counts=Counts()):
        yield _State.counts


def program_order(seed: int | None):
    """Run the programs of every launch in an order drawn from `seed`; None: in ascending order."""
    return _state(seed=seed)


def without_races():
    """Raise Race if a program depends on another one of its launch that no atomic and barrier put before it."""
    return _state(races=True)


def only_configuration(index: int):
    """Of an autotuned kernel run only one configuration; without this all run, and the last one's results stay."""
    return _state(configuration=index)


@contextlib.contextmanager
def _state(**changes):
    before = {name: getattr(_State, name) for name in changes}
    for name, value in changes.items():
        setattr(_State, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_State, name, value)


# ---- Launches


class _Executor(interpreter.GridExecutor):
    def __call__(self, *args, **kwargs):
        with np.errstate(all="ignore"), warnings.catch_warnings(), _state(launch=Launched(self.fn.__name__)):
            warnings.simplefilter("ignore", RuntimeWarning)
            if _State.counts:
                _State.counts.launches.append(_State.launch)
            _State.launch.races = Races() if _State.races else None
            everything = interpreter._patch_lang(_Language)
            try:
                super().__call__(*args, **kwargs)
            except interpreter.InterpreterError as error:
                raise error.__cause__ from None
            finally:
                everything.restore()

    def _init_args_hst(self, args_dev, kwargs):
        args, kwargs = super()._init_args_hst(args_dev, kwargs)
        for name, value in [*zip(self.arg_names, args, strict=False), *kwargs.items()]:
            _State.launch.add(name, value)
        args = [self._annotated(name, value) for name, value in zip(self.arg_names, args, strict=False)]
        return args, {name: self._annotated(name, value) for name, value in kwargs.items()}

    def _annotated(self, name, value):
        """A float whose parameter is annotated tl.float64 as such a tensor; anything else as it is."""
        if isinstance(value, float) and _normalize_ty(self.fn.__annotations__.get(name, "")) == "fp64":
            return tl.tensor(TensorHandle(np.array([value]), tl.float64), tl.float64)
        return value


class _Language:
    """Stands for a kernel that sees all of triton.language, so that it is patched once a launch."""

    __globals__: ClassVar = {"tl": tl, "core": tl.core}


def _call_device_function(self, *args, **kwargs):
    # Triton patches its language at every call of a device function, and wraps its errors once more.
    return self.rewrite()(*args, **kwargs)


class _Pointer(tl.pointer_type):
    """A pointer's type that remembers the tensor it came from: the interpreter hands it on in pointer arithmetic."""

    def __init__(self, stock: tl.pointer_type, argument: Argument):
        super().__init__(stock.element_ty, stock.address_space, stock.const)
        self.argument = argument


def _implicit_cvt(value, stock=interpreter._implicit_cvt):
    if isinstance(value, float):
        return tl.tensor(TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    converted = stock(value)
    if argument := _State.launch.arguments.get(id(value)):
        converted.handle.dtype = _Pointer(converted.handle.dtype, argument)
    return converted


def _run_every_configuration(self, *args, **kwargs):
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    configurations = self.prune_configs(kwargs)
    if _State.configuration is not None:
        configurations = [configurations[_State.configuration]]
    for configuration in configurations:
        given = {**self.nargs, **kwargs, **configuration.all_kwargs()}
        if configuration.pre_hook:
            configuration.pre_hook(given)
        self.pre_hook(given)
        result = self.fn.run(*args, **kwargs, **configuration.all_kwargs())
        if configuration is not configurations[-1]:
            self.post_hook(given, exception=None)
    return result


# ---- bfloat16, which numpy lacks: the interpreter keeps its bits in uint16


def _widen(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even."""
    values = np.asarray(values, dtype=np.float32, order="C")
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(_widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _narrow_result(handle: TensorHandle) -> TensorHandle:
    """Back to bfloat16, but for comparisons."""
    return TensorHandle(_narrow(handle.data), tl.bfloat16) if handle.data.dtype.kind == "f" else handle


def _convert_float(data, source, target, rounding, stock=interpreter._convert_float):
    if (source, target) == (tl.bfloat16, tl.float32):
        return _widen(data).view(np.uint32)
    if (source, target) == (tl.float32, tl.bfloat16) and rounding != interpreter._ir.ROUNDING_MODE.RTZ:
        return _narrow(data.view(np.float32))
    return stock(data, source, target, rounding)


# ---- Dots


def _min_dot_size(lhs, rhs):
    """Smallest (M, N, K), as triton's compiler for NVIDIA GPUs demands it."""
    return 1, 1, {8: 32, 16: 16, 32: 8, 64: 4}[lhs.scalar.primitive_bitwidth]


def _to_tf32(handle: TensorHandle) -> TensorHandle:
    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    return TensorHandle(((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32), tl.float32)


def _rest(whole: TensorHandle, rounded: TensorHandle) -> TensorHandle:
    """What rounding has lost; nothing of what is not finite, as in triton's code for tf32x3."""
    lost = whole.data - rounded.data
    return TensorHandle(np.where(np.isnan(lost), np.float32(0), lost), tl.float32)


# ---- Memory


def _poison(dtype: np.dtype, is_bf16: bool):
    if is_bf16:
        return np.uint16(0x7FC0)
    if dtype.kind == "f":
        return dtype.type(np.nan)
    return dtype.type(True if dtype.kind == "b" else np.iinfo(dtype).max)


def _access(kind: str, pointers: TensorHandle, mask: TensorHandle | None, semantics=None) -> None:
    """Check, and count if asked to, the lanes that are not masked off; semantics: of an atomic."""
    addresses, size = pointers.data, max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    if mask is not None:
        lanes = np.asarray(mask.data)
        addresses = addresses if lanes.all() else np.broadcast_to(addresses, lanes.shape)[lanes]
    known = getattr(pointers.dtype, "argument", None)
    outside = addresses.ravel()
    for argument in [known] if known else _State.launch.arguments.values():
        inside = (outside >= argument.start) & (outside <= argument.stop - size)
        if _State.counts and inside.any():
            _State.counts._add(kind, argument, outside[inside], size)
        if _State.launch.races and inside.any():
            _look_for_races(kind, argument, outside[inside], size, semantics)
        outside = outside[~inside]
    if outside.size:
        where = f"{known}, {int(outside[0]) - known.start} bytes from its start" if known else "every tensor"
        program = interpreter.interpreter_builder.grid_idx
        raise OutOfBounds(f"{kind} of {outside.size} lanes outside {where}, in program {program}")


def _look_for_races(kind, argument, addresses, size, semantics):
    races, program = _State.launch.races, interpreter.interpreter_builder.program()
    if kind != "atomic":
        races.access(kind, program, argument, addresses, size)
    else:
        acquires, releases = (semantics.name in (name, "ACQUIRE_RELEASE") for name in ("ACQUIRE", "RELEASE"))
        races.atomic(program, addresses.tolist(), acquires, releases)


BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)


class _Builder(interpreter.InterpreterBuilder):
    """The operations of the interpreter."""

    def set_grid_dim(self, *grid):
        super().set_grid_dim(*grid)
        _State.launch.grid = grid
        self.order = list(np.ndindex(*grid))
        if _State.seed is not None:
            random.Random(_State.seed).shuffle(self.order)

    def set_grid_idx(self, x, y, z):
        _, ny, nz = self.grid_dim
        super().set_grid_idx(*self.order[(x * ny + y) * nz + z])

    def program(self):
        """Number of the program that runs."""
        (_, ny, nz), (x, y, z) = self.grid_dim, self.grid_idx
        return (x * ny + y) * nz + z

    def create_barrier(self):
        if _State.launch.races:
            _State.launch.races.barrier(self.program())

    def get_bf16(self, value):
        return TensorHandle(_narrow(np.array([value], dtype=np.float32)), tl.bfloat16)

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if target == tl.bfloat16 and source not in (tl.float32, tl.bfloat16):
            return TensorHandle(_narrow(src.data.astype(np.float32)), tl.bfloat16)
        return super().cast_impl(src, dst_type)

    def unary_op(self, arg, op):
        return _narrow_result(super().unary_op(_wide(arg), op)) if _is_bf16(arg) else super().unary_op(arg, op)

    def binary_op(self, lhs, rhs, op):
        if op in BITWISE or not (_is_bf16(lhs) or _is_bf16(rhs)):
            return super().binary_op(lhs, rhs, op)
        return _narrow_result(super().binary_op(_wide(lhs), _wide(rhs), op))

    def ternary_op(self, lhs, rhs, other, op):
        if op is np.where and rhs.dtype is not other.dtype and isinstance(other.dtype, _Pointer):
            other = TensorHandle(other.data, tl.pointer_type(other.dtype.element_ty))  # of either tensor
        if op is np.where or not _is_bf16(other):
            return super().ternary_op(lhs, rhs, other, op)
        return _narrow_result(super().ternary_op(_wide(lhs), _wide(rhs), _wide(other), op))

    def create_fma(self, x, y, z):
        result = super().create_fma(_wide(x), _wide(y), _wide(z))
        return _narrow_result(result) if _is_bf16(z) else result

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        precision = input_precision.name.lower()
        if _State.counts:
            _State.counts.dots[Dot(str(a.dtype.scalar), str(d.dtype.scalar), precision)] += 1
        a, b = _wide(a), _wide(b)
        if a.dtype.scalar != tl.float32 or precision not in ("tf32", "tf32x3"):
            return super().create_dot(a, b, d, input_precision, max_num_imprecise_acc)
        high, right = _to_tf32(a), _to_tf32(b)
        if precision == "tf32x3":
            low, below = (_to_tf32(_rest(whole, rounded)) for whole, rounded in ((a, high), (b, right)))
            for one, other in ((low, right), (high, below)):
                d = super().create_dot(one, other, d, input_precision, max_num_imprecise_acc)
        return super().create_dot(high, right, d, input_precision, max_num_imprecise_acc)

    def create_masked_load(self, ptrs, mask, other, *rest):
        _access("load", ptrs, mask)
        element = ptrs.get_element_ty()
        dtype = interpreter._get_np_dtype(element)
        if other is None:
            other = TensorHandle(np.full(ptrs.data.shape, _poison(dtype, element == tl.bfloat16), dtype), element)
        return super().create_masked_load(ptrs, mask, other, *rest)

    def create_masked_store(self, ptrs, value, mask, *rest):
        _access("store", ptrs, mask)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(self, op, ptr, val, mask, sem, scope):
        _access("atomic", ptr, mask, sem)
        if _is_bf16(val):
            raise NotImplementedError("atomics on bfloat16 are not repaired")
        return super().create_atomic_rmw(op, ptr, val, mask, sem, scope)

    def create_atomic_cas(self, ptr, cmp, val, sem, scope):
        _access("atomic", ptr, None, sem)
        return super().create_atomic_cas(ptr, cmp, val, sem, scope)
