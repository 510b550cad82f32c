"""Preprocessing as an array, and the whole chain of jobs, on a real Slurm."""

import json
import re
from pathlib import Path

import pytest

from cmbert.data.shards.shard_set import ShardSet
from data_tools.cli import main as data_tools
from tests.conftest import SENTENCES
from tests.slurm.cluster import wait_until
from tests.slurm.desk import DONE, Desk

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NAMES = ["preprocess-laws", "merge-laws", "verify-laws", "preprocess-heldout", "merge-heldout", "verify-heldout",
         "plan-stage1", "plan-stage2", "stage1", "stage2", "export", "evaluate"]  # fmt: skip


@pytest.fixture
def desk(desk: Desk, tmp_path: Path, recipe_file: Path) -> Desk:
    """Text, and recipes of two stages in folders as recipes/large has them."""
    for name, count in (("laws", 900), ("heldout", 60)):
        folder = tmp_path / "text" / name
        folder.mkdir(parents=True)
        documents = [{"text": "".join(SENTENCES[(i + j) % 5] for j in range(1 + i % 7))} for i in range(count)]
        for part in range(3):
            lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents[part::3])
            (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    recipes = tmp_path / "recipes" / "tiny"
    recipes.mkdir(parents=True)
    text = recipe_file.read_text(encoding="utf-8")
    text = re.sub(r'run_directory = ".*"', 'run_directory = "runs/tiny/stage1"', text)
    text = re.sub(r'(sources\]\]\n)path = ".*"', r'\1path = "runs/tiny/shards/laws"', text)
    text += '[evaluation]\nshards = "runs/tiny/shards/heldout"\nmax_rows = 8\n'
    (recipes / "stage1.toml").write_text(text, encoding="utf-8")
    (recipes / "stage2.toml").write_text(
        'extends = "recipes/tiny/stage1.toml"\nrun_directory = "runs/tiny/stage2"\n'
        "[data]\ncontext_tokens = 128\n[train]\ntotal_tokens = 4096\nrows_per_step = 4\n"
        'init_from = "runs/tiny/stage1"\n',
        encoding="utf-8",
    )
    return desk


def submit_all(desk: Desk, *arguments: str, code: int = 0) -> dict[str, tuple[str, str]]:
    """Return number and state of every job of the chain."""
    text = desk.slurm.call("slurm/submit_all.sh", "recipes/tiny", *arguments, directory=desk.directory, code=code)
    return {line.split()[0]: tuple(line.split()[1:3]) for line in text.splitlines()}


def test_the_whole_chain_submitted_twice_and_again(desk: Desk) -> None:
    slurm = desk.slurm
    first = submit_all(desk, "text", "2")
    assert list(first) == NAMES
    assert {state for _, state in first.values()} == {"submitted"}
    for _ in range(2):
        second = submit_all(desk, "text", "2")
        assert all(second[name] == ("-", "done") or second[name][0] == first[name][0] for name in NAMES)
        assert "submitted" not in {state for _, state in second.values()}
        desk.wait_for_state(first["merge-laws"][0], "COMPLETED")
    for name in NAMES:
        assert desk.end(first[name][0]) == "0:0", f"{name}\n{desk.output(first[name][0])}"
    root = desk.directory / "runs" / "tiny"
    assert json.loads((root / "eval.json").read_text(encoding="utf-8"))["heldout_loss"] > 0
    assert (root / "export" / "model.safetensors").is_file()
    starts = [
        slurm.show(first[name][0])["StartTime"] for name in ("merge-laws", "verify-laws", "stage1", "stage2", "export")
    ]
    assert starts == sorted(starts)
    assert "1 ranks" not in desk.output(first["stage1"][0])
    assert {state for _, state in submit_all(desk, "text", "2").values()} == {"done"}


def test_a_chain_that_broke_is_mended_by_the_same_command(desk: Desk) -> None:
    slurm = desk.slurm
    bad = desk.directory / "text" / "laws" / "1.jsonl"
    sound = bad.read_bytes()
    bad.write_bytes(sound + b"{}\n")  # a document without text
    first = submit_all(desk, "text", "2")
    array = first["preprocess-laws"][0]
    wait_until(lambda: array not in slurm.call("squeue", "-h", "-o", "%A %F").split(), "the end of the array")
    desk.wait_for_state(first["evaluate"][0], "CANCELLED")  # nothing waits for ever
    assert desk.end(first["merge-heldout"][0]) == "0:0"
    bad.write_bytes(sound)
    second = submit_all(desk, "text", "2")
    assert second["merge-heldout"] == ("-", "done")
    assert second["preprocess-laws"][1] == "submitted"
    for name in ("preprocess-laws", "merge-laws"):
        assert desk.end(second[name][0]) == "0:0"
    slurm.call("scancel", *(job for job, _ in second.values() if job != "-"))


def test_a_task_of_the_array_that_was_killed_is_done_again(
    desk: Desk, tokenizer_directory: Path, tmp_path: Path
) -> None:
    words = ["--input", "text/laws", "--tokenizer", str(tokenizer_directory), "--output", "laws"]
    desk.break_task(6)
    job = desk.submit("preprocess.sh", *words, options=("--array=5-7", "--cpus-per-task=1"))
    tasks = [f"{job}_{number}" for number in (5, 6, 7)]
    desk.next_life(tasks[1])
    for task in tasks:
        desk.wait_for_state(task, *DONE)
        assert desk.slurm.show(task)["ExitCode"] == "0:0"
    assert [desk.slurm.show(task)["Restarts"] for task in tasks] == ["0", "1", "0"]
    join = desk.submit("preprocess.sh", *words, options=(f"--dependency=afterok:{job}", "--cpus-per-task=1"))
    assert desk.end(join) == "0:0", desk.output(join)
    names = [f"{job}_5", f"{job}_6.life0", f"{job}_6", f"{job}_7", join]
    logs = {desk.directory / "slurm" / "logs" / f"cmbert-preprocess-{name}.out" for name in names}
    assert set(desk.directory.rglob("*.out")) == logs
    assert all(path.stat().st_size for path in logs)
    alone = tmp_path / "alone"
    text = str(desk.directory / "text" / "laws")
    assert data_tools(["preprocess", "--input", text, *words[2:4], "--output", str(alone)]) == 0
    assert ShardSet(desk.directory / "laws").fingerprint == ShardSet(alone).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("elsewhere", "2"), "elsewhere/laws: missing"),
        (("text", "none"), "JOBS: none: must be a number from 1 on"),
        (
            ("text", "2000"),
            "Invalid job array specification; nothing is submitted; MaxArraySize here is 1001: give a smaller",
        ),
    ],
)
def test_what_no_job_can_make_is_refused_before_anything_is_submitted(
    arguments: tuple[str, ...], message: str, desk: Desk
) -> None:
    assert message in refused(desk, *arguments)


