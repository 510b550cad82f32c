"""Ranks that check each other: real processes with gloo, one of them at fault."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cmbert.cluster.distributed import read_launch
from cmbert.config.load import load_recipe, write_resolved
from tests import forking

TIMEOUT = 90  # seconds for a test's processes: torch's import takes 10 s on a busy machine
WAIT_SECONDS = "15"  # for a silent rank
NODES = ("a", "b", "c", "d")
FAULTY = Path(__file__).with_name("faulty_preflight.py")


class Ranks:
    """Preflights of one rank per node."""

    def __init__(
        self, recipe: Path, *arguments: str, fault: str = "none:-", nodes: Sequence[str] = NODES, port: int = 0
    ):
        """fault: kind:node of faulty_preflight.py, or nothing for the command itself. port: 0 = any free one."""
        self.result = recipe.parent / f"result of {fault}"
        words = ["--result", str(self.result), "--nodes", ",".join(nodes), "--wait-seconds", WAIT_SECONDS, *arguments]
        program = [str(FAULTY)] if fault else ["-m", "cmbert", "preflight"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "FAULT": fault}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or read_launch({}).port), "LOCAL_RANK": "0"}
        environment |= {"WORLD_SIZE": str(len(nodes))}
        self.processes = [
            forking.Popen(
                [sys.executable, *program, str(recipe), *words],
                env=environment | {"RANK": str(rank), "SLURMD_NODENAME": node},
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for rank, node in enumerate(nodes)
        ]  # fmt: skip

    def end(self) -> tuple[list[int], dict[str, str], str]:
        """Return the exit codes, the bad nodes, and what the ranks said."""
        try:
            said = "".join(process.communicate(timeout=TIMEOUT)[0] for process in self.processes)
        finally:
            for process in self.processes:
                process.kill()
        bad = self.result / "bad_nodes"
        lines = bad.read_text(encoding="utf-8").splitlines() if bad.exists() else []
        return [process.returncode for process in self.processes], dict(line.split("\t") for line in lines), said


def test_four_sound_nodes(recipe_file: Path) -> None:
    ranks = Ranks(recipe_file)
    codes, bad, said = ranks.end()
    assert (codes, bad) == ([0] * 4, {}), said
    assert re.search(r"preflight: 4 nodes, 4 ranks fit, \d+ GPUs a node, .*, matmul .* ms, all-reduce .* ms", said), (
        said
    )
    assert (ranks.result / "life").read_text(encoding="utf-8") == f"{recipe_file.parent}/run\t-\t1\t16\t16\n"


def test_one_rank_alone(recipe_file: Path) -> None:
    codes, bad, said = Ranks(recipe_file, fault="", nodes=["a"]).end()
    assert (codes, bad) == ([0], {}), said
    assert "preflight: 1 nodes, 1 ranks fit" in said


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("slow_matmul:c", r"rank 2: matmul takes 3\d\d\.\d ms, the median \d+\.\d"),
        ("slow_link:b", r"all-reduce between a and b takes .* ms, .*; all-reduce between b and c takes .* ms, .*"),
        ("hanging_link:a", "all-reduce between a and b failed; all-reduce between d and a failed"),
    ],
)
def test_the_node_at_fault_is_blamed_alone(fault: str, reason: str, recipe_file: Path) -> None:
    codes, bad, said = Ranks(recipe_file, fault=fault).end()
    assert codes == [69] * 4, said
    assert list(bad) == [fault[-1]], said
    assert re.fullmatch(reason, bad[fault[-1]])
    assert f"preflight: {fault[-1]} is not fit: {bad[fault[-1]]}" in said


def test_silent_nodes_are_named_by_the_others(recipe_file: Path) -> None:
    second, first = Ranks(recipe_file, fault="silent:b"), Ranks(recipe_file, fault="silent:a", nodes=["a", "b"])
    codes, bad, said = second.end()
    assert (codes, bad) == ([69, 1, 69, 69], {"b": "rank 1 did not answer"}), said
    codes, bad, said = first.end()
    assert codes == [1, 69], said
    seconds = re.fullmatch(r"rank 0 did not answer within (\d+) s", bad["a"])
    assert seconds
    assert int(seconds[1]) >= int(WAIT_SECONDS)


def test_all_leave_a_job_that_may_not_begin(recipe_file: Path) -> None:
    ranks = Ranks(recipe_file, "--max-lives", "0", fault="", nodes=["a", "b"])
    codes, bad, said = ranks.end()
    assert (codes, bad) == ([2, 2], {}), said
    assert "cmbert: error: " in said
    assert "left no newer one" in said
    assert not (ranks.result / "life").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.lr_max=5e-3", "belongs to another recipe: schedule.lr_max is 0.001 there and 0.005 here"),
        ("train.init_from=nowhere", "nowhere: no checkpoint there"),
    ],
)
def test_what_training_would_refuse_is_said_once_before_nodes_are_checked(
    setting: str, message: str, recipe_file: Path
) -> None:
    run = recipe_file.parent / "run"
    if "init_from" not in setting:
        run.mkdir()
        write_resolved(load_recipe(recipe_file), run / "resolved.toml")
    ranks = Ranks(recipe_file, "--set", setting, fault="", nodes=["a", "b"])
    codes, bad, said = ranks.end()
    assert (codes, bad) == ([2, 2], {}), said
    assert said.count(message) == 1
    assert not (ranks.result / "life").exists()
    assert not (run / "events.jsonl").exists()


def test_a_port_that_is_taken_is_named_and_no_node_is_blamed(recipe_file: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        codes, bad, said = Ranks(recipe_file, fault="", nodes=["a"], port=port).end()
    assert (codes, bad) == ([69], {}), said
    assert re.search(rf"rank 0 on a: the ranks cannot meet at 127.0.0.1:{port} \(.*EADDRINUSE.*; if another", said), (
        said
    )
    assert "did not answer" not in said


def test_a_rank_that_cannot_be_stopped_ends(recipe_file: Path) -> None:
    codes, _, said = Ranks(recipe_file, fault="stuck:a", nodes=["a"]).end()
    assert codes == [1], said
    assert "in keep_the_gil" in said
