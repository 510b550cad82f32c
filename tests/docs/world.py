"""A tiny world in which the documents' commands run: the repository's recipes, shrunk, and a reader's own data."""

import json
import re
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from tests.docs.documents import ROOT

COPIED = ("recipes", "ds_configs", "examples", "slurm")
NUM_HANZI, NUM_WORDS = 2_500, 15_000
TINY_MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
NO_WARMUP: dict[str, Any] = {"mask": {"warmup_tokens": 0}, "schedule": {"warmup_tokens": 0}}
TINY_RUN: dict[str, Any] = {"data": {"num_workers": 0}, "kernels": {"compile": False}}
SHRUNK: dict[str, dict[str, Any]] = {
    "quickstart/stage1.toml": {"model": TINY_MODEL, **NO_WARMUP, "train": {"total_tokens": 8 * 8 * 256}},
    "quickstart/stage2.toml": {**NO_WARMUP, "train": {"total_tokens": 8 * 2 * 1024}},
    # 56 rows a step: they divide over the 56 GPUs that the documents plan for
    "large/stage1.toml": {
        "model": TINY_MODEL,
        **NO_WARMUP,
        **TINY_RUN,
        "data": {"num_workers": 0, "context_tokens": 128},
        "train": {"total_tokens": 4 * 56 * 128, "rows_per_step": 56, "micro_batch_rows": 1},
        "evaluation": {"max_rows": 4},
    },
    "large/stage2.toml": {
        **NO_WARMUP,
        "data": {"context_tokens": 256},
        "train": {"total_tokens": 2 * 56 * 256, "rows_per_step": 56},
        "evaluation": {"max_rows": 4},
    },
    "base/stage1.toml": {
        "model": TINY_MODEL,
        **NO_WARMUP,
        **TINY_RUN,
        "data": {"num_workers": 0, "context_tokens": 128},
        "train": {"total_tokens": 4 * 16 * 128, "rows_per_step": 16, "micro_batch_rows": 2},
        "evaluation": {"max_rows": 4},
    },
    "base/stage2.toml": {
        **NO_WARMUP,
        "data": {"context_tokens": 512},
        "train": {"total_tokens": 2 * 8 * 512, "rows_per_step": 8, "micro_batch_rows": 1},
        "evaluation": {"max_rows": 4},
    },
    "ablations/small.toml": {
        "model": TINY_MODEL,
        **NO_WARMUP,
        "train": {"total_tokens": 4 * 8 * 256},
        "evaluation": {"max_rows": 4},
    },
    "ablations/common.toml": {"seeds": 1},
    # enough of the little text is set aside that a text of the long-context check is among it
    "large/clean/cci3_hq.toml": {"heldout_share": 0.4},
    **{f"large/clean/{name}.toml": {"heldout_share": 0.3} for name in ("cci4_web_zh", "cosmopedia_zh")},
}


def make_world(folder: Path) -> Path:
    """Fill `folder` with what a reader has before the first command: the repository's files and raw data."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "constraints.txt", folder)
    for name, changes in SHRUNK.items():
        _shrink(folder / "recipes" / name, changes)
    draw = np.random.default_rng(0)
    words = _make_words(draw)
    texts = [_text(draw, words, 300) for _ in range(3_600)] + [_text(draw, words, 80_000) for _ in range(8)]
    _lines(folder / "raw/cci3_hq/0.jsonl", ({"text": text} for text in texts))
    for name in ("cci4_web_zh", "cosmopedia_zh"):
        _lines(folder / f"raw/{name}/0.jsonl", ({"text": _text(draw, words, 300)} for _ in range(120)))
    sample = [{"text": _text(draw, words, 80_000)} for _ in range(20)]
    _lines(folder / "text/cci3_hq_sample/0.jsonl", sample)
    for name in ("legal", "medical", "reviews"):
        _lines(folder / f"{name}.jsonl", ({"text": _text(draw, words, 200)} for _ in range(40)))
    _lines(folder / "laws.jsonl", ({"text": _text(draw, words, 30_000)} for _ in range(2)))
    _lines(folder / "raw/mine/0.jsonl", ({"text": _text(draw, words, 200)} for _ in range(600)))
    _write(folder / "raw/mine/1.csv", "\n".join(["text", *(_text(draw, words, 60) for _ in range(100))]))
    characters = sorted(set("".join(words)))
    _write(folder / "vocab.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]))
    _write_tasks(folder, draw, words)
    _write_pairs(folder, draw, words)
    for name in ("hfl/chinese-roberta-wwm-ext", "bert-base"):
        _write_bert(folder / name, folder / "vocab.txt")
    for year in ("2025", "2026"):
        _lines(folder / f"raw/{year}/0.jsonl", ({"text": _text(draw, words, 300)} for _ in range(120)))
    return folder


def _shrink(path: Path, changes: dict[str, Any]) -> None:
    """Write over a recipe with some of its values changed; loading it checks that they are keys of its schema."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for section, values in changes.items():
        if isinstance(values, dict):
            table[section] = table.get(section, {}) | values
        else:
            table[section] = values
    if "data" in table and "sources" in table["data"]:
        table["data"]["sources"] = [source | {"max_epochs": 1e6} for source in table["data"]["sources"]]
    path.write_text(tomli_w.dumps(table), encoding="utf-8")


