"""Mutants are what they should be, of kernels only, and the runner tells killed from survived."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from tests.support import ROOT
from tests.tools.mutants import common, cpp_source, python_source
from tests.tools.mutants.__main__ import judge_all
from tests.tools.mutants.report import SURVIVORS, Results, conclude, describe, explained, item
from tests.tools.mutants.runner import Broken, Outcome, Workplace, digest, files_of
from tests.tools.mutants.targets import TARGETS, Target

PYTHON = '''
"""1 + 2 < 3 in the documentation."""
import triton
import triton.language as tl

CONFIGS = [triton.Config({"BLOCK": 64 + 64}, num_warps=4)]


def launch(a, b):
    """Host code: a < b."""
    return a[b - 1] if b > 1 else -a


@triton.autotune(configs=[triton.Config({"BLOCK": 8 * 2})], key=["n"])
@triton.jit
def kernel(a, out, b, stride_b, stride_c, low_share, high_share, BLOCK: tl.constexpr = 4 + 4):
    """Not this: a < b."""
    tl.static_assert(BLOCK > 1)  # nor this: a < b
%s
'''

CPP = """
#define SQUARE(x) ((x) * (x) + 1)
#include "a-b.h"
// a < b + 1
namespace n {
constexpr int size = 4 + 4;
template <class T, int N = (3 > 2)>
struct Pair {
  T low = T(1 + 1), high;
  int table[2 + 2];
};

template <class T>
void kernel(const T* a, T* out, int b, int row, int column) {
  static_assert(sizeof(T) > 1, "a < d");
%s
}
}  // namespace n
"""


def changes(source: str, template: str, generate) -> set[tuple[str, str]]:
    """Kind and mutated line of every mutant of a body."""
    indented = "\n".join(("    " if template is PYTHON else "  ") + line for line in source.splitlines())
    found = generate("file", template % indented)
    assert all(m.original in [common.collapse(line) for line in source.splitlines()] for m in found)
    assert all(m.function == "kernel" for m in found)
    return {(m.kind, m.mutated) for m in found}


python = partial(changes, template=PYTHON, generate=python_source.mutants)
cpp = partial(changes, template=CPP, generate=cpp_source.mutants)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c = a < b", {("comparison", "c = a <= b")}),
        ("c = a >= b", {("comparison", "c = a > b")}),
        ("c = a == b", {("comparison", "c = a != b")}),
        ("d = a + b", {("sign", "d = a - b")}),
        ("d = a - (b)  # - b", {("sign", "d = a + (b) # - b")}),
        ("d = a * b", {("product", "d = a + b")}),
        ("d = a / b", {("product", "d = a * b")}),
        ("d = a // b", {("index", "d = a % b")}),
        ("d = -a", {("sign", "d = (a)")}),
        ("d = not a", {("logic", "d = (a)")}),
        ("c = a & b", {("logic", "c = a | b"), ("mask", "c = (a)"), ("mask", "c = (b)")}),
        ("c = a and b", {("logic", "c = a or b")}),
        ("d = a + 1", {("sign", "d = a - 1"), ("offset", "d = a + 0"), ("offset", "d = a + 2")}),
        ("d = a + 0.5", {("sign", "d = a - 0.5"), ("offset", "d = a + 0.25"), ("offset", "d = a + 0.0")}),
        ("d = f(a, 1.0)", {("constant", "d = f(a, 0.0)"), ("constant", "d = f(a, 2.0)")}),
        ("d = a[:, None]", {("index", "d = a[None, :]")}),
        ("p = tl.program_id(0)", {("index", "p = tl.program_id(1)")}),
        ("d = tl.minimum(a, b)", {("extremum", "d = tl.maximum(a, b)")}),
        ("d = tl.where(a, b, BLOCK)", {("branch", "d = tl.where(a, BLOCK, b)")}),
        ("d = tl.sum(a, axis=0)", {("axis", "d = tl.sum(a, axis=1)")}),
        ("d = tl.sum(a, 1)", {("axis", "d = tl.sum(a, 0)")}),
        ("d = tl.sqrt(a)", {("function", "d = (a)")}),
        ("d = tl.load(a, mask=b)", {("mask", "d = tl.load(a, mask=(b) | True)")}),
        ("d = tl.load(a, b, other=0.0)", {("other", "d = tl.load(a, b, other=1.0)")}),
        ("tl.store(a, b)", {("statement", "pass")}),
        ("out += b", {("accumulation", "out = b"), ("sign", "out -= b"), ("statement", "pass")}),
        ("out = b", {("statement", "pass")}),
        ("d = stride_b", {("stride", "d = stride_c")}),
        ("d = high_share", {("sibling", "d = low_share")}),
        ('d = tl.dot(a, a, input_precision="ieee")', {("precision", 'd = tl.dot(a, a, input_precision="tf32")')}),
        ("for i in range(0, b): pass", {("bound", "for i in range(1, b): pass")}),
        ("d = tl.arange(0, BLOCK)", set()),
        ("d = ρ + b", {("sign", "d = ρ - b")}),
        ("d = low_missing", set()),
    ],
)
def test_python(line, expected):
    assert python(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bool c = a < b;", {("comparison", "bool c = a <= b;")}),
        ("bool c = a != b;", {("comparison", "bool c = a == b;")}),
        ("f<int>(a);", {("statement", ";")}),
        ("std::vector<float> v(b);", set()),
        ("int d = a + b;", {("sign", "int d = a - b;")}),
        ("int d = a * b;", {("product", "int d = a + b;")}),
        ("const T* d = a;", set()),
        ("int d = a % b;", {("index", "int d = a / b;")}),
        ("int d = -a;", {("sign", "int d = a;")}),
        ("bool c = !a;", {("logic", "bool c = a;")}),
        ("bool c = a && b;", {("logic", "bool c = a || b;"), ("mask", "bool c = a ;"), ("mask", "bool c = b;")}),
        ("d += b;", {("accumulation", "d = b;"), ("sign", "d -= b;"), ("statement", ";")}),
        ("out[b] = a;", {("statement", ";")}),
        ("__syncthreads();", {("statement", ";")}),
        ("int d = 7;", {("constant", "int d = 6;"), ("constant", "int d = 8;")}),
        ("float d = 0.5f;", {("constant", "float d = 0.25f;"), ("constant", "float d = 0.0f;")}),
        ("T d = a[1];", {("index", "T d = a[0];"), ("index", "T d = a[2];")}),
        ("float tile[32];", set()),
        ("constexpr int d = 1 + 2;", set()),
        ("T d = minimum(a, b);", {("extremum", "T d = maximum(a, b);")}),
        ("T d = c ? a : b;", {("branch", "T d = c ? b : a;")}),
        ("T d = a < b ? a : b;", {("branch", "T d = a < b ? b : a;")}),
        ("T d = a < b ? T(b) : a;", {("branch", "T d = a < b ? a : T(b);")}),
        (
            "T d = a < b ? f(b) : a;",
            {("comparison", "T d = a <= b ? f(b) : a;"), ("branch", "T d = a < b ? a : f(b);")},
        ),
        ("if (c) f();", {("branch", "if (!(c)) f();"), ("mask", "if (true || (c)) f();")}),
        ("if constexpr (b > 1) f(a);", set()),
        ("for (; c; i += b) f();", set()),
        ("int d = row;", {("sibling", "int d = column;")}),
        ("int d = p.x;", set()),
        (
            "int y = p.x + p.y;",
            {("sign", "int y = p.x - p.y;")} | {("sibling", f"int y = p.{c} + p.{c};") for c in "xy"},
        ),
        ('const char* s = "x < n + 1"; // x < n', set()),
        ("/* a < b */", set()),
        ("#pragma unroll 4", set()),
    ],
)
def test_cpp(line, expected):
    assert cpp(line) == expected


def test_only_kernels_are_mutated():
    assert python("pass") == cpp("") == set()


def test_cpp_functions_of_every_form():
    source = """
