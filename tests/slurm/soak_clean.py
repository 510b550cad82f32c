"""Kill jobs at random moments on a private Slurm, from raw text to verified shards; the bytes must be one process's.

    python -m tests.slurm.soak_clean --kills 50 --seed 0

Not part of the suite. docs/reliability.md has the last result.
"""

import argparse
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.slurm.chain import Chain
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.raw_text import MADE, hashes, make_alone, seat, set_cpus
from tests.slurm.strikes import STRIKES

LIVES = {"CMBERT_MAX_LIVES": "100000", "CMBERT_MAX_RESTARTS": "100000"}
NUM_DOCUMENTS = 2400  # of each of two corpora
STRUCK_SHARE = 0.6  # of the jobs and arrays, each once
LONGEST_WAIT = 8.0  # seconds from the start of a job until it is struck
WEIGHTS = [1 if kind.breaks else 4 for kind in STRIKES]  # a chain that is often submitted again does not get on


class Soak:
    """Chains one after another, each struck until it is done."""

    def __init__(self, desk: Desk, choice: random.Random, num_kills: int):
        self.desk, self.choice, self.num_kills = desk, choice, num_kills
        self.strikes: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        """Kinds of jobs and their passes that ran when one was struck."""
        self.num_chains = self.num_submitted = 0
        self._due: dict[str, float] = {}

    def one_chain(self) -> dict[str, str]:
        """Make all of it anew; return the hashes."""
        for name in MADE:
            shutil.rmtree(self.desk.directory / name, ignore_errors=True)
        shutil.rmtree(self.desk.directory / "runs", ignore_errors=True)
        set_cpus(self.desk, 1 + self.num_chains % 2)  # workers of a job
        chain = Chain(self.desk)
        chain.run(self.strike)
        self.num_chains += 1
        self.num_submitted += chain.num_submitted
        return hashes(self.desk.directory)

    def strike(self, chain: Chain) -> None:
        """Strike if it is time for it, and somebody is there."""
        jobs = chain.jobs("-t", "RUNNING")
        numbers = {number.partition("_")[0] for number, *_ in jobs}
        for number in numbers - self._due.keys():
            wait = self.choice.uniform(0, LONGEST_WAIT) if self.choice.random() < STRUCK_SHARE else math.inf
            self._due[number] = time.monotonic() + wait
        due = {number for number in numbers if self._due[number] < time.monotonic()}
        if not due or self.strikes.total() >= self.num_kills:
            return
        place = {f"{_kind(name)}: {chain.pass_of(name)}".removesuffix(": ") for _, name, *_ in jobs}
        (kind,) = self.choice.choices(STRIKES, WEIGHTS)
        if kind.strike(chain, self.choice):
            self.strikes[kind.name] += 1
            self.struck.update(place)
            print(f"{self.strikes.total()}: {kind.name}, while there ran {', '.join(sorted(place))}", flush=True)
            self._due |= dict.fromkeys(due, math.inf)


def _kind(name: str) -> str:
    """Return what jobs of such a name do."""
    return name.removeprefix("cmbert-").partition("-")[0].rstrip("0123456789")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cluster = Cluster()
    cluster.environment |= LIVES
    folder = Path(tempfile.mkdtemp(prefix="cmbert-soak-"))  # kept if anything does not hold
    (folder / "desk").mkdir()
    expected = make_alone(folder / "alone", NUM_DOCUMENTS)
    try:
        cluster.start()
        started = time.monotonic()
        desk = Desk(cluster, folder / "desk")
        seat(desk, NUM_DOCUMENTS)
        soak = Soak(desk, random.Random(options.seed), options.kills)
        while soak.strikes.total() < options.kills:
            found = soak.one_chain()
            assert found == expected, sorted({name for name, _ in found.items() ^ expected.items()})[:20]
            print(f"chain {soak.num_chains}: all {len(found)} files equal", flush=True)
    finally:
        cluster.clear()
        cluster.stop()
    shutil.rmtree(folder)
    for title, counts in (("kill", soak.strikes), ("what ran when it came", soak.struck)):
        print(f"| {title} | times |", *(f"| {name} | {count} |" for name, count in counts.most_common()), sep="\n")
    print(
        f"{soak.strikes.total()} kills in {soak.num_chains} chains of {len(expected)} files, submitted "
        f"{soak.num_submitted} times: every byte equal; slurmctld crashed {cluster.num_crashes} times by itself "
        f"({(time.monotonic() - started) / 60:.0f} min)"
    )


if __name__ == "__main__":
    main()
