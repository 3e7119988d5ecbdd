"""Options and fixtures of the whole suite, and the rule that CI skips nothing."""

import os
import re
from pathlib import Path

import pytest

from support import planted

_skipped: list[str] = []
_figures: list[str] = []
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d[ T]")
"""How a log line of our own begins where a test has configured no logging."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the code gives now into tests/golden/**/*.out.yaml; read the diff",
    )


@pytest.fixture(scope="session")
def log_directory() -> Path:
    """Where the processes that tests start write their logs; all of it is searched for secrets."""
    return planted.log_directory()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)
    # What a passing test prints are its figures, and pytest would hide them.
    if report.when == "call" and report.passed:
        name = report.nodeid.rpartition("::")[2]
        lines = (line for line in report.capstdout.splitlines() if line)
        _figures.extend(f"{name}: {line}" for line in lines if not _LOGGED.match(line))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a machine cannot run is skipped with its reason; CI is to be able to run all."""
    if _skipped and os.environ.get("CI"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for figure in _figures:
            terminalreporter.line(figure)
    if _skipped and os.environ.get("CI"):
        terminalreporter.section("skipped in CI, where nothing may be", red=True)
        for nodeid in _skipped:
            terminalreporter.line(nodeid)
