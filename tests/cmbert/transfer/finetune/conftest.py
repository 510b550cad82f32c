"""Tiny encoders, ours and transformers', and tiny data of every format."""

import json
from pathlib import Path

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.tokenizer import Tokenizer
from cmbert.transfer.finetune.backbone import Backbone, our_backbone, their_backbone
from cmbert.transfer.tasks.task import Task, load_task

SHAPE = {"num_layers": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "local_window": 16}


@pytest.fixture
def ours(tokenizer: Tokenizer, tokenizer_directory: Path) -> Backbone:
    """Our encoder with fresh weights; 128 positions."""
    model = MaskedLanguageModel(ModelConfig(vocab_size=tokenizer.vocab_size, max_length=128, **SHAPE))
    initialise(model, 0)
    return our_backbone(model, tokenizer_directory, untrained=False)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A BERT of transformers with a WordPiece vocabulary of characters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "bert"
    folder.mkdir()
    characters = sorted(set("今天气很好坏不喜欢这家酒店的服务态度差房间干净脏"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def theirs(bert_folder: Path) -> Backbone:
    return their_backbone(str(bert_folder), untrained=False)


def write_lines(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def reviews(count: int, seed: int, *, labelled: bool = True) -> list[dict]:
    """Good and bad reviews that two characters tell apart, in a changing order of words."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for index in range(count):
        good = bool(torch.randint(2, (), generator=generator))
        words = ["今天", "酒店", "房间", "服务", "态度", "很好" if good else "很差"]
        order = torch.randperm(len(words), generator=generator).tolist()
        record = {"id": index, "sentence": "".join(words[place] for place in order)}
        records.append(record | ({"label": "1" if good else "0"} if labelled else {}))
    return records


@pytest.fixture
def review_folder(tmp_path: Path) -> Path:
    """64 reviews to learn from, 40 of dev, 20 of test without labels; and the task's file."""
    folder = tmp_path / "reviews"
    write_lines(folder / "train.json", reviews(64, 1))
    write_lines(folder / "dev.json", reviews(40, 2))
    write_lines(folder / "test.json", reviews(20, 3, labelled=False))
    (folder / "task.toml").write_text('name = "reviews"\nlabels = ["0", "1"]\nmax_length = 32\n', encoding="utf-8")
    return folder


@pytest.fixture
def task(review_folder: Path) -> Task:
    return load_task(review_folder / "task.toml")
