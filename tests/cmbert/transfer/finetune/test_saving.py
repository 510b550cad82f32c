"""A tuned model that is kept: a stock folder of transformers that gives our answers, through the command."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.transfer.finetune import protocol, saving
from cmbert.transfer.finetune.agreement import Agreement, prove_answers
from cmbert.transfer.finetune.backbone import our_backbone
from cmbert.transfer.finetune.defaults import Asked
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.protocol import finetune
from cmbert.transfer.finetune.task_model import TaskModel
from cmbert.transfer.finetune.trial import Setting, TrialResult
from cmbert.transfer.finetune.tuned_card import render_card
from cmbert.transfer.tasks.fields import Entity, Example
from cmbert.transfer.tasks.task import Task
from tests.cmbert.transfer.finetune.conftest import SHAPE

TEXTS = ["今天天气很好", "[MASK]不[SEP]喜欢", "这家酒店的服务态度差，房间不干净" * 9, "好"]


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """transformers copies model code of folders it loads into the home directory."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(params=["rmsnorm", "layernorm"])
def backbone(request, tokenizer, tokenizer_directory):
    model = MaskedLanguageModel(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, max_length=128, norm=request.param, rope_base_global=500.0, **SHAPE
        )
    )
    initialise(model, 0)
    return our_backbone(model, tokenizer_directory, untrained=False)


def tune(backbone, task, folder, tmp_path, *, save="saved", seeds=2, **asked):
    asked = Asked(learning_rates=(5e-3,), batch_sizes=(8,), epochs=(4,), **asked)
    options = {"model_name": "mine", "asked": asked, "num_seeds": seeds, "save": tmp_path / save if save else None}
    return finetune(backbone, task, folder, tmp_path / "out", **options)


def test_the_folder_gives_our_answers(backbone, task, review_folder, tmp_path):
    from transformers import pipeline

    result = tune(backbone, task, review_folder, tmp_path)
    folder = tmp_path / "saved"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["id2label"], config["num_labels"]) == ({"0": "0", "1": "1"}, 2)
    assert config["architectures"][0].endswith("ForSequenceClassification")
    classify = pipeline(
        "text-classification", model=str(folder), trust_remote_code=backbone.encoder.config.norm == "rmsnorm"
    )
    records = [json.loads(line) for line in (review_folder / "dev.json").read_text(encoding="utf-8").splitlines()]
    answers = [found["label"] for found in classify([record["sentence"] for record in records], truncation=True)]
    record = json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
    trial = json.loads((tmp_path / "out/reviews/mine/trials" / f"{record['trial']}.json").read_text(encoding="utf-8"))
    assert answers == trial["dev_answers"]
    right = sum(answer == record["label"] for answer, record in zip(answers, records, strict=True))
    assert 100 * right / len(records) == pytest.approx(max(result["splits"]["dev"]["accuracy"]["values"]))


TASKS = {
    "pairs": (
        Task(name="p", text=("a", "b"), labels=("no", "yes", "0")),
        [Example(str(i), ((text, TEXTS[-1 - i]),), i % 3) for i, text in enumerate(TEXTS)],
    ),
    "several labels": (
        Task(name="l", labels=("甲", "乙", "丙"), problem_type="multi_label_classification"),
        [Example(str(i), ((text, None),), labels=(i % 3,)) for i, text in enumerate(TEXTS)],
    ),
    "numbers": (
        Task(name="n", label="price", problem_type="regression"),
        [Example(str(i), ((text, None),), value=float(i)) for i, text in enumerate(TEXTS)],
    ),
    "entities": (
        Task(name="e", reader="entities", labels=("地点", "时间")),
        [Example(str(i), ((text, None),), entities=(Entity(0, 1, "时间"),)) for i, text in enumerate(TEXTS)],
    ),
    "choices": (
        Task(name="m", reader="c3"),
        [Example(str(n), tuple((f"问{i}", text) for i, text in enumerate(TEXTS[:n])), 0) for n in (2, 4, 3)],
    ),
    "spans": (
        Task(name="s", reader="cmrc"),
        [Example(str(i), (("哪年？", text),), None, (text[:2],), 0) for i, text in enumerate(TEXTS)],
    ),
}


def write_fresh(backbone, task, folder):
    """A model of fresh weights that are large enough for a difference to show, written as a tuned one is."""
    model = TaskModel(backbone, task, 0).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(50)
        model.classifier.bias.normal_(generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    saving._write(folder, model, task, 48)
    return model


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_agrees(backbone, kind, tmp_path):
    task, examples = TASKS[kind]
    model = write_fresh(backbone, task, tmp_path / "folder")
    found = prove_answers(tmp_path / "folder", model, task, prepare(backbone, task, examples, 48))
    assert (found.examples, found.differing, found.left_out) == (len(examples), 0, 0)
    assert found.error < 1e-5


@pytest.mark.parametrize("kind", TASKS)
def test_every_card_runs_as_written(ours, kind, tmp_path, capsys):
    task, _ = TASKS[kind]
    write_fresh(ours, task, tmp_path / "folder")
    setting = Setting(learning_rate=1e-3, batch_size=8, epochs=3)
    best = TrialResult(setting, 1, {task.score_names[0]: 50.0}, {}, [], [], [1.0], 1.0)
    result = {"model": "start", "train_examples": 9, "curves": [{}], "grid": [{}], "splits": {"dev": {"examples": 4}}}
    identity = {"weights": "ab" * 16, "data": dict.fromkeys(task.train, "cd" * 16), "max_length": 48}
    agreement = Agreement("transformers' pipeline", 4, 1, 1e-6, 0)
    card = render_card(task, best, result, identity, agreement, tmp_path / "folder", None)
    assert card.startswith("---\nlanguage: zh\n")
    program = card.split("```python\n")[1].split("```")[0]
    exec(program, {"folder": str(tmp_path / "folder")})
    assert capsys.readouterr().out.strip() or kind in ("entities", "spans")  # fresh weights may find nothing


def in_file(name, **changes):
    def fault(folder):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(values | changes), encoding="utf-8")

    return fault


