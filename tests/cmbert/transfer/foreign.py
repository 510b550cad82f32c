"""Folders of other people's encoders, tiny, of random weights, as their own programs write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = "".join(
    sorted(set("今天气很好坏不喜欢这家酒店的服务态度差房间干净脏去哪里他了北京公园大学，。？问第年我们"))
)
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def write_tokenizer(folder: Path, *, shape: str = "cls first", names: dict[str, str] | None = None, **more: Any) -> int:
    """Write a fast tokenizer of characters; return how many ids it has. shape: where the special tokens stand."""
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<cls>", "<sep>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*marks, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single, pair, roles = {
        "cls first": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]", "[PAD]")),
        "two seps": ("<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>", "<pad>")),
        "cls last": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2", ("<cls>", "<sep>", "<pad>")),
        "no cls": ("$A </s>", "$A </s> $B </s>", (None, "</s>", "<pad>")),
    }[shape]
    template = {token: vocabulary[token] for token in marks if token in single + pair}
    backend.post_processor = processors.TemplateProcessing(single, pair, list(template.items()))
    cls, sep, pad = roles
    special = {"unk_token": "[UNK]", "mask_token": "[MASK]", "sep_token": sep, "eos_token": sep, "pad_token": pad}
    special |= {"cls_token": cls} if cls else {}
    special |= names or {}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, **{key: value for key, value in special.items() if value}, **more
    ).save_pretrained(folder)
    return len(vocabulary)


def family(name: str) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """Return vocabulary size -> model, and how its tokenizer differs from BERT's."""
    import transformers as t

    big = SHAPE | {"max_position_embeddings": 66}
    plain: dict[str, tuple[type, type, dict[str, Any], dict[str, Any]]] = {
        "bert": (t.BertConfig, t.BertModel, SHAPE, {}),
        "roberta": (t.RobertaConfig, t.RobertaModel, big | {"pad_token_id": 1, "type_vocab_size": 1}, ROBERTA),
        "xlm-roberta": (t.XLMRobertaConfig, t.XLMRobertaModel, big | {"type_vocab_size": 1}, ROBERTA),
        "mpnet": (t.MPNetConfig, t.MPNetModel, big, ROBERTA),
        "ernie": (t.ErnieConfig, t.ErnieModel, SHAPE | {"use_task_id": True, "task_type_vocab_size": 3}, {}),
        "xlnet": (t.XLNetConfig, t.XLNetModel, {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, XLNET),
        "deberta-v2": (t.DebertaV2Config, t.DebertaV2Model, SHAPE | DEBERTA, {}),
        "t5": (t.T5Config, t.T5EncoderModel, T5, {"shape": "no cls"}),
        "t5 whole": (t.T5Config, t.T5ForConditionalGeneration, T5, {"shape": "no cls"}),
        "electra": (t.ElectraConfig, t.ElectraModel, SHAPE | {"embedding_size": 8}, {}),
        "albert": (t.AlbertConfig, t.AlbertModel, SHAPE | {"embedding_size": 8}, {}),
        "megatron-bert": (t.MegatronBertConfig, t.MegatronBertModel, SHAPE, {}),
        "roformer": (t.RoFormerConfig, t.RoFormerModel, SHAPE, {}),
        "modernbert": (t.ModernBertConfig, t.ModernBertModel, SHAPE | MODERN, {}),
        "modernbert mlm": (t.ModernBertConfig, t.ModernBertForMaskedLM, SHAPE | MODERN, {}),
        "bert mlm": (t.BertConfig, t.BertForMaskedLM, SHAPE, {}),
        "distilbert": (t.DistilBertConfig, t.DistilBertModel, DISTIL, {}),
        "funnel": (t.FunnelConfig, t.FunnelModel, FUNNEL, {}),
        "longformer": (
            t.LongformerConfig,
            t.LongformerModel,
            big | {"attention_window": 8, "pad_token_id": 1},
            ROBERTA,
        ),
    }
    config_class, model_class, sizes, tokenizer = plain[name]
    return lambda vocab_size: model_class(config_class(vocab_size=vocab_size, **sizes)), tokenizer


ROBERTA = {"shape": "two seps"}
XLNET = {"shape": "cls last", "padding_side": "left"}
DEBERTA = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
MODERN = {"pad_token_id": 7, "cls_token_id": 9, "sep_token_id": 10, "bos_token_id": 9, "eos_token_id": 10}
MODERN |= {"local_attention": 8}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64}
FUNNEL = {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "num_decoder_layers": 1}
FUNNEL |= {"max_position_embeddings": 64}
FAMILIES = (
    "bert", "bert mlm", "roberta", "xlm-roberta", "mpnet", "ernie", "xlnet", "deberta-v2", "t5", "t5 whole", "electra",
    "albert", "megatron-bert", "roformer", "modernbert", "modernbert mlm", "distilbert", "longformer",
)  # fmt: skip
TOKENS = {"xlnet": None, "t5": None, "t5 whole": None}
"""The most tokens that a family takes where it is not 64; None: no limit."""


def write_encoder(folder: Path, name: str, *, extra_rows: int = 0, **tokenizer: Any) -> Path:
    """Write a family's folder; the model has `extra_rows` embeddings more than the tokenizer has ids."""
    folder.mkdir(parents=True)
    make, differs = family(name)
    vocab_size = write_tokenizer(folder, **differs | tokenizer)
    torch.manual_seed(0)
    model = make(vocab_size + extra_rows)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)  # so that every part matters
    model.save_pretrained(folder)
    return folder


def in_config(**changes: Any):
    """Return what changes values of a folder's config.json; "gone" removes one."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        values = {key: value for key, value in values.items() if value != "gone"}
        path.write_text(json.dumps(values), encoding="utf-8")

    return change
