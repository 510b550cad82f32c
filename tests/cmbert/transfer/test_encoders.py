"""Encoders from outside: every family reads sentences, pairs, spans and choices."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmbert.bench.throughput_table import their_candidate
from cmbert.cli import main
from cmbert.errors import CheckpointError
from cmbert.model.mixed_precision import MixedPrecision
from cmbert.transfer.embedding.scoring import open_embedder
from cmbert.transfer.encoders import open_encoder
from cmbert.transfer.finetune.backbone import Backbone, their_backbone
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.task_model import TaskModel
from cmbert.transfer.finetune.trial import backward
from cmbert.transfer.tasks.examples import Example
from cmbert.transfer.tasks.task import Task
from tests.cmbert.transfer.foreign import FAMILIES, TOKENS, in_config, write_encoder

pytestmark = pytest.mark.usefixtures("offline")
TEXTS = ("今天天气很好", "不喜欢", "这家酒店的服务态度差，房间不干净。" * 9, "好")
CONTEXT = "今天他去了北京公园，" + "房间很干净。" * 8


def examples() -> dict[str, tuple[Task, list[Example]]]:
    """Ten examples of each kind of task."""
    sentences = [Example(str(i), ((TEXTS[i % 4], None),), i % 2) for i in range(10)]
    pairs = [Example(str(i), ((TEXTS[i % 4], TEXTS[i % 3]),), i % 2) for i in range(10)]
    place = CONTEXT.index("北京公园")
    spans = [Example(str(i), (("他去了哪里？", CONTEXT),), None, ("北京公园",), place) for i in range(10)]
    choices = [Example(str(i), tuple((text, "好不好？") for text in TEXTS[: 2 + i % 3]), i % 2) for i in range(10)]
    classes = Task(name="c", labels=("0", "1"))
    return {
        "sentences": (classes, sentences),
        "pairs": (classes, pairs),
        "spans": (Task(name="s", reader="cmrc"), spans),
        "choices": (Task(name="m", reader="c3"), choices),
    }


def require_two_steps(backbone: Backbone) -> None:
    """Of each kind of task: a batch says of its examples what they say alone, and two steps have finite losses."""
    for task, found in examples().values():
        items = prepare(backbone, task, found, min(48, backbone.max_length or 48))
        model = TaskModel(backbone, task, 0).eval()
        with torch.no_grad():
            together = model(items[:4]).split([len(item.parts) if task.kind == "span" else 1 for item in items[:4]])
            for row, item in zip(together, items, strict=False):
                alone = model([item])
                torch.testing.assert_close(row[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
        model.train()
        optimizer = MixedPrecision(model, 1e-3)
        for _ in range(2):
            assert 0 < backward(model, items) < 1000
            optimizer.step()
        assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", name, extra_rows=3)
    found = open_encoder(str(folder))
    assert found.max_length == TOKENS.get(name, 64)
    assert found.hidden_size == 16
    longest = torch.arange(20, 20 + (found.max_length or 200))[None] % 40
    with torch.no_grad():  # what it is said to take, it takes
        found.network(input_ids=longest, attention_mask=torch.ones_like(longest))
    require_two_steps(their_backbone(str(folder), untrained=False))
    embedder = open_embedder(str(folder), 32)
    both, alone = embedder.encode(["好", TEXTS[2]]), embedder.encode(["好"])
    assert abs(both[0] - alone[0]).max() < 1e-5
    assert their_candidate(str(folder), torch.device("cpu")).max_length == found.max_length


def test_an_encoder_whose_rows_change_with_padding_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_encoder(str(write_encoder(tmp_path / "model", "funnel")))
    assert "states depend on the padding of a batch" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"model_max_length": 10**30},
        {"padding_side": "left", "truncation_side": "left"},
        {"names": {"pad_token": ""}},
        {"shape": "no cls", "names": {"sep_token": "", "eos_token": "", "pad_token": ""}},
        {"model_input_names": ["input_ids"]},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    ],
    ids=lambda change: "-".join(change),
)
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_tokenizers_of_all_kinds(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", name, **change)
    backbone = their_backbone(str(folder), untrained=False)
    (part,) = backbone.read([(TEXTS[2], None)], 16)
    assert len(part.ids) == 16
    assert part.offsets[1][0] <= 1  # the end is cut
    require_two_steps(backbone)
    embedder = open_embedder(str(folder), 32)
    both, alone = embedder.encode(["好", TEXTS[2]]), embedder.encode(["好"])
    assert abs(both[0] - alone[0]).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_any_precision_are_read_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "bert")
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    in_config(dtype=str(dtype).removeprefix("torch."))(folder)
    for untrained in (False, True):
        backbone = their_backbone(str(folder), untrained=untrained)
        assert {weight.dtype for weight in backbone.parameters()} == {torch.float32}


def test_pickled_weights_are_read_as_weights_only(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    require_two_steps(their_backbone(str(folder), untrained=False))
    mark = tmp_path / "ran"
    torch.save({**weights, "embeddings.x": RunsWhenRead(str(mark))}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load it"):
        their_backbone(str(folder), untrained=False)
    assert not mark.exists()


class RunsWhenRead:
    """What a pickle can do."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["xlnet", pytest.param("roberta", marks=pytest.mark.slow)])
def test_the_commands_from_end_to_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_encoder(tmp_path / "model", name)
    lines = [{"id": i, "sentence": TEXTS[i % 2], "label": str(i % 2)} for i in range(10)]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (data / "task.toml").write_text('name = "t"\nlabels = ["0", "1"]\nmax_length = 32\n', encoding="utf-8")
    options = ["--model", str(folder), "--task", str(data / "task.toml"), "--data", str(data), "--batch-sizes", "5"]
    assert main(["finetune", *options, "--output", str(tmp_path / "out"), "--seeds", "1", "--epochs", "1"]) == 0
    pairs = [{"sentence1": TEXTS[i % 3], "sentence2": TEXTS[i % 2] + "。" * i, "label": str(i % 2)} for i in range(10)]
    (data / "test.json").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    ranks = [{"query": "好" * (i + 1), "title": "坏" * (i + 1), "neg_title": "的" * (i + 1)} for i in range(10)]
    (data / "rank.json").write_text("\n".join(map(json.dumps, ranks)), encoding="utf-8")
    options = ["--model", str(folder), "--pairs", str(data / "rank.json"), "--eval", str(data / "test.json")]
    options += ["--output", str(tmp_path / "embedding"), "--batch-size", "5", "--max-length", "32"]
    assert main(["embed-train", *options]) == 0
    results = json.loads((tmp_path / "embedding" / "results.json").read_text(encoding="utf-8"))
    assert results["runs"][0]["training"]["steps"] == 2
    assert 0 < results["runs"][0]["training"]["loss"] < 100
    open_embedder(str(tmp_path / "embedding" / "model"), 32)