def _make_words(draw: np.random.Generator) -> list[str]:
    hanzi = [chr(0x4E00 + int(code)) for code in draw.choice(8_000, NUM_HANZI, replace=False)]
    return ["".join(draw.choice(hanzi, int(length))) for length in draw.choice([1, 2, 2, 3], NUM_WORDS)]


def _text(draw: np.random.Generator, words: list[str], num_characters: int) -> str:
    """Return sentences of made-up words, the first ones far more often than the last, of about so many characters."""
    ranks = (draw.random(num_characters) ** 3 * len(words)).astype(int)
    sentences, length = [], 0
    for start in range(0, len(ranks), 12):
        sentence = "".join(words[rank] for rank in ranks[start : start + 12])
        sentences.append(sentence + "。")
        length += len(sentence) + 1
        if length >= num_characters:
            break
    return "".join(sentences)


def _write_tasks(folder: Path, draw: np.random.Generator, words: list[str]) -> None:
    """CLUE's tnews, iflytek and csl as its archives unpack, ChnSentiCorp as TSV, each split of 8 examples; a CSV."""

    def short() -> str:
        return _text(draw, words, 20)

    labels = {"tnews": ("100", "116"), "iflytek": ("0", "118"), "csl": ("0", "1")}
    for split in ("train", "dev", "test"):
        for task, choices in labels.items():
            records = []
            for number in range(8):
                text = {"abst": short(), "keyword": [words[number], words[-1]]} if task == "csl" else {}
                record = {"id": number, **(text or {"sentence": short()})}
                records.append(record | ({"label": choices[number % 2]} if split != "test" else {}))
            _lines(folder / f"clue/{task}_public/{split}.json", records)
        rows = [f"{number % 2}\t{short()}" for number in range(8)]
        _write(folder / f"chnsenticorp/{split}.tsv", "\n".join(["label\ttext_a", *rows]))
        _write(folder / f"sentiment/{split}.tsv", "\n".join(["label\ttext", *rows]))
    rows = [f"{short()},{('好评', '差评')[number % 2]}" for number in range(12)]
    _write(folder / "train.csv", "\n".join(["评论,类别", *rows]))
    own = {"name": "sentiment", "text": ["text"], "labels": ["0", "1"]}
    files = {split: [f"{split}.tsv"] for split in ("train", "dev", "test")}
    _write(folder / "sentiment.toml", tomli_w.dumps(own | files))


def _write_pairs(folder: Path, draw: np.random.Generator, words: list[str]) -> None:
    """SimCLUE's three kinds of lines, T2Ranking's tables, OCNLI's lines."""
    texts = [_text(draw, words, 15) for _ in range(160)]
    paired = [
        {"sentence1": one, "sentence2": other, "label": "1"} for one, other in zip(texts, texts[40:], strict=False)
    ]
    triplets = [{"query": one, "title": two, "neg_title": three}
                for one, two, three in zip(texts, texts[9:], texts[70:], strict=False)]  # fmt: skip
    for suffix in ("", "_1w"):
        _lines(folder / f"simclue/train_pair{suffix}.json", paired)
        _lines(folder / f"simclue/train_rank{suffix}.json", triplets)
    judged = [pair | {"label": str(number % 2)} for number, pair in enumerate(paired[:40])]
    _lines(folder / "simclue/test_public.json", judged)
    numbered = [f"{number}\t{text}" for number, text in enumerate(texts)]
    _write(folder / "t2ranking/collection.tsv", "\n".join(["pid\ttext", *numbered]))
    _write(folder / "t2ranking/queries.train.tsv", "\n".join(["qid\ttext", *numbered[:40]]))
    judgements = [f"{n}\t0\t{n + 40}\t3\n{n}\t0\t{n + 80}\t0" for n in range(40)]
    _write(folder / "t2ranking/qrels.train.tsv", "\n".join(judgements))


def _write_bert(folder: Path, vocabulary: Path) -> None:
    """An encoder of transformers with random weights, under the path that is its name on the hub."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    shutil.copy(vocabulary, folder / "vocab.txt")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    size = len(re.findall("\n", vocabulary.read_text(encoding="utf-8"))) + 1
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=512, **shape)).save_pretrained(folder)


def _lines(path: Path, records: Iterable[dict]) -> None:
    _write(path, "\n".join(json.dumps(record, ensure_ascii=False) for record in records))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
