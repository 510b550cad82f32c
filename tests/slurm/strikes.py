"""What is done to the jobs of a chain that makes shards of raw text, at a random moment."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import descendants, is_alive
from tests.slurm.chain import Chain
from tests.slurm.cluster import NODES, processes, wait_until, works_in

SECONDS_AWAY = 5.0  # that a node without its slurmd goes on


@dataclass(frozen=True)
class Strike:
    """strike: returns whether there was somebody to strike."""

    name: str
    strike: Callable[[Chain, random.Random], bool]
    breaks: bool = False
    """Whether the chain has to be submitted again."""


def commands(chain: Chain) -> list[int]:
    """Return the processes of data_tools that jobs of the chain run, without their workers."""
    found = [pid for pid, words in processes().items() if any(word.endswith("small_tasks.py") for word in words)]
    return [pid for pid in found if works_in(pid, chain.desk.directory)]


def kill_one(pids: list[int], choice: random.Random) -> bool:
    if not pids:
        return False
    try:
        os.kill(choice.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_command(chain: Chain, choice: random.Random) -> bool:
    return kill_one(commands(chain), choice)


def kill_worker(chain: Chain, choice: random.Random) -> bool:
    """Kill one of a pool: the command ends with code 2, the job is not requeued."""
    below = [one for pid in commands(chain) for one in descendants(pid)]
    return kill_one([one.pid for one in below if "spawn_main" in one.command], choice)


def kill_script(chain: Chain, choice: random.Random) -> bool:
    """Kill a job's shell: Slurm takes the job for failed."""
    scripts = [pid for pid, words in processes().items() if re.search(r"job\d+/slurm_script$", " ".join(words[:2]))]
    return kill_one([pid for pid in scripts if works_in(pid, chain.desk.directory)], choice)


def requeue(chain: Chain, choice: random.Random) -> bool:
    jobs = chain.running()
    if jobs:
        chain.slurm.call("scontrol", "requeue", choice.choice(jobs), code=None)
    return bool(jobs)


def cancel_all(chain: Chain, _: random.Random) -> bool:
    if not chain.running():
        return False
    chain.cancel()
    return True


def node_of_one(chain: Chain, choice: random.Random) -> str | None:
    """Return a node on which a command runs."""
    pids = commands(chain)
    if not pids:
        return None
    try:
        environment = Path(f"/proc/{choice.choice(pids)}/environ").read_bytes()
    except FileNotFoundError:
        return None
    found = re.findall(rb"SLURMD_NODENAME=(\w+)", environment)
    return found[0].decode() if found else None


def lose_node(chain: Chain, choice: random.Random) -> bool:
    node = node_of_one(chain, choice)
    if node is None:
        return False
    chain.slurm.lose_node(node)
    come_back(chain)
    return True


def lose_daemon(chain: Chain, choice: random.Random) -> bool:
    """Kill a node's slurmd: what runs there goes on beside its jobs' next lives, until the node comes back."""
    node, slurm = node_of_one(chain, choice), chain.slurm
    if node is None:
        return False
    pid = int((slurm.root / f"slurmd.{node}.pid").read_text(encoding="utf-8"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), f"the end of {node}'s slurmd")
    slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    end = time.monotonic() + SECONDS_AWAY
    while time.monotonic() < end:
        chain.hurry()
        time.sleep(0.2)
    come_back(chain)
    return True


def come_back(chain: Chain) -> None:
    """Start what was lost."""
    chain.slurm.revive()

    def are_up() -> bool:
        states = chain.slurm.call("sinfo", "-h", "-p", "main", "-N", "-o", "%t").split()
        return len(states) == len(NODES) and not any(state.startswith(("down", "drain", "unk")) for state in states)

    wait_until(are_up, "both nodes up")


STRIKES = (
    Strike("kill -9 of a command", kill_command),
    Strike("kill -9 of a worker process", kill_worker, breaks=True),
    Strike("kill -9 of a job's script", kill_script, breaks=True),
    Strike("scontrol requeue", requeue),
    Strike("scancel of all jobs", cancel_all, breaks=True),
    Strike("a node is lost", lose_node),
    Strike("a slurmd is lost, its processes go on", lose_daemon),
)
