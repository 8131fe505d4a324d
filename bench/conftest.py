"""Options, the `measured` fixture and the table at the end of `pytest bench --benchmark-only`."""

import functools

import pytest
import torch

from cgc_kernels.backends import unavailable

from . import problems, report, workloads
from .harness import BackendTimer, Field, steady

THREE_PEERS = ("literal", "vectorised", "compiled")
_FIGURES = pytest.StashKey[list]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cgc_kernels benchmarks")
    group.addoption("--all-shapes", action="store_true", help="also the exhaustive workloads (an hour, not minutes)")
    group.addoption("--bench-threads", type=int, default=2, help="threads of backend, peers and floor (default: 2)")
    group.addoption("--bench-seconds", type=float, default=3.0, help="time for the rounds of one backend (default: 3)")


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
    return "measured" in item.fixturenames and item.callspec.params["workload"] not in item.module.DEFAULT


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    figures = config.stash[_FIGURES]
    if not figures:
        return
    terminalreporter.section("cgc_kernels against its peers and its floor")
    terminalreporter.write_line(f"{report.machine()}; ratios are paired within rounds: median [p20-p80]")
    for reason in sorted({f["without_floor"] for f in figures} - {""}):
        terminalreporter.write_line(reason)
    for stage in workloads.STAGES:
        rows = [f for f in figures if f["stage"] == stage]
        if rows:
            terminalreporter.write_line(f"\n{stage}\n{report.table(rows)}")


@functools.lru_cache(maxsize=1)
def shared_field(workload: workloads.Workload) -> Field:
    """Shared by the backends of a workload, which pytest runs one after another."""
    return Field(problems.build(workload), THREE_PEERS)


@pytest.fixture
def measured(benchmark, request):
    """measured(workload, backend): benchmarks it among its peers; the figures are in the benchmark's extra_info."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("bench_threads"))

    def run(workload: workloads.Workload, backend: str) -> None:
        reason = unavailable(backend)
        if reason:
            pytest.skip(reason)
        steady()
        timer = BackendTimer(shared_field(workload), backend)
        rounds = timer.rounds(request.config.getoption("bench_seconds"))
        benchmark.group = str(workload)
        benchmark.pedantic(timer.run, setup=timer.around, rounds=rounds)
        benchmark.extra_info.update(timer.figures(list(benchmark.stats.stats.data)))
        request.config.stash[_FIGURES].append(dict(benchmark.extra_info))

    yield run
    torch.set_num_threads(threads)