template <class T, int N = (3 > 2)> __global__ void __launch_bounds__(256) named(T* out) { *out = 1 + N; }
struct Cursor {
  explicit Cursor(int element, int size) : at(element / size), rest(element % size) { check(at); }
  bool operator<(const Cursor& other) const { return at < other.at; }
  static constexpr int width = 1 + 1;
  int at, rest;
};
constexpr int table[] = {1 + 1, 2};
const auto twice = make(1 + 1);
auto trailing(int a) -> int { return a - 1; }
"""
    found = cpp_source.mutants("file", source)
    assert {m.function for m in found} == {"named", "Cursor", "<", "trailing"}
    assert {m.kind for m in found if m.function == "Cursor"} == {"product", "index", "statement"}


def test_a_comment_between_operands_is_left_alone():
    assert ("sign", "- b)") in {(m.kind, m.mutated) for m in python_source.mutants("file", PYTHON % SPLIT)}


SPLIT = "    d = (a  # + b\n         + b)"


def test_line_and_function_are_those_of_the_change():
    source = PYTHON % "    d = b\n    c = a < b"
    (mutant,) = python_source.mutants("a.py", source)
    assert (mutant.file, mutant.function) == ("a.py", "kernel")
    assert source.splitlines()[mutant.line - 1] == "    c = a < b"
    assert mutant.apply(source) == PYTHON % "    d = b\n    c = a <= b"


def test_the_sample_is_drawn_by_seed_and_kinds_take_turns():
    source = PYTHON % ("\n".join(f"    d{k} = a * {k + 3}" for k in range(20)) + "\n    c = a < b")
    everything = [m for file in ("a.py", "b.py") for m in python_source.mutants(file, source)]
    first = common.sample(everything, 0)
    assert first == common.sample(reversed(everything), 0) != common.sample(everything, 1)
    assert sorted(first) == sorted(everything)
    kinds = {"comparison", "product", "constant"}
    assert {m.kind for m in first[:3]} == kinds
    assert {(m.kind, m.file) for m in first[:6]} == {(kind, file) for kind in kinds for file in ("a.py", "b.py")}


# ---- The runner

TEST = """
from cgc_kernels import kernel
def test_bound():
    assert kernel.within(1, 2) and not kernel.within(2, 2)
