"""`make gpu`: a dry run of every part on the CPU, the table made of a report, and what becomes of a part that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import is_alive

ROOT = Path(__file__).parents[2]
RUN = ROOT / "recipes" / "gpu" / "run.py"
PERFORMANCE = ROOT / "docs" / "performance.md"
MACHINE = {"hardware": "NVIDIA Testcard", "torch": "2.11.0", "python": "3.12.1"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runner's own module, found beside its parts as when it is started."""
    monkeypatch.syspath_prepend(str(RUN.parent))
    for name in ("run", "figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    return run


def start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def entry(run: Any, name: str, *, dry_run: bool = False, **more: Any) -> dict[str, Any]:
    """Return what a part leaves: no figures unless `more` has some."""
    (part,) = [part for part in run.PARTS if part.name == name]
    return run.nothing(part, "") | {"dry_run": dry_run, "machine": MACHINE, "done": True} | more


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the cells of the generated table by their first."""
    inside = text.partition("<!-- gpu: begin -->")[2].partition("<!-- gpu: end -->")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in inside.splitlines() if line[:1] == "|"]
    rows = {cells[0]: cells for cells in lines[2:]}
    assert len(rows) == len(lines) - 2
    return rows


@pytest.mark.slow
def test_dry_run_of_all_parts(tmp_path: Path) -> None:
    done = start("--dry-run", "--minutes", "60", "--output", str(tmp_path))  # beside whatever else runs here
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log.txt").read_text(encoding="utf-8")[-8000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "report.json"]
    parts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["parts"]
    assert list(parts) == [
        "card", "correctness", "training", "memory", "restart", "large_steps", "encoding", "attention",
    ]  # fmt: skip
    for part in parts.values():
        assert part["done"]
        assert part["dry_run"]
        assert not part["missing"]
        assert all(isinstance(value, int | float) for value in part["figures"].values())
    assert parts["large_steps"]["gpu_only"] == ["steps_synchronisations"]
    assert parts["restart"]["figures"]["restart_difference"] == 0
    assert 0 < parts["restart"]["details"]["resumed_at"] < parts["restart"]["details"]["steps"]
    assert parts["correctness"]["figures"]["conformance_failed"] == 0
    assert parts["training"]["details"]["profile_compiled"]["kernels"][0]["calls"] > 0

    document = tmp_path / "performance.md"
    document.write_text(PERFORMANCE.read_text(encoding="utf-8"), encoding="utf-8")
    assert start("--output", str(tmp_path), "--table", str(document)).returncode == 0
    measured = {cells[2] for cells in rows_of(document.read_text(encoding="utf-8")).values()}
    assert measured == {"not measured: a dry run on a CPU"}


def test_dry_run_of_one_part(tmp_path: Path) -> None:
    done = start("--dry-run", "--only", "card", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (card,) = report["parts"].values()
    assert card["done"]
    assert card["dry_run"]
    assert card["figures"]
    assert not card["missing"]


def test_without_a_gpu_every_part_says_so(tmp_path: Path) -> None:
    done = start("--output", str(tmp_path), environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert sum("no CUDA device" in line and line[:1].isdigit() for line in lines) == 8
    assert "not measured: no CUDA device" in lines[-2]


def test_the_documents_table_is_generated(run: Any, tmp_path: Path) -> None:
    """Every row of the shipped table is one of a figure, and none was typed."""
    rows = rows_of(PERFORMANCE.read_text(encoding="utf-8"))
    generated = rows_of(f"<!-- gpu: begin -->\n{run.markdown({'parts': {}})}\n<!-- gpu: end -->")
    assert list(rows) == list(generated)
    assert [cells[1] for cells in rows.values()] == [cells[1] for cells in generated.values()]


def test_table_has_figures_predictions_and_misses(run: Any, tmp_path: Path) -> None:
    figures = {"train_compiled_1024": 162_345.0, "train_eager_1024": 80_000.0}
    training = entry(run, "training", figures=figures, missing={"train_compiled_8192": "out of GPU memory"})
    memory = entry(run, "memory", figures={"memory_11_rows": 21.6, "memory_11_rows_plan": 20.0}, reason="out of time")
    dry = entry(run, "attention", dry_run=True, figures={"attention_global_1024_forward": 1.0})
    report = {"parts": {"training": training, "memory": memory, "attention": dry}}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- gpu: begin -->\nold\n<!-- gpu: end -->\nafter\n", encoding="utf-8")
    assert run.main(["--output", str(tmp_path), "--table", str(document)]) == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "training, memory: NVIDIA Testcard, 2.11.0, 3.12.1." in text
    rows = rows_of(text)
    assert rows["train large, rows of 1,024, compiled"][2:4] == ["162,000", "160,000 (+1%)"]
    assert rows["train large, rows of 1,024, not compiled"][2:4] == ["80,000", "120,000 (-33%, a miss)"]
    assert rows["train large, rows of 8,192, not compiled"][2] == "not measured: this part gave no such figure"
    assert rows["train large, rows of 8,192, compiled"][2] == "not measured: out of GPU memory"
    assert rows["memory of large, ZeRO 1, micro-batch 11 x 1,024"][2:4] == ["21.6", "20 (+8%)"]
    assert rows["memory of large, ZeRO 1, micro-batch 44 x 1,024"][2] == "not measured: out of time"
    assert rows["attention alone, global, segments of 1,024, forward"][2] == "not measured: a dry run on a CPU"
    assert rows["checkpoint of large: loaded"][2] == "not measured: this part has not run"


def test_a_part_out_of_time_is_killed_with_its_children(run: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    started = time.monotonic()
    with open(tmp_path / "log.txt", "ab") as log:
        assert run.run_limited([sys.executable, "-c", code], dict(os.environ), 3.0, log) is None
    assert time.monotonic() - started < 30
    child = int(pids.read_text(encoding="ascii"))
    for _ in range(100):
        if not is_alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("a child of the part outlived it")


def test_a_part_keeps_what_it_had_when_it_ended_badly(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part dies with a figure written, one runs out of time with another; a third is not kept from running."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    write = "import json, sys\nopen(sys.argv[2], 'w').write(json.dumps({{'figures': {{'{0}': 1.5}}, 'done': {1}}}))\n"
    (tmp_path / "card.py").write_text(write.format("product_8192_tflops", False) + "sys.exit(3)", encoding="utf-8")
    late = write.format("train_eager_1024", False) + "import time\ntime.sleep(60)"
    (tmp_path / "training.py").write_text(late, encoding="utf-8")
    (tmp_path / "attention.py").write_text(write.format("attention_x", True), encoding="utf-8")
    output = tmp_path / "out"
    only = [word for name in ("card", "training", "attention") for word in ("--only", name)]
    assert run.main(["--dry-run", "--minutes", "0.15", "--output", str(output), *only]) == 1
    parts = json.loads((output / "report.json").read_text(encoding="utf-8"))["parts"]
    assert parts["card"]["figures"] == {"product_8192_tflops": 1.5}
    assert parts["card"]["reason"] == "ended with exit code 3, see log.txt"
    assert parts["training"]["figures"] == {"train_eager_1024": 1.5}
    assert parts["training"]["reason"].startswith("out of time after")
    assert parts["attention"]["done"]
    assert not parts["attention"]["reason"]


def test_merge_adds_what_a_killed_run_left(run: Any, tmp_path: Path) -> None:
    full = entry(run, "training", figures={"train_eager_1024": 2.0})
    (tmp_path / "report.json").write_text(json.dumps({"parts": {"training": full}}), encoding="utf-8")
    (tmp_path / "training.json").write_text(json.dumps(entry(run, "training")), encoding="utf-8")
    (tmp_path / "memory.json").write_text(json.dumps({"figures": {"memory_11_rows": 3.0}}), encoding="utf-8")
    assert run.main(["--output", str(tmp_path), "--merge"]) == 0
    parts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["parts"]
    assert parts["training"]["figures"] == {"train_eager_1024": 2.0}  # one without figures does not replace it
    assert parts["memory"]["figures"] == {"memory_11_rows": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes 0: must be more than 0"),
        (["--dry-run", "--wheels", "nowhere"], "--wheels nowhere: no wheels there"),
        (["--table"], "report.json: no such report; run make gpu first"),
    ],
)
def test_a_users_mistake_is_one_line(run: Any, tmp_path: Path, capsys: Any, arguments: list[str], said: str) -> None:
    assert run.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_table_refuses_a_document_without_marks(run: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "report.json").write_text('{"parts": {}}', encoding="utf-8")
    document = tmp_path / "page.md"
    document.write_text("<!-- gpu: end --> <!-- gpu: begin -->", encoding="utf-8")
    assert run.main(["--output", str(tmp_path), "--table", str(document)]) == 2
    assert "must have the lines" in capsys.readouterr().err
    assert document.read_text(encoding="utf-8") == "<!-- gpu: end --> <!-- gpu: begin -->"


def test_profile_counts_launches_and_idle_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    from training import Span, summarise

    # two streams: a and b overlap, then nothing for 2 s, then a again
    found = summarise([Span("b", 1.0, 3.0), Span("a", 0.0, 2.0), Span("a", 5.0, 6.0)])
    assert (found["launches"], found["seconds"], found["idle_seconds"], found["long_gaps"]) == (3, 6.0, 2.0, 1)
    assert found["idle_share"] == pytest.approx(1 / 3)
    assert [(kernel["name"], kernel["seconds"], kernel["calls"]) for kernel in found["kernels"]] == [
        ("a", 3.0, 2),
        ("b", 2.0, 1),
    ]
    assert summarise([]) == {"launches": 0}


def test_waits_are_counted_between_the_records_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    from large_steps import between_steps

    records = [{"time": 10.0}, {"time": 20.0}, {"time": 30.0}]
    waits = [(5.0, "start"), (11.0, "loop.py:1"), (20.0, "loop.py:1"), (21.0, "loop.py:2"), (40.0, "end")]
    assert between_steps(records, waits) == [{"loop.py:1": 2}, {"loop.py:2": 1}]


def test_variable_lengths_fill_a_batch_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    from measuring import exactly

    from cmbert.bench.throughput import Workload

    assert exactly(Workload("x", (5, 3)), 18).lengths == (5, 3, 5, 3, 2)
    assert exactly(Workload("x", (5, 30)), 18).lengths == (5, 13)
