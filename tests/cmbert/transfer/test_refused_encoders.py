"""What is no encoder is one line that names it, whoever opens it; code of a folder runs only when it is asked for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmbert.bench.throughput_table import their_candidate
from cmbert.errors import CheckpointError, CmbertError, ConfigError
from cmbert.transfer.embedding.scoring import open_embedder
from cmbert.transfer.finetune.backbone import their_backbone
from tests.cmbert.transfer.foreign import in_config, write_encoder, write_tokenizer

pytestmark = pytest.mark.usefixtures("offline")


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
