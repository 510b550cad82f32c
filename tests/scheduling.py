"""In which order and beside what the tests run: fast tier, slow tier, then one by one those that must be alone.

A test marked `slow` runs in `make test-all` only; one marked `alone` measures seconds or memory that another test
beside it would spoil. Under pytest-xdist (`--dist loadgroup --no-loadscope-reorder`) tests that share a fixture of
their module stay on one worker.
"""

import fcntl
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

FAST, SLOW, ALONE = range(3)
TIERS = ("fast tier", "slow tier", "alone, at the end")


def tier_of(item: pytest.Item) -> int:
    """Return when a test runs."""
    if item.get_closest_marker("alone"):
        return ALONE
    return SLOW if item.get_closest_marker("slow") else FAST


def group_of(item: pytest.Item) -> str:
    """Return what a test has in common with those that it must share a worker with; "" if it may go anywhere."""
    mark = item.get_closest_marker("xdist_group")
    if mark is not None:
        return mark.args[0]
    fixtures = getattr(item, "_fixtureinfo", None)  # pytest has no public way to ask
    scopes = {found[-1].scope for found in fixtures.name2fixturedefs.values()} if fixtures else set()
    return item.path.stem if scopes & {"module", "class"} else ""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by tier, within it the largest groups first, and give each test its group's mark."""
    groups = {}
    for item in items:
        group, tier = group_of(item), tier_of(item)
        groups[item] = f"{group} {TIERS[tier]}" if group and tier != ALONE else ""
        item.user_properties.append(("tier", tier))
    sizes = Counter(groups.values())
    items.sort(key=lambda item: (tier_of(item), -sizes[groups[item]] if groups[item] else 0))
    for item, group in groups.items():
        if group:
            item.own_markers = [mark for mark in item.own_markers if mark.name != "xdist_group"]
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that must be alone wait for those of the other workers, and them for it."""
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    if run is None:
        return (yield)
    with open(Path(tempfile.gettempdir()) / f"cmbert-tests-{run}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if tier_of(item) == ALONE else fcntl.LOCK_SH)
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each tier took."""
    found: dict[int, list[pytest.TestReport]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                found.setdefault(dict(report.user_properties).get("tier", FAST), []).append(report)
    terminalreporter.section("tiers")
    for tier, reports in sorted(found.items()):
        tests = len({report.nodeid for report in reports})
        seconds = sum(report.duration for report in reports)
        wall = max(report.stop for report in reports) - min(report.start for report in reports)
        terminalreporter.write_line(f"{TIERS[tier]}: {tests} tests, {wall:.0f} s, {seconds:.0f} s of work")
