"""The host gives the device a whole step, DeepSpeed's part included, without asking for a single value."""

import json
import sys
from pathlib import Path

import pytest

from tests import forking
from tests.cmbert.train import host_waits

BF16 = {"bf16": {"enabled": True}}


def watch(recipe_file: Path, tmp_path: Path, table: dict) -> dict:
    """Train under a DeepSpeed table and return what the host asked for."""
    (tmp_path / "ds.json").write_text(json.dumps(table), encoding="utf-8")
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text + '\n[guards]\nspike_action = "skip"\n', encoding="utf-8")
    command = [sys.executable, host_waits.__file__, str(recipe_file), str(tmp_path / "found.json")]
    environment = {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = forking.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found["steps"]) == 16
    assert sum(found["control"].values()) == 1
    return found


@pytest.mark.parametrize(
    ("stage", "accumulated"), [(1, {}), (1, {"data_types": {"grad_accum_dtype": "fp32"}}), (2, {})], ids=str
)
def test_no_step_asks_the_device(recipe_file: Path, tmp_path: Path, stage: int, accumulated: dict) -> None:
    found = watch(recipe_file, tmp_path, {"zero_optimization": {"stage": stage}, **BF16, **accumulated})
    # The rates of StableAdamW are numbers on a CPU, by `tolist`, which no dispatcher sees; on a GPU they stay there.
    assert not any(found["steps"]), found["steps"][1]


def test_what_deepspeed_does_by_default_is_counted(recipe_file: Path, tmp_path: Path) -> None:
    bf16 = {"bf16": {"enabled": True, "check_grad_overflow": True}}
    table = {"zero_optimization": {"stage": 1}, **bf16, "timers": {"throughput": {"enabled": True}}}
    found = watch(recipe_file, tmp_path, table)
    micro_batches = 4  # of a step; the timer waits before and after each
    last = found["steps"][-1]
    assert last.pop("ThroughputTimer.start") == last.pop("ThroughputTimer.stop") == micro_batches
    assert sum(last.values()) >= 1