def refused(desk: Desk, *arguments: str) -> str:
    """Return the one line that submit_all.sh ends with; nothing is left by it."""
    text = desk.slurm.call("slurm/submit_all.sh", "recipes/tiny", *arguments, directory=desk.directory, code=2)
    assert text.count("\n") == 1
    assert not (desk.directory / "runs").exists()
    assert not desk.slurm.call("squeue", "-h")
    return text


def test_jobs_that_would_wait_for_ever_are_refused_with_the_variable_to_set(desk: Desk) -> None:
    environment = desk.directory / "slurm" / "env.sh"
    sound = environment.read_text(encoding="utf-8")
    for name, options, problem in (
        ("CMBERT_CPU_OPTIONS", "--cpus-per-task=32", "preprocess.sh: allocation failure: Requested node config"),
        ("CMBERT_STAGE_OPTIONS", "--nodes=7", "stage1.sh: allocation failure: Requested node config"),
        ("CMBERT_EVALUATE_OPTIONS", "--gpus-per-node=9", "evaluate.sh: allocation failure: Requested node config"),
    ):
        environment.write_text(f"{sound}{name}=({options})\n", encoding="utf-8")
        text = refused(desk, "text", "2")
        assert problem in text
        assert f"set {name} in slurm/env.sh" in text
    environment.write_text(f"{sound}export SBATCH_PARTITION=none\n", encoding="utf-8")
    assert "set SBATCH_PARTITION and SBATCH_ACCOUNT in slurm/env.sh" in refused(desk, "text", "2")
    environment.write_text(sound, encoding="utf-8")
    desk.slurm.call("scontrol", "update", "PartitionName=main", "MaxTime=60")
    try:
        text = refused(desk, "text", "2")
    finally:
        desk.slurm.call("scontrol", "update", "PartitionName=main", "MaxTime=INFINITE")
    assert "--time=24:00:00, and partition main gives 1:00:00; nothing" in text
    assert "set --time=1:00:00 in CMBERT_CPU_OPTIONS" in text
