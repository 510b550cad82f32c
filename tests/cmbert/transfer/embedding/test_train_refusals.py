"""What `cmbert embed-train` refuses, in one line and leaving nothing."""

import pytest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pairs", "{data}/absent.json"), "absent.json: no such file"),
        (("--eval", "{data}/rank.json"), "rank.json:1: no 'sentence1'"),
        (("--num-pairs", "100000"), "100,000 pairs asked for, but the files have"),
        (("--max-length", "65"), "--max-length 65: "),
        (("--model", "{data}"), "no checkpoint there"),
        (("--model", "./absent"), "./absent: no such folder"),
        (("--scaling", "8,8"), "--scaling"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(command, data, tmp_path, capsys, options, message):
    assert command(tmp_path / "out", *(word.format(data=data) for word in options)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_learning_rate_that_is_none(command, tmp_path, capsys, rate):
    with pytest.raises(SystemExit, match="2"):
        command(tmp_path / "out", "--learning-rate", rate)
    assert f"argument --learning-rate: {rate} must be positive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_at_once_is_refused(command, tmp_path, capsys, occupy):
    occupy(tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    assert command(tmp_path / "out", "--num-pairs", 16) == 2
    assert f"{tmp_path}/out: is written by a run on n7" in capsys.readouterr().err
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_what_does_not_fit_is_refused_and_leaves_nothing(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cmbert.memory.free_memory_bytes", lambda device: 1000)
    assert command(tmp_path / "run") == 2
    assert "are free on the" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
