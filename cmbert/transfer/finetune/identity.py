"""What a folder of results belongs to: one model, task, data and device; others' results never mix with them."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cmbert.errors import ConfigError
from cmbert.files.json_types import read_record
from cmbert.files.operations import hash_file
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.tasks.task import Task

IDENTITY_FILE = "identity.json"
NOT_IDENTITY = ("learning_rate", "batch_size", "epochs", "in_simclue")  # a trial's own name says the first three
HEAD = "dense, GELU, norm, linear"  # until 2026-11 a linear layer alone: such results do not mix with today's


def describe(backbone: Backbone, task: Task, folder: Path, max_length: int) -> dict[str, Any]:
    """Return what a trial's outcome depends on, beside setting and seed."""
    digest = hashlib.blake2b(digest_size=16)
    for part in filter(None, (backbone.encoder, backbone.head)):
        for name, weight in part.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    files = [file for split in (task.train, task.dev, task.test) for file in split if (folder / file).is_file()]
    tokenizer = json.loads(backbone.tokenizer.backend_tokenizer.to_str())
    tokenizer |= {"truncation": None, "padding": None}  # which the last call has set
    described = {key: value for key, value in asdict(task).items() if key not in NOT_IDENTITY}
    return {
        "weights": digest.hexdigest(),
        "tokenizer": hashlib.blake2b(json.dumps(tokenizer).encode(), digest_size=16).hexdigest(),
        "data": {file: hash_file(folder / file)[:32] for file in files},
        "task": described,
        "max_length": max_length,
        "head": HEAD,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def is_known(place: Path, identity: dict[str, Any]) -> bool:
    """Return whether the folder is of this model, data and task, False if it is new; ConfigError if of others."""
    path, identity = place / IDENTITY_FILE, json.loads(json.dumps(identity))
    if path.is_file():
        found = read_record(path)
        differing = [key for key in identity if found.get(key) != identity[key]]
        if differing:
            raise ConfigError(
                f"{place}: holds results with other {', '.join(differing)}; name another --output or --name, "
                "or remove that folder"
            )
    return path.is_file()
