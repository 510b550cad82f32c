"""A trial learns, repeats bit for bit, goes on where it was stopped; dev after each epoch changes nothing of it."""

from dataclasses import replace

import pytest
import torch

from cmbert.model.mixed_precision import MixedPrecision
from cmbert.transfer.finetune import trial as trial_module
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.trial import Data, Setting, backward, run_trial
from cmbert.transfer.tasks.examples import read_split

SETTING = Setting(learning_rate=5e-3, batch_size=8, epochs=6)


def read(backbone, task, folder) -> Data:
    splits = [read_split(task, folder, name) for name in ("train", "dev", "test")]
    return Data(*(prepare(backbone, task, split.examples, 32) for split in splits))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_trial_learns_and_repeats(request, task, review_folder, tmp_path, kind):
    backbone = request.getfixturevalue(kind)
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    data = read(backbone, task, review_folder)
    first, second = (run_trial(backbone, task, data, SETTING, 1, tmp_path / "saved.pt") for _ in range(2))
    assert first.dev["accuracy"] > 90  # of two classes
    assert first.test == {}
    assert (first.losses, first.dev_answers, first.test_answers) == (
        second.losses,
        second.dev_answers,
        second.test_answers,
    )
    assert run_trial(backbone, task, data, SETTING, 2, tmp_path / "saved.pt").losses != first.losses
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bf16 with fp32 copies is what a GPU does
def test_an_interrupted_trial_goes_on_bit_for_bit(ours, task, review_folder, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(trial_module, "where_to_train", lambda: (torch.device("cpu"), dtype))
    data, saved = read(ours, task, review_folder), tmp_path / "saved.pt"
    unbroken = run_trial(ours, task, data, SETTING, 1, saved)
    assert unbroken.dev["accuracy"] > 90
    monkeypatch.setattr(trial_module, "SAVE_SECONDS", 0.0)
    steps = []

    def interrupt(*arguments):
        steps.append(1)
        if len(steps) == 28:  # in the middle of the fourth epoch of eight steps
            raise KeyboardInterrupt
        return backward(*arguments)

    monkeypatch.setattr(trial_module, "backward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_trial(ours, task, data, SETTING, 1, saved)
    assert saved.is_file()
    again = run_trial(ours, task, data, SETTING, 1, saved)
    assert len(steps) == 28 + 24  # epochs four to six
    assert replace(again, seconds=0) == replace(unbroken, seconds=0)
    assert not saved.exists()


def test_dev_after_each_epoch_changes_nothing(ours, task, review_folder, tmp_path, monkeypatch, caplog):
    data, saved = read(ours, task, review_folder), tmp_path / "saved.pt"
    setting = replace(SETTING, learning_rate=2e-3)
    with caplog.at_level("INFO"):
        each = run_trial(ours, task, data, setting, 1, saved)
    assert len(each.dev_by_epoch) == setting.epochs
    assert each.dev_by_epoch[-1] == each.dev
    lines = [line for line in caplog.messages if "epoch" in line]
    assert len(lines) == setting.epochs
    assert f"seed 1, epoch 6 of 6: loss {each.losses[-1]:.3f}, dev accuracy {each.dev['accuracy']:.2f}" in lines[-1]
    score_epoch = trial_module._score_epoch

    def only_the_last(model, task, data, course, name):
        if "epoch 6 of 6" in name:
            score_epoch(model, task, data, course, name)

    monkeypatch.setattr(trial_module, "_score_epoch", only_the_last)
    last = run_trial(ours, task, data, setting, 1, saved)
    assert replace(last, seconds=0) == replace(each, seconds=0, dev_by_epoch=each.dev_by_epoch[-1:])


def test_the_last_epoch_counts_not_the_best(ours, task, review_folder, tmp_path, monkeypatch):
    falling = iter((90.0, 80.0))
    monkeypatch.setattr(trial_module, "score", lambda *_: {"accuracy": next(falling)})
    result = run_trial(
        ours, task, read(ours, task, review_folder), replace(SETTING, epochs=2), 1, tmp_path / "saved.pt"
    )
    assert result.dev == {"accuracy": 80.0}
    assert result.dev_by_epoch == [{"accuracy": 90.0}, {"accuracy": 80.0}]


def test_bf16_weights_follow_fp32_copies():
    torch.manual_seed(0)
    exact = torch.nn.Linear(8, 8)
    half = torch.nn.Linear(8, 8).to(torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    exact.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    optimizers = [MixedPrecision(exact, 1e-4), MixedPrecision(half, 1e-4)]
    for step in range(50):
        gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(step)).bfloat16()
        exact.weight.grad, half.weight.grad = gradient.float(), gradient
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(optimizers[1].copies[0], exact.weight.detach(), atol=1e-7, rtol=1e-6)
    assert torch.equal(half.weight, exact.weight.bfloat16())