def test_end():
    assert kernel.steps(3) == 3
"""
KERNEL = """
import types
triton = types.SimpleNamespace(jit=lambda f: f)
@triton.jit
def within(x, n):
    unseen = x + n
    return x < n
@triton.jit
def steps(n):
    i = 0
    while i < n:
        i += 1
    return i
"""


@pytest.fixture
def tree(tmp_path):
    """A small checkout with a kernel, its test and one file that git ignores."""
    root = tmp_path / "tree"
    files = {"cgc_kernels/__init__.py": "", "cgc_kernels/kernel.py": KERNEL, "tests/test_kernel.py": TEST}
    for name, text in {**files, ".gitignore": "*.bin", "a.bin": "", "b.bin": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    return root


TARGET = Target(
    sources=("cgc_kernels/kernel.py",),
    generate=python_source.mutants,
    tests=((*TARGETS["triton"].tests[0][:-1], "tests/test_{stage}.py"),),
    ignored_files=("a.*",),
    environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # twice as fast
)


def snapshot(root):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}


def test_runner(tree, tmp_path):
    before, mutants = snapshot(tree), TARGET.mutants(tree)
    workplace = Workplace(tree, files_of(tree, TARGET), TARGET, tmp_path / "copy")
    assert (tmp_path / "copy" / "a.bin").exists()
    assert not (tmp_path / "copy" / "b.bin").exists()
    workplace.baseline({"kernel"})
    pick = {(m.kind, m.mutated): m for m in mutants}
    outcome = workplace.judge(pick["comparison", "return x <= n"], limit=60)
    assert outcome[:2] == ("killed", "tests/test_kernel.py::test_bound")
    assert workplace.judge(pick["sign", "unseen = x - n"], limit=60).status == "survived"
    assert workplace.judge(pick["statement", "pass"], limit=5)[:2] == ("killed", "signal SIGXCPU")  # it never ends
    assert (tmp_path / "copy/cgc_kernels/kernel.py").read_text() == KERNEL
    assert snapshot(tree) == before


def test_a_mutant_that_computes_the_same_is_replaced_by_the_next(tree, tmp_path):
    pick = {(m.kind, m.mutated): m for m in TARGET.mutants(tree)}
    same, wrong = pick["sign", "unseen = x - n"], pick["comparison", "return x <= n"]
    args = SimpleNamespace(count=1, jobs=1, limit=60, root=tree)
    for reason, expected in (("equivalent, nobody reads it", [same, wrong]), ("nobody reads it", [same])):
        results = Results(tmp_path / f"{len(expected)}.jsonl", "")
        assert list(judge_all([same, wrong], {same.identity: reason}, TARGET, args, results)) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cgc_kernels/kernel.py", KERNEL.replace("<", "<="), "killed by tests/test_kernel.py::test_bound"),
        ("tests/test_kernel.py", "", "no test in"),
    ],
)
def test_a_baseline_that_does_not_pass_is_an_error(tree, tmp_path, name, text, message):
    (tree / name).write_text(text)
    workplace = Workplace(tree, files_of(tree, TARGET), TARGET, tmp_path / "copy")
    with pytest.raises(Broken, match=message):
        workplace.baseline({"kernel"})


def test_results_are_kept_for_this_state_of_the_tree(tree, tmp_path):
    mutant, other = TARGET.mutants(tree)[:2]
    state = digest(tree, files_of(tree, TARGET))
    Results(tmp_path / "results.jsonl", state).add(mutant, Outcome("killed", "test", 1.5))
    assert Results(tmp_path / "results.jsonl", state).get(mutant) == Outcome("killed", "test", 1.5)
    assert Results(tmp_path / "results.jsonl", state).get(other) is None
    (tree / "README.md").write_text("a document changes nothing")
    assert digest(tree, files_of(tree, TARGET)) == state
    (tree / "tests/test_kernel.py").write_text(TEST + "\n")
    changed = digest(tree, files_of(tree, TARGET))
    assert Results(tmp_path / "results.jsonl", changed).get(mutant) is None


def test_survivors_are_explained_in_a_document(tree, tmp_path):
    mutant, other = (m for m in TARGET.mutants(tree) if m.function == "within")
    document = tmp_path / "mutants.md"
    assert explained(document) == {}
    document.write_text("# Survivors\n" + item(mutant))
    assert explained(document) == {}
    document.write_text("# Survivors\n" + item(mutant, "nobody\n  reads it.").replace("→ ", "→\n  "))
    known = explained(document)
    assert known == {mutant.identity: "nobody reads it."}
    survived, killed, timeout = (Outcome(status, "", 1) for status in ("survived", "killed", "timeout"))
    assert "explained" in describe(mutant, survived, known)
    assert "explained" not in describe(other, survived, known)
    assert conclude([(mutant, survived)] + [(other, killed)] * 19, known, 0.95)[1]
    assert not conclude([(mutant, survived)] + [(other, killed)] * 18, known, 0.95)[1]
    text, enough = conclude([(other, survived)] + [(other, killed)] * 19, known, 0.95)
    assert not enough
    assert item(other) in text
    assert not conclude([(other, timeout)] + [(other, killed)] * 19, known, 0.95)[1]
    assert not conclude([], known, 0.95)[1]
    same = {mutant.identity: "equivalent, nobody reads it."}
    assert conclude([(mutant, survived), (other, killed)], same, 1.0)[1]
    assert not conclude([(mutant, survived), (other, survived)] + [(other, killed)] * 19, same, 0.95)[1]
    assert not conclude([(mutant, survived)], same, 0.95)[1]


def test_survivors_are_mutants_of_the_sources_as_they_are():
    known = explained(ROOT / SURVIVORS)
    assert len(known) == (ROOT / SURVIVORS).read_text().count("\n- ")
    for file in {identity[0] for identity in known}:
        generate = python_source.mutants if file.endswith(".py") else cpp_source.mutants
        present = {mutant.identity for mutant in generate(file, (ROOT / file).read_text())}
        gone = [identity for identity in known if identity[0] == file and identity not in present]
        assert not gone, f"{SURVIVORS} must hold mutants of the present sources alone, got {gone}: drop them"


def test_command_line():
    command = [sys.executable, "-m", "tests.tools.mutants", "cpp", "--list", "--count", "3", "--seed", "5"]
    lists = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert lists[0] == lists[1]
    assert lists[0].count("\n  + ") == 3
    signs = subprocess.run([*command, "--kinds", "sign"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert signs.count(", sign\n") == 3
    wrong = subprocess.run([*command, "--kinds", "sighn"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "--kinds must be of " in wrong.stderr
    assert "got sighn" in wrong.stderr
