"""One run writes a run directory: who may take it, who must not, and how the one that lost it finds out."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmbert.errors import CheckpointError, LeaseLostError
from cmbert.files import lease as module
from cmbert.files.lease import Lease, Owner, alone_in, claim, myself


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(module, "WATCH_RENEWALS", 20)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


def elsewhere(**more: object) -> Owner:
    """A process of another machine, of which nobody here can say whether it is alive."""
    return dataclasses.replace(myself(), **{"host": "n7", "machine": "another", "job": "5", **more})


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Lease]:
    """A lease that its owner, on another machine, renews."""
    lease = Lease(tmp_path, claim(tmp_path, elsewhere(command="cmbert train a.toml")))
    lease.hold()
    yield lease
    lease.released.set()


def dead_process() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = dataclasses.replace(myself(), pid=process.pid, born=module._born(process.pid))
    process.communicate()
    return owner


def test_the_first_takes_it_and_a_released_one_is_free(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    for number in (1, 2, 3):
        lease = Lease(run, claim(run, elsewhere()))
        assert lease.number == number
        lease.hold()
        lease.check()
        lease.release()
        assert [path.name for path in run.iterdir()] == [f"lease.{number:06d}.json"]


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", None)  # nobody watches
    claim(tmp_path, dead_process())
    assert claim(tmp_path, myself()) == 2
    impostor = dataclasses.replace(myself(), born=myself().born - 1)  # the number was given to another process
    (tmp_path / "lease.000002.json").write_text(json.dumps(dataclasses.asdict(impostor)), encoding="utf-8")
    assert claim(tmp_path, myself()) == 3


def test_a_newer_life_of_the_same_job_wins_at_once(held: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", None)
    assert claim(held.run, elsewhere(host="n8", life=1)) == 2
    with pytest.raises(LeaseLostError, match=r"job 5, life 1 on n8 \(process \d+, since .*\) has taken it over"):
        held.check()
    held.release()
    assert [path.name for path in held.run.iterdir()] == ["lease.000002.json"]
    assert not json.loads((held.run / "lease.000002.json").read_text(encoding="utf-8"))["released"]


@pytest.mark.parametrize("me", [elsewhere(host="n8", job="6"), elsewhere(job="", life=3), elsewhere(pid=2)])
def test_a_live_owner_is_named_and_keeps_it(held: Lease, me: Owner) -> None:
    with pytest.raises(CheckpointError, match=r"is written by job 5, life 0 on n7 .*`cmbert train a.toml`.*another"):
        claim(held.run, me)
    held.check()
    assert [path.name for path in held.run.iterdir()] == ["lease.000001.json"]


def test_an_owner_that_does_not_renew_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claim(tmp_path, elsewhere())
    started = time.monotonic()
    assert claim(tmp_path, elsewhere(job="6")) == 2
    assert time.monotonic() - started >= module.RENEW_SECONDS * module.WATCH_RENEWALS
    assert "taken over from job 5, life 0 on n7" in caplog.text


def test_a_release_while_somebody_watches(held: Lease) -> None:
    with ThreadPoolExecutor(1) as pool:
        held.released.set()  # renews no more
        held.renewing.join()
        found = pool.submit(claim, held.run, elsewhere(job="6"))
        held.release()
        assert found.result() == 2


@pytest.mark.parametrize("number", [2, 8])
def test_of_claimants_at_once_one_gets_it(tmp_path: Path, number: int) -> None:
    """Each renews from the moment it has it, as a run does."""
    together, leases = threading.Barrier(number), []

    def start(index: int) -> str:
        together.wait()
        try:
            lease = Lease(tmp_path, claim(tmp_path, elsewhere(job=str(index))))
        except CheckpointError as error:
            return str(error)
        lease.hold()
        leases.append(lease)
        return "mine"

    with ThreadPoolExecutor(number) as pool:
        found = list(pool.map(start, range(number)))
    assert found.count("mine") == len(leases) == 1
    assert all("is written by job" in text for text in found if text != "mine")
    leases[0].check()
    leases[0].release()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.000001.json"]


def test_a_lease_that_somebody_removed_is_lost(held: Lease) -> None:
    held.path.unlink()
    with pytest.raises(LeaseLostError, match="somebody removed its lease"):
        held.check()


def test_who_renews_learns_of_a_newer_owner_by_itself(held: Lease) -> None:
    assert not held.is_lost
    claim(held.run, elsewhere(life=1))
    held.renewing.join(10)
    assert held.is_lost


def test_a_renewal_that_fails_is_tried_again(
    held: Lease, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, tried = os.utime, []

    def fail(path: Path) -> None:
        tried.append(path)
        if len(tried) < 4:
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(os, "utime", fail)
    before = module._renewed(held.run, 1)
    while module._renewed(held.run, 1) == before or len(tried) < 4:
        time.sleep(0.01)
    assert caplog.text.count("cannot be renewed (Input/output error)") == 1


def test_a_lease_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "lease.000004.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lease\.000004\.json: not a lease"):
        claim(tmp_path, myself())


def test_alone_in_a_directory(tmp_path: Path) -> None:
    work = tmp_path / "work" / "here"
    with alone_in(work):
        assert json.loads((work / "lease.000001.json").read_text(encoding="utf-8"))["pid"] == os.getpid()
        with pytest.raises(CheckpointError, match=f"{work}: is written by a run on .*; stop that, or choose another"):
            claim(work, elsewhere())
    assert not list(work.iterdir())
    with pytest.raises(KeyError), alone_in(work):
        raise KeyError
    assert not list(work.iterdir())
    claim(work, dead_process())  # as a killed one leaves it
    with alone_in(work):
        assert [path.name for path in work.iterdir()] == ["lease.000002.json"]
    assert not list(work.iterdir())


def test_who_lost_a_directory_removes_nobody_elses_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    with alone_in(tmp_path):
        assert claim(tmp_path, elsewhere(life=1)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lease.000002.json"]
