"""Encoders from outside: every family reads sentences, pairs, spans and choices, and what is no encoder is one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmbert.bench.throughput_table import their_candidate
from cmbert.cli import main
from cmbert.errors import CheckpointError, CmbertError, ConfigError
from cmbert.model.mixed_precision import MixedPrecision
from cmbert.transfer.embedding.scoring import open_embedder
from cmbert.transfer.encoders import open_encoder
from cmbert.transfer.finetune.backbone import Backbone, their_backbone
from cmbert.transfer.finetune.examples import Example
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.task_model import TaskModel
from cmbert.transfer.finetune.tasks import Task
from cmbert.transfer.finetune.trial import backward
from tests.cmbert.transfer.foreign import FAMILIES, TOKENS, write_encoder, write_tokenizer

TEXTS = ("今天天气很好", "不喜欢", "这家酒店的服务态度差，房间不干净。" * 9, "好")
CONTEXT = "今天他去了北京公园，" + "房间很干净。" * 8


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


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
            together = model(items[:4]).split([len(item.pieces) if task.kind == "span" else 1 for item in items[:4]])
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
    (piece,) = backbone.read([(TEXTS[2], None)], 16)
    assert len(piece.ids) == 16
    assert piece.offsets[1][0] <= 1  # the end is cut
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


def in_config(**changes: Any):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        values = {key: value for key, value in values.items() if value != "gone"}
        path.write_text(json.dumps(values), encoding="utf-8")

    return change


def in_weights(change):
    def spoil(folder: Path) -> None:
        weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def bytes_of(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def without(*patterns: str):
    def spoil(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return spoil


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def with_code(folder: Path) -> None:
    mark = str(folder / "ran")
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({mark!r})\n", encoding="utf-8")
    in_config(model_type="x", auto_map={"AutoConfig": "modeling_x.C", "AutoModel": "modeling_x.M"})(folder)


def with_code_for_a_known_type(folder: Path) -> None:
    with_code(folder)
    in_config(model_type="bert")(folder)


def with_code_of_a_tokenizer(folder: Path) -> None:
    with_code(folder)
    in_config(model_type="bert", auto_map="gone")(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": {"AutoTokenizer": ["modeling_x.T", None]}}
    path.write_text(json.dumps(values), encoding="utf-8")


def with_a_larger_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"]["vocab"] |= {f"新{index}": 1000 + index for index in range(3)}
    path.write_text(json.dumps(values), encoding="utf-8")


def with_a_template_of_nothing(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(values), encoding="utf-8")


def as_nezha(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(127, 8)


FAULTS = {
    "only a config": (without("*.safetensors", "tok*"), "no file named|no tokenizer"),
    "no config": (without("config.json"), "config.json"),
    "a config that is no JSON": (bytes_of("config.json", b"{"), r"config\.json: not valid JSON"),
    "a config that is a list": (bytes_of("config.json", b"[]"), r"config\.json: found \[\], must be an object"),
    "no model type": (in_config(model_type="gone"), "model_type"),
    "an unknown type": (in_config(model_type="nezha"), "`nezha`"),
    "a decoder": (in_config(is_decoder=True), "from left to right"),
    "no position is a number": (in_config(max_position_embeddings="many"), "max_position_embeddings"),
    "hardly a position": (in_config(max_position_embeddings=4), "mismatch|LEAST|max_position_embeddings"),
    "no width": (in_config(hidden_size=0), "model"),
    "odd heads": (in_config(num_attention_heads=3), "build what config.json describes"),
    "a billion layers": (in_config(num_hidden_layers=10**9), "num_hidden_layers is above 1,024"),
    "a billion labels": (in_config(num_labels=10**9), "num_labels is above 1,000,000"),
    "a vocabulary of terabytes": (in_config(vocab_size=10**12), "describes .* parameters, the weights have"),
    "an activation that nobody has": (in_config(hidden_act="hyperbolic"), "build what config.json describes"),
    "weights cut off": (cut_weights, "cannot load it"),
    "weights of nothing": (bytes_of("model.safetensors", b""), "cannot load it|describes"),
    "weights that are none": (in_weights(lambda w: w["encoder.layer.0.output.dense.bias"].fill_(torch.nan)), "finite"),
    "a layer without weights": (in_weights(lambda w: w.pop("encoder.layer.1.output.dense.weight")), "lack 1 of"),
    "weights of NEZHA": (in_weights(as_nezha), "no place for 1 of the weights, encoder.layer.0.*distance_embedding"),
    "no tokenizer": (without("tok*"), "no tokenizer"),
    "a tokenizer that is no JSON": (bytes_of("tokenizer.json", b"{"), "tokenizer"),
    "a tokenizer that panics": (with_a_template_of_nothing, "it does not read text|cannot load it|can load"),
    "tokenizer settings that are no JSON": (bytes_of("tokenizer_config.json", b"\xff"), "tokenizer_config"),
    "a larger tokenizer": (with_a_larger_tokenizer, "the tokenizer has 1,003 ids, the model .*use its own"),
    "code": (with_code, "auto_map names code .* not run unasked; .*--trust-remote-code"),
    "code for a known type": (with_code_for_a_known_type, "auto_map names code"),
    "code of a tokenizer": (with_code_of_a_tokenizer, "auto_map names code"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert") / "bert", "bert")


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_opened_is_one_line_that_names_it(name: str, bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    spoil, message = FAULTS[name]
    spoil(folder)
    for open_it in (lambda: their_backbone(str(folder), untrained=False), lambda: open_embedder(str(folder), 32)):
        with pytest.raises(CmbertError, match=message) as caught:
            open_it()
        assert str(folder) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("kind", ["gpt2", "bart", "llama"])
def test_decoders_are_refused(kind: str, tmp_path: Path) -> None:
    import transformers as t

    folder = tmp_path / kind
    vocab_size = write_tokenizer(folder)
    made = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2)),
        "llama": lambda: t.LlamaModel(
            t.LlamaConfig(
                vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
            )
        ),
        "bart": lambda: t.BartModel(
            t.BartConfig(vocab_size=vocab_size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                         decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2)
        ),
    }  # fmt: skip
    made[kind]().save_pretrained(folder)
    for open_it in (
        lambda: their_backbone(str(folder), untrained=False),
        lambda: open_embedder(str(folder), 32),
        lambda: their_candidate(str(folder), torch.device("cpu")),
    ):
        with pytest.raises(CheckpointError, match=rf"{kind}: .*name an encoder"):
            open_it()


def test_code_is_run_when_it_is_asked_for(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    with_code_for_a_known_type(folder)
    code = "from transformers import BertConfig, BertModel\nclass C(BertConfig): pass\n"
    code += "class M(BertModel):\n    config_class = C\n"
    (folder / "modeling_x.py").write_text(code, encoding="utf-8")
    assert type(their_backbone(str(folder), untrained=False, trust=True).encoder).__name__ == "M"


def test_a_length_that_roberta_cannot_take(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "roberta")
    open_embedder(str(folder), 64)
    with pytest.raises(ConfigError, match=r"--max-length 65: .* takes up to 64 tokens"):
        open_embedder(str(folder), 65)


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
