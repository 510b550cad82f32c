"""What other programs read from config.json: each key is there and has the value that our model has built in.

Read in the sources of those programs, of the commits named here; none of them runs in this test.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from cmbert.config.load import load_recipe
from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError
from cmbert.export.hf import is_ours
from cmbert.model.config_json import config_json, model_config
from cmbert.tokenizer import load_tokenizer

MODEL = ModelConfig(
    num_layers=7, hidden_size=64, num_heads=2, intermediate_size=96, vocab_size=384, norm="layernorm", norm_eps=1e-4,
    global_every=2, local_window=32, rope_base_global=80_000.0, rope_base_local=20_000.0, max_length=777, init_std=0.03,
)  # fmt: skip
IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}  # of the fixture
SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 2,
    "max_position_embeddings": 777, "norm_eps": 1e-4, "local_attention": 32, "initializer_range": 0.03,
}  # fmt: skip
BUILT_IN = {
    "hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "decoder_bias": True, "initializer_cutoff_factor": 2.0,
    "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
}  # fmt: skip
OLDER = {"global_attn_every_n_layers": 2, "global_rope_theta": 80_000.0, "local_rope_theta": 20_000.0}
NEWER = {
    "layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 80_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    },
}

READ_BY: dict[str, dict[str, Any]] = {
    # transformers 4.48.0 and 4.57.6, models/modernbert/configuration_modernbert.py
    "transformers 4": {"model_type": "modernbert"} | IDS | SHAPE | BUILT_IN | OLDER,
    # transformers 5.23.0, the same file
    "transformers 5": {"model_type": "modernbert", "tie_word_embeddings": True} | IDS | SHAPE | BUILT_IN | NEWER,
    # huggingface/text-embeddings-inference 0d124dc: backends/candle/src/models/modernbert.rs has a struct that is not
    # read where one of these is missing; lib.rs beside it goes by model_type, router/src/lib.rs by architectures.
    "text-embeddings-inference": {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}
    | IDS | SHAPE | OLDER | BUILT_IN,
    # vllm-project/vllm 002b4cf, vllm/model_executor/models/modernbert.py
    "vLLM with transformers 4": SHAPE | OLDER | {
        "layer_norm_eps": 1e-4, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
        "classifier_bias": False, "classifier_pooling": "mean",
    },
    # vllm-project/vllm 8ae7ba4, the same file
    "vLLM with transformers 5": SHAPE | NEWER | {
        "norm_bias": False, "attention_bias": False, "mlp_bias": False, "classifier_bias": False,
        "classifier_activation": "gelu", "classifier_pooling": "mean",
    },
}  # fmt: skip


@pytest.fixture
def written(tokenizer_directory: Path) -> dict[str, Any]:
    return config_json(MODEL, load_tokenizer(tokenizer_directory).vocabulary)


@pytest.mark.parametrize("reader", READ_BY)
def test_every_key_is_there_with_our_value(reader: str, written: dict[str, Any]) -> None:
    assert {key: written.get(key) for key in READ_BY[reader]} == READ_BY[reader]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_nothing_is_written_that_no_program_reads(norm: str, written: dict[str, Any]) -> None:
    """But for what transformers reads of every model, and ours of one with RMSNorm."""
    values = config_json(ModelConfig(**{**vars(MODEL), "norm": norm}), None)
    known = set().union(*READ_BY.values()) | {"dtype", "architectures"}
    assert values.keys() - known == ({"norm", "auto_map"} if norm == "rmsnorm" else set())


def test_modernbert_config_agrees_in_both_spellings(written: dict[str, Any]) -> None:
    """transformers 5 drops the older spelling of the RoPE bases once it has read it."""
    from transformers import ModernBertConfig

    values = dict(written)
    theirs = ModernBertConfig(**values).to_dict()
    bases = {key: values.pop(key) for key in ("global_rope_theta", "local_rope_theta")}
    assert {key: theirs[key] for key in values if key != "dtype"} == {k: v for k, v in values.items() if k != "dtype"}
    older = {key: value for key, value in values.items() if key not in NEWER} | bases
    assert {key: ModernBertConfig(**older).to_dict()[key] for key in NEWER} == NEWER


def test_heads_have_their_architectures() -> None:
    for norm, family in (("layernorm", "ModernBert"), ("rmsnorm", "Cmbert")):
        config = ModelConfig(**{**vars(MODEL), "norm": norm})
        for head in ("Model", "ForMaskedLM", "ForSequenceClassification"):
            assert config_json(config, None, head=head)["architectures"] == [family + head]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("left_out", [(), tuple(OLDER), tuple(NEWER)], ids=["both", "newer alone", "older alone"])
def test_it_is_read_back_in_any_spelling(norm: str, left_out: tuple[str, ...]) -> None:
    config = ModelConfig(**{**vars(MODEL), "norm": norm})
    values = {key: value for key, value in config_json(config, None).items() if key not in left_out}
    assert model_config(values, Path("config.json")) == config


def test_a_folder_of_an_earlier_version_is_read() -> None:
    config = ModelConfig(**{**vars(MODEL), "norm": "rmsnorm"})
    values = {key: value for key, value in config_json(config, None).items() if key not in (*OLDER, "norm")}
    assert model_config(values | {"model_type": "cmbert"}, Path("config.json")) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"global_rope_theta": 160_000.0}, "global_rope_theta is 160000.0, and rope_parameters say 80000.0"),
        ({"local_rope_theta": 1.0}, "local_rope_theta is 1.0, and rope_parameters say 20000.0"),
        ({"global_attn_every_n_layers": 3}, "layer_types are not .*, or not those of global_attn_every_n_layers"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, and norm_eps 0.0001"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_two_readers_would_read_differently_is_refused(
    change: dict[str, Any], said: str, written: dict[str, Any], tmp_path: Path
) -> None:
    """transformers 4 writes its own base beside rope_parameters where a file had nothing else."""
    with pytest.raises(CheckpointError, match=said):
        model_config(written | change, Path("config.json"))
    for values in (written, written | change):
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
        assert is_ours(tmp_path) == (values is written)


def test_large_says_what_the_paper_has() -> None:
    values = config_json(load_recipe("recipes/large/stage2.toml").model, None)
    assert (values["model_type"], values["norm"], values["architectures"]) == (
        "modernbert", "rmsnorm", ["CmbertForMaskedLM"],
    )  # fmt: skip
    assert (values["global_rope_theta"], values["local_rope_theta"]) == (80_000.0, 10_000.0)
    assert not any(name.endswith("Config") for name in values["auto_map"])
