"""Any encoder as the fine-tuning sees it: texts -> ids, and a packed batch of ids -> hidden states.

Ours reads the batch as it is, without padding; an encoder of transformers gets it padded, and the padding is taken out
again, so that heads, batches and losses are the same for all. Shapes: P parts, L longest, T their tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from cmbert.errors import CheckpointError
from cmbert.export.hf import is_export
from cmbert.export.release import open_model
from cmbert.model.encoder import Encoder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.transfer.encoders import load_auto_tokenizer, open_encoder


@dataclass(frozen=True)
class Part:
    """One text, or pair of texts, as the model reads it."""

    ids: list[int]
    type_ids: list[int]
    """Which text a token belongs to, for encoders that are told."""
    offsets: list[tuple[int, int]]
    """Characters of each token in its own text; (0, 0) for special tokens."""
    second: list[bool]
    """Whether the token is one of the second text's."""
    special: list[bool]
    """Whether it is of no text: [CLS], [SEP] and the like."""
    whole: bool
    """Whether nothing was cut."""


class Backbone(nn.Module):
    """An encoder with its tokenizer; `max_length` None: it takes texts of any length."""

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        hidden_size: int,
        max_length: int | None,
        takes_types: bool = False,
        head: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.hidden_size, self.max_length, self.takes_types = hidden_size, max_length, takes_types
        self._head = (head,)  # in a tuple: no part of this module, for a task trains a copy of it

    @property
    def head(self) -> nn.Module | None:
        """Return the head of our masked language model; None for an encoder that has none of this shape."""
        return self._head[0]

    def forward(self, ids_T: torch.Tensor, type_ids_T: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Packed ids (T,) int64 of parts of the given lengths -> hidden states (T, D)."""
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        if isinstance(self.encoder, Encoder):
            return self.encoder(ids_T, bounds)
        real_PL = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        real_PL = real_PL.to(ids_T.device)
        inputs = {"input_ids": pad_sequence(ids_T.split(list(lengths)), batch_first=True)}
        inputs["attention_mask"] = real_PL.long()  # XLNet computes with it
        if self.takes_types:
            inputs["token_type_ids"] = pad_sequence(type_ids_T.split(list(lengths)), batch_first=True)
        inputs["input_ids"][~real_PL] = self.tokenizer.pad_token_id
        return self.encoder(**inputs).last_hidden_state[real_PL]

    def read(self, texts: Sequence[tuple[str, str | None]], max_length: int) -> list[Part]:
        """Encode texts; those that do not fit into `max_length` tokens lose their end (pairs: the longer one's)."""
        single, pairs = (
            [text for text, other in texts if other is None],
            [text for text in texts if text[1] is not None],
        )
        options = {
            "truncation": "longest_first",
            "max_length": max_length,
            "return_offsets_mapping": True,
            "return_token_type_ids": True,
            "split_special_tokens": True,  # a text's own "[MASK]" is text
            "verbose": False,
        }
        found: dict[bool, Any] = {}
        if single:
            found[False] = iter(token_rows(self.tokenizer(single, **options)))
        if pairs:
            firsts, seconds = zip(*pairs, strict=True)
            found[True] = iter(token_rows(self.tokenizer(list(firsts), list(seconds), **options)))
        return [next(found[other is not None]) for _, other in texts]


def token_rows(batch: Any) -> list[Part]:
    """Return what a tokenizer of transformers made of each text."""
    parts = []
    for index, ids in enumerate(batch["input_ids"]):
        texts = batch.sequence_ids(index)
        parts.append(
            Part(
                ids=ids,
                type_ids=batch["token_type_ids"][index],
                offsets=[tuple(pair) for pair in batch["offset_mapping"][index]],
                second=[text == 1 for text in texts],
                special=[text is None for text in texts],
                whole=not batch.encodings[index].overflowing,
            )
        )
    return parts


def open_backbone(model: str, *, untrained: bool, trust: bool) -> Backbone:
    """Open one of our models as it is, any other through transformers. Raises CheckpointError."""
    folder = Path(model)
    if folder.is_dir() and (is_export(folder) or not (folder / "config.json").is_file()):
        trained = open_model(folder)
        return our_backbone(trained.model, trained.tokenizer.directory, untrained=untrained)
    return their_backbone(model, untrained=untrained, trust=trust)


def our_backbone(model: MaskedLanguageModel, tokenizer_directory: Path, *, untrained: bool) -> Backbone:
    """Wrap our encoder; `untrained` gives the same network fresh weights."""
    if untrained:
        initialise(model, 0)
    tokenizer = load_auto_tokenizer(str(tokenizer_directory))
    return Backbone(model.model, tokenizer, model.config.hidden_size, model.config.max_length, head=model.head)


def their_backbone(name: str, *, untrained: bool, trust: bool = False) -> Backbone:
    """Open an encoder of transformers from a folder, or by its name from the hub or its cache. Raises CheckpointError.

    `trust`: run the code that came with it.
    """
    found = open_encoder(name, untrained=untrained, trust=trust)
    if not found.tokenizer.is_fast:
        raise CheckpointError(f"{name}: its tokenizer gives no offsets; put a tokenizer.json beside the model")
    return Backbone(found.network, found.tokenizer, found.hidden_size, found.max_length, found.takes_types)