in_config, in_tokenizer = partial(in_file, "config.json"), partial(in_file, "tokenizer_config.json")


def in_weights(name, change):
    def fault(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = change(weights[name]).contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return fault


FAULTS = {
    "another pooling": in_config(classifier_pooling="cls"),
    "another window": in_config(local_attention=8),
    "labels in another order": in_config(id2label={"0": "yes", "1": "no", "2": "0"}),
    "texts cut elsewhere": in_tokenizer(model_max_length=40),
    "a text's [MASK] is one": in_tokenizer(split_special_tokens=False),
    "the head's norm": in_weights("head.norm.weight", lambda weight: weight * 1.01),
    "the head's dense": in_weights("head.dense.weight", torch.Tensor.t),
    "the linear layer's bias": in_weights("classifier.bias", torch.zeros_like),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(backbone, fault, tmp_path):
    task, examples = TASKS["pairs"]
    model = write_fresh(backbone, task, tmp_path / "folder")
    FAULTS[fault](tmp_path / "folder")
    with pytest.raises(CheckpointError, match="not the tuned one"):
        prove_answers(tmp_path / "folder", model, task, prepare(backbone, task, examples, 48))


def test_what_was_cut_around_its_middle_is_left_out(ours, tmp_path):
    task, examples = TASKS["pairs"]
    examples = [*examples, replace(examples[2], kept=(0, 3))]
    model = write_fresh(ours, task, tmp_path / "folder")
    found = prove_answers(tmp_path / "folder", model, task, prepare(ours, task, examples, 48))
    assert (found.examples, found.left_out) == (len(examples) - 1, 1)


def test_a_stop_in_the_middle_changes_nothing(ours, task, review_folder, tmp_path, monkeypatch):
    tune(ours, task, review_folder, tmp_path / "unbroken", seeds=3)
    run_trial, calls = protocol.run_trial, []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return run_trial(*arguments)

    monkeypatch.setattr(protocol, "run_trial", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(ours, task, review_folder, tmp_path / "broken", seeds=3)
        assert not (tmp_path / "broken" / "saved").exists()
    tune(ours, task, review_folder, tmp_path / "broken", seeds=3)
    first, second = (tmp_path / way / "saved" for way in ("unbroken", "broken"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert not list((tmp_path / "broken").rglob("best.safetensors"))


def test_weights_that_were_not_kept_are_trained_again(ours, task, review_folder, tmp_path, monkeypatch):
    tune(ours, task, review_folder, tmp_path, save="first")
    unfinished = []

    def watched(*arguments):
        unfinished.append(arguments[5])
        return protocol.run_trial(*arguments)

    monkeypatch.setattr(saving, "run_trial", watched)
    tune(ours, task, review_folder, tmp_path, save="second")
    record = json.loads((tmp_path / "second" / "finetune.json").read_text(encoding="utf-8"))
    assert [path.stem for path in unfinished] == [record["trial"]]  # a stop in it is not taken for another trial's
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_second_call_has_nothing_to_do_and_another_is_refused(ours, task, review_folder, tmp_path, monkeypatch):
    tune(ours, task, review_folder, tmp_path)
    before = (tmp_path / "saved" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(protocol, "run_trial", None)
    tune(ours, task, review_folder, tmp_path)
    assert (tmp_path / "saved" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds something else"):
        tune(ours, replace(task, max_length=24), review_folder, tmp_path / "other", save=tmp_path / "saved")
    assert not (tmp_path / "other").exists()


def test_a_model_that_is_not_the_tuned_one_does_not_appear(ours, task, review_folder, tmp_path, monkeypatch):
    write = saving._write

    def faulty(folder, *arguments):
        write(folder, *arguments)
        in_config(classifier_pooling="cls")(folder)

    monkeypatch.setattr(saving, "_write", faulty)
    with pytest.raises(CheckpointError, match="not the tuned one"):
        tune(ours, task, review_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "saved" in path.name] == []
    assert (tmp_path / "out/reviews/mine/result.json").is_file()


def test_another_encoder_is_refused_before_it_is_trained(theirs, task, review_folder, tmp_path):
    with pytest.raises(ConfigError, match="cmbert import"):
        tune(theirs, task, review_folder, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_card_runs_as_written(ours, task, review_folder, tmp_path, capsys):
    tune(ours, task, review_folder, tmp_path)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    program = card.split("```python\n")[1].split("```")[0]
    exec(program, {"folder": str(tmp_path / "saved")})
    assert "'label': " in capsys.readouterr().out
    for said in ("reviews", "dev", "accuracy", "`0`, `1`", "64 examples", "40 of 40"):
        assert said in card
