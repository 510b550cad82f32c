"""The chain from raw text to verified shards on a real Slurm, with kills; the bytes are those of one process."""

import random
import time
from pathlib import Path

import pytest

from tests.slurm.chain import Chain
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.raw_text import hashes, make_alone, seat
from tests.slurm.strikes import cancel_all, kill_command, lose_node, requeue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NUM_DOCUMENTS = 600  # of each of two corpora
LONGEST_PAUSE = 15.0  # seconds from one kill to the next


def test_kills_from_raw_text_to_shards_change_no_byte(slurm: Cluster, tmp_path: Path) -> None:
    expected = make_alone(tmp_path / "alone", NUM_DOCUMENTS)
    (tmp_path / "desk").mkdir()
    desk = Desk(slurm, tmp_path / "desk")
    seat(desk, NUM_DOCUMENTS)
    kills, choice, moment = [kill_command, requeue, lose_node, cancel_all, kill_command], random.Random(0), 0.0

    def strike(chain: Chain) -> None:
        nonlocal moment
        if kills and time.monotonic() > moment and kills[0](chain, choice):
            kills.pop(0)
            moment = time.monotonic() + choice.uniform(0, LONGEST_PAUSE)

    chain = Chain(desk)
    try:
        chain.run(strike)
    finally:
        slurm.clear()
    assert not kills
    assert chain.num_submitted > 1
    assert hashes(desk.directory) == expected
    assert {name.split("/")[-2] for name in expected if name.endswith(".idx")} == {"laws", "reviews", "heldout"}
