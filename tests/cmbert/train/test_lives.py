"""A job's lives are counted at the newest checkpoint, and come to an end."""

from pathlib import Path

import pytest

from cmbert.cluster.distributed import Launch
from cmbert.errors import CheckpointError, ConfigError
from cmbert.runs.metrics import EVENTS_FILE, read_events
from cmbert.train.lives import begin_life


class Lives:
    """Starts of jobs in one run directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch):
        self.run, self.result, self.monkeypatch = directory / "run", directory / "result", monkeypatch
        self.result.mkdir()
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")

    def begin(self, job: str, max_lives: int = 3) -> str:
        """Return what the life file says between the run directory and the steps to reach."""
        self.monkeypatch.setenv("SLURM_JOB_ID", job)
        begin_life(self.run, Launch(0, 16, 0, "n1", 1), self.result, max_lives, (40, 80))
        run, rest = (self.result / "life").read_text(encoding="utf-8").split("\t", 1)
        assert run == str(self.run)
        assert rest.endswith("\t40\t80\n")
        return rest.removesuffix("\t40\t80\n")

    def checkpoint(self, step: int) -> None:
        folder = self.run / "checkpoints" / f"step_{step:09d}"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").touch()


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    return Lives(tmp_path, monkeypatch)


def test_lives_at_the_newest_checkpoint_are_counted(lives: Lives) -> None:
    assert [lives.begin("7"), lives.begin("7")] == ["-\t1", "-\t2"]
    lives.checkpoint(40)
    assert [lives.begin("7"), lives.begin("7")] == ["step_000000040\t1", "step_000000040\t2"]
    assert [lives.begin("8"), lives.begin("7")] == ["step_000000040\t1", "step_000000040\t1"]
    events = read_events(lives.run)
    assert [(event["kind"], event["step"], event["job"]) for event in events] == [
        ("life", step, job) for step, job in ((0, "7"), (0, "7"), (40, "7"), (40, "7"), (40, "8"), (40, "7"))
    ]
    assert events[0]["text"] == "job 7, restart 0: 16 ranks on n[1-2]"


def test_too_many_lives(lives: Lives) -> None:
    lives.begin("7")
    lives.begin("7")
    (lives.result / "life").unlink()
    with pytest.raises(CheckpointError, match="2 lives of job 7 began at checkpoint - and left no newer one"):
        lives.begin("7", max_lives=2)
    assert not (lives.result / "life").exists()
    assert len(read_events(lives.run)) == 2
    lives.checkpoint(4)
    assert lives.begin("7", max_lives=1) == "step_000000004\t1"


def test_a_torn_line_of_events_does_not_stop_a_life(lives: Lives) -> None:
    lives.begin("7")
    path = lives.run / EVENTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "spike", "step": 3, "te')
    assert lives.begin("7") == "-\t2"
    assert path.read_bytes().startswith(whole + b'{"time": ')
    assert [event["kind"] for event in read_events(lives.run)] == ["life", "life"]


@pytest.mark.parametrize("name", ["a\tb", "a\nb"])
def test_a_run_that_no_line_can_hold_is_refused(name: str, lives: Lives) -> None:
    lives.run = lives.run / name
    with pytest.raises(ConfigError, match=r"run_directory: .* has a tab or a line's end in it; name it otherwise"):
        lives.begin("7")
    assert not lives.run.exists()
