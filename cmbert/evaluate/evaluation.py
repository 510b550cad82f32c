"""One call of `cmbert eval`: what is asked, checked before a model is opened, then scored and printed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError
from cmbert.evaluate.domains import evaluate_sets, position_table, score_table
from cmbert.evaluate.long_context import contexts_up_to, print_stress, stress
from cmbert.evaluate.pseudo_perplexity import Unit, place_model, print_score
from cmbert.evaluate.unigram import unigram_of_run
from cmbert.model.heads import MaskedLanguageModel
from cmbert.tokenizer import Tokenizer


class Scored(Protocol):
    """A model with what is needed to feed it, as `cmbert.export.release.open_model` opens it."""

    @property
    def model(self) -> MaskedLanguageModel: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def run(self) -> Path | None: ...
    @property
    def training_shards(self) -> Sequence[ShardSet]: ...
    @property
    def training_amounts(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Evaluation:
    """What is to be scored, and how."""

    sets: dict[str, Path]
    """Held-out shard sets by name."""
    contexts: Sequence[int] | None
    """Row lengths, tokens; None: the model's."""
    units: Sequence[Unit]
    max_rows: int | None
    """Rows, or long documents, that are scored at most; None: all."""
    by_position: bool
    long_context: int | None
    """Longest context of the long-context check, tokens; None: the sets are scored instead."""
    plot: Path | None

    def check(self) -> None:
        """Raise ConfigError for what does not go together."""
        if self.long_context is None:
            if self.plot:
                raise ConfigError(
                    "--plot draws --long-context: name the longest context, for example --long-context 16384"
                )
            return
        if len(self.sets) > 1 or self.contexts or self.by_position or len(self.units) > 1:
            raise ConfigError("--long-context takes one set and one unit, and neither --context nor --by-position")
        contexts_up_to(self.long_context)
        if self.plot:
            from cmbert.evaluate.long_context_plot import check_plot

            check_plot(self.plot)

    def score(self, trained: Scored) -> dict[str, Any]:
        """Score the model on the GPU, or the CPU without one; print the figures and return them."""
        device = place_model(trained.model)
        if self.long_context is None:
            return self._score_sets(trained, device)
        return {"device": device, **self._stress(trained, self.long_context)}

    def _score_sets(self, trained: Scored, device: str) -> dict[str, Any]:
        contexts = self.contexts or [trained.context_tokens]
        scores = list(
            evaluate_sets(
                trained.model,
                trained.tokenizer,
                self.sets,
                contexts=contexts,
                units=self.units,
                max_rows=self.max_rows,
            )
        )
        unigram = None
        if trained.run:
            vocab_size = trained.tokenizer.vocab_size
            unigram = unigram_of_run(trained.run, trained.training_shards, trained.training_amounts, vocab_size)
        figures: dict[str, Any] = {"unigram_loss": unigram, "device": device}
        if len(scores) == 1:
            print_score(scores[0].score, unigram, by_position=self.by_position)
            return figures | scores[0].as_dict()
        print(score_table(scores))
        if self.by_position:
            print(f"\nloss by position in the segment, tokens\n\n{position_table(scores)}")
        return figures | {"scores": [score.as_dict() for score in scores]}

    def _stress(self, trained: Scored, longest: int) -> dict[str, Any]:
        (path,) = self.sets.values()
        found = stress(
            trained.model,
            trained.tokenizer,
            path,
            longest=longest,
            unit=self.units[0],
            max_documents=self.max_rows,
            trained_tokens=trained.context_tokens if trained.training_shards else None,
        )
        print_stress(found)
        if self.plot:
            from cmbert.evaluate.long_context_plot import draw_stress

            draw_stress(found, self.plot)
        return found.as_dict()
