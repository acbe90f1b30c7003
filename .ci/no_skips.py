"""A plugin of pytest: the run fails if a test or a module skips itself, and says how many did."""

from __future__ import annotations

import pytest


class NoSkips:
    """Counts what is skipped; an expected failure is not."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("no skips")
        for name in self.skipped:
            terminalreporter.write_line(f"SKIPPED {name}")
        terminalreporter.write_line(f"{len(self.skipped)} skipped; none may be")


def pytest_configure(config: pytest.Config) -> None:
    """Starts the count."""
    config.pluginmanager.register(NoSkips(), "no-skips-counter")
