"""Options, the `measured` fixture and the table at the end of `pytest bench --benchmark-only`."""

import functools

import pytest
import torch

from cgc_kernels.backends import unavailable

from . import cases, problems, report
from .harness import Entry, Field, steady

THREE_PEERS = ("literal", "vectorised", "compiled")
_FIGURES = pytest.StashKey[list]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cgc_kernels benchmarks")
    group.addoption("--all-shapes", action="store_true", help="also the exhaustive cases (an hour, not minutes)")
    group.addoption("--bench-threads", type=int, default=2, help="threads of entry, peers and floor (default: 2)")
    group.addoption("--bench-seconds", type=float, default=3.0, help="time for the rounds of one entry (default: 3)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []
    config.option.benchmark_quiet = True  # its table says less than ours; -v brings it back


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benchmarks run on request: `pytest bench` alone collects them and skips."""
    if not config.getoption("all_shapes"):
        exhaustive = [item for item in items if _is_exhaustive(item)]
        config.hook.pytest_deselected(items=exhaustive)
        items[:] = [item for item in items if item not in exhaustive]
    if not config.getoption("benchmark_only"):
        skip = pytest.mark.skip(reason="a benchmark: run with --benchmark-only")
        for item in items:
            if "measured" in item.fixturenames:
                item.add_marker(skip)


def _is_exhaustive(item: pytest.Item) -> bool:
    return "measured" in item.fixturenames and item.callspec.params["case"] not in item.module.DEFAULT


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    figures = config.stash[_FIGURES]
    if not figures:
        return
    terminalreporter.section("cgc_kernels against its peers and its floor")
    terminalreporter.write_line(f"{report.machine()}; ratios are paired within rounds: median [p20-p80]")
    for reason in sorted({f["without_floor"] for f in figures} - {""}):
        terminalreporter.write_line(reason)
    for stage in cases.STAGES:
        rows = [f for f in figures if f["stage"] == stage]
        if rows:
            terminalreporter.write_line(f"\n{stage}\n{report.table(rows)}")


@functools.lru_cache(maxsize=1)
def field_of(case: cases.Case) -> Field:
    """Shared by the backends of a case, which pytest runs one after another."""
    return Field(problems.build(case), THREE_PEERS)


@pytest.fixture
def measured(benchmark, request):
    """measured(case, backend): benchmarks the entry among its peers; the figures are in the benchmark's extra_info."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("bench_threads"))

    def run(case: cases.Case, backend: str) -> None:
        reason = unavailable(backend)
        if reason:
            pytest.skip(reason)
        steady()
        entry = Entry(field_of(case), backend)
        rounds = entry.rounds(request.config.getoption("bench_seconds"))
        benchmark.group = str(case)
        benchmark.pedantic(entry.run, setup=entry.around, rounds=rounds)
        benchmark.extra_info.update(entry.figures(list(benchmark.stats.stats.data)))
        request.config.stash[_FIGURES].append(dict(benchmark.extra_info))

    yield run
    torch.set_num_threads(threads)
