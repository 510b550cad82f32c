"""Folders of random weights as others publish them: one for each family that `cmbert import` is for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "春天来了，河边的柳树发了芽，孩子们在草地上放风筝。",
    "合同自双方签字或者盖章之日起生效。The contract takes effect on signature.",
    "研究人员表示，新方法把数据量减少了一半，误差从3.5%降到了2.8%。",
] * 5
BERT = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "max_position_embeddings": 256, "local_attention": 16, "initializer_range": 0.2,
}  # fmt: skip


def byte_level(special: list[str], ids: int) -> tokenizers.Tokenizer:
    """Byte-level BPE of at most `ids` ids, the special tokens behind the others, as ModernBERT and Qwen2 have them."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=ids - len(special), initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens(special)
    return backend


def word_pieces(ids: int) -> tokenizers.Tokenizer:
    """WordPiece as bert-base-chinese has it."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=ids, special_tokens=special, show_progress=False)
    )
    return backend


def with_bytes_to_fall_back_on(ids: int) -> tokenizers.Tokenizer:
    """BPE over characters with bytes for the rest and ▁ for a space, as mmBERT's tokenizer, which is Gemma 2's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=ids, special_tokens=[*special, *alphabet], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def write_family(
    folder: Path,
    backend: tokenizers.Tokenizer,
    names: dict[str, str],
    *,
    rows: int | None = None,
    old_spelling: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a folder of transformers' ModernBERT with random weights.

    names: of the special tokens, as tokenizer_config.json has them. rows: of the embedding, if not one for each id.
    old_spelling: config.json as transformers 4 wrote it.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

    first, last = names.get("cls_token") or names["bos_token"], names.get("sep_token") or names["eos_token"]
    ends = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    pad = backend.token_to_id(names["pad_token"])
    ids = {"pad_token_id": pad, "cls_token_id": ends[0][1], "sep_token_id": ends[1][1]}
    ids |= {"bos_token_id": ends[0][1], "eos_token_id": ends[1][1]}
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(
        ModernBertConfig(vocab_size=rows or backend.get_vocab_size(), **{**SHAPE, **ids, **config})
    )
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases, too: one forgotten must show
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if old_spelling:
        respell(folder / "config.json")
    return folder


def respell(path: Path) -> None:
    """Write a config.json as transformers 4 did."""
    values = json.loads(path.read_text(encoding="utf-8"))
    ropes = values.pop("rope_parameters")
    del values["layer_types"]
    values |= {"global_attn_every_n_layers": 3, "global_rope_theta": ropes["full_attention"]["rope_theta"]}
    values |= {"local_rope_theta": ropes["sliding_attention"]["rope_theta"]}
    path.write_text(json.dumps(values), encoding="utf-8")


def bert_names() -> dict[str, str]:
    """Return tokenizer_config.json's names of BERT's special tokens."""
    return {f"{name[1:-1].lower()}_token": name for name in BERT}


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ModernBERT and Ettin": lambda folder: write_family(folder, byte_level(BERT, 384), bert_names()),
    "mmBERT": lambda folder: write_family(
        folder, with_bytes_to_fall_back_on(320),
        {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos", "unk", "mask")},
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 160_000.0}
                         for kind in ("full_attention", "sliding_attention")},
    ),
    "Chinese ModernBERT": lambda folder: write_family(
        folder, byte_level(BERT, 339), bert_names(), old_spelling=True, dtype=torch.bfloat16,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base}
                         for kind, base in (("full_attention", 80_000.0), ("sliding_attention", 10_000.0))},
    ),
    "Zhinao": lambda folder: write_family(
        folder, byte_level(["<|endoftext|>", "<|cls|>", "<|sep|>", "<|mask|>", "<|im_start|>"], 345),
        {"pad_token": "<|endoftext|>", "cls_token": "<|cls|>", "sep_token": "<|sep|>", "mask_token": "<|mask|>"},
        rows=448,
    ),
    "WordPiece": lambda folder: write_family(folder, word_pieces(150), bert_names()),
}  # fmt: skip
"""Each is odd in its way: ids of the special tokens, rows without ids, spelling of config.json, kind of tokenizer."""
