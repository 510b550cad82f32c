"""Tokenizers of other people's kinds, tiny, and texts that are hard for them."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from cmbert.vocabulary import ROLES, SPECIAL_TOKENS

HANZI = "今天气很好我们去公园他在北京大学读书乒乓球拍卖完了"
PIECES = ("today", "cafe", "uni", "on", "ab", "isn", "20", "24", *"abcdefghijklmnopqrstuvwxyz0123456789.,!'[]-")
PARTS = (
    "今天", "天气", "很好", "北京大学", "乒乓球拍卖完了", "，", "。", "龘", "１２", "𠮷", "😀", "👨\u200d👩", "ﬁ", "㎏",
    "today", "Café", "cafe\u0301s", "UNI", "isn't", "2024", "3.5", "İ", "\u0301", "é", "\u0958", "x" * 120,
    " ", "  ", "\n", "\t", "\r\n", "\u3000", "\x01", "\u200d", "\ufffd", "[MASK]", "<mask>", "##", "▁",
)  # fmt: skip
OTHER_NAMES = ("<pad>", "<unk>", "<bos>", "<eos>", "<mask>")


def write(folder: Path, backend: tokenizers.Tokenizer, names: tuple[str, ...] = SPECIAL_TOKENS) -> Path:
    """Write a tokenizer's folder whose special tokens have these names, in the order of their roles."""
    backend.add_special_tokens([name for name in names if backend.token_to_id(name) is not None])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    table = {f"{role}_token": name for role, name in zip(ROLES, names, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


def ids(*tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def wordpiece(*, last: bool = False, more: int = 0) -> tokenizers.Tokenizer:
    """As bert-base-chinese. last: the special ids come after all others. more: further ids, of no text."""
    words = [
        *HANZI,
        "，",
        "。",
        *PIECES,
        *(f"##{piece}" for piece in (*HANZI, *PIECES)),
        *(f"<{i}>" for i in range(more)),
    ]
    vocab = ids(*words, *SPECIAL_TOKENS) if last else ids(*SPECIAL_TOKENS, *words)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def bpe_with_unk() -> tokenizers.Tokenizer:
    vocab = ids(*SPECIAL_TOKENS, *HANZI, *"abcdefghijklmnopqrstuvwxyz", "今天", "气很", "ca", "to")
    merges = [("今", "天"), ("气", "很"), ("c", "a"), ("t", "o")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="[UNK]", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def byte_fallback(*, metaspace: bool = False) -> tokenizers.Tokenizer:
    """As Gemma's, or as Llama's with a space set before the text."""
    vocab = ids(*OTHER_NAMES, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *HANZI, *"abtody", "▁t", "今天", "气很")
    merges = [("▁", "t"), ("今", "天"), ("气", "很")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def prefix_space() -> tokenizers.Tokenizer:
    """As RoBERTa's: byte-level, a space set before the text, white space taken out of the offsets."""
    vocab = ids(*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "äº")
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t"), ("ä", "º")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder, backend.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    return backend


def unigram() -> tokenizers.Tokenizer:
    """As XLM-R's."""
    words = [*SPECIAL_TOKENS, "▁", *HANZI, *"abcdefghijklmnopqrstuvwxyz0123456789", "今天", "气很", "▁today", "20"]
    scores = [(word, -2.0 - (len(word) == 1)) for word in words]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=1))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


KINDS = (
    "wordpiece", "wordpiece, special ids last", "BPE with [UNK]", "byte fallback", "byte fallback, metaspace",
    "prefix space", "unigram",
)  # fmt: skip


def write_kind(folder: Path, kind: str) -> Path:
    """Write a tokenizer of one of KINDS."""
    backend = {
        "wordpiece": wordpiece,
        "wordpiece, special ids last": lambda: wordpiece(last=True),
        "BPE with [UNK]": bpe_with_unk,
        "byte fallback": byte_fallback,
        "byte fallback, metaspace": lambda: byte_fallback(metaspace=True),
        "prefix space": prefix_space,
        "unigram": unigram,
    }[kind]()
    return write(folder, backend, OTHER_NAMES if kind.startswith("byte fallback") else SPECIAL_TOKENS)


def mixed_texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of PARTS, of any length from one part on."""
    choose = random.Random(seed)
    return ["".join(choose.choices(PARTS, k=choose.randint(1, 30))) for _ in range(count)]
