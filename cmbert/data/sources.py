"""The recipe's shard sets, opened and blended: how many rows there are and how often they come. Torch-free."""

from pathlib import Path

from cmbert.config.schema import DataConfig
from cmbert.data.blend import Blend, Phase
from cmbert.data.packing import SourceRows
from cmbert.data.shards.integrity import ALONE, Crew
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, ShardError
from cmbert.tokenizer import Tokenizer


def open_shards(path: Path, tokenizer: Tokenizer) -> ShardSet:
    """Open a shard set. Raises ShardError when it is none, is empty or belongs to another tokenizer."""
    shards = ShardSet(path)
    if shards.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
        raise ShardError(
            f"{path}: made with tokenizer {shards.tokenizer_fingerprint}, but {tokenizer.directory} is "
            f"{tokenizer.fingerprint}; name the tokenizer it was made with, or preprocess again"
        )
    if shards.num_tokens == 0:
        raise ShardError(f"{path}: holds no tokens; preprocess some text")
    return shards


def prove_ids(shards: ShardSet, tokenizer: Tokenizer, folder: Path | None = None, crew: Crew = ALONE) -> None:
    """Raise ShardError when a Megatron pair holds an id that `tokenizer` has not; see ShardSet.prove."""
    shards.prove(folder, crew)
    shards.check_ids(tokenizer.vocab_size)


def open_blend(
    data: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    rows_per_step: int = 1,
    plan_folder: Path | None = None,
) -> Blend:
    """Open the recipe's shard sets and plan their rows, or read the plans from `plan_folder`.

    rows_per_step: changes of the blend begin with a step. Raises ShardError when a set belongs to another tokenizer.
    """
    sources, ends = [], tokenizer.sentence_end_tokens()
    for index, source in enumerate(data.sources):
        shards = open_shards(Path(source.path), tokenizer)
        sources.append(
            SourceRows(
                shards,
                context=data.context_tokens,
                sentence_ends=ends,
                shuffle_block_rows=data.shuffle_block_rows,
                shuffle_blocks=data.shuffle_blocks,
                seed=seed,
                source=index,
                plan_folder=plan_folder,
            )
        )
    return Blend(sources, phases_of(data, rows_per_step))


def phases_of(data: DataConfig, rows_per_step: int) -> list[Phase]:
    """Return the weights in force from which row on; changes begin with a step of `rows_per_step` rows."""
    step_tokens = rows_per_step * data.context_tokens
    phases = [Phase(0, tuple(source.weight for source in data.sources))]
    return phases + [
        Phase(-(-change.at_tokens // step_tokens) * rows_per_step, change.weights) for change in data.changes
    ]


def check_epochs(blend: Blend, data: DataConfig, num_rows: int) -> None:
    """Raise ConfigError when a run of `num_rows` rows may read nothing of a source, or one beyond max_epochs."""
    is_branch = blend.first_rows[0] > 0  # which need not read what its parent has read
    read = zip(data.sources, blend.begins, blend.shares(num_rows), blend.epochs(num_rows), strict=True)
    for source, begin, share, epochs in read:
        if share < 1 and not (is_branch and begin):
            raise ConfigError(
                f"data.sources: {source.path} would give {float(share):.2g} rows of the run's {num_rows:,}, so none of "
                "it may be read; raise its weight or train.total_tokens, or leave it out"
            )
        if epochs > source.max_epochs:
            raise ConfigError(
                f"data.sources: {source.path} would be read {epochs:.2f} times, more than its max_epochs "
                f"{source.max_epochs:g}; lower its weight or train.total_tokens, or raise max_epochs"
            )


def describe_unread(blend: Blend, data: DataConfig, num_rows: int) -> list[str]:
    """Say in a line for each source of which a run of `num_rows` rows reads only a part, how much it leaves."""
    lines = []
    for source, share, rows in zip(data.sources, blend.shares(num_rows), blend.sources, strict=True):
        read = round(share)
        if read < rows.num_rows:
            left = rows.num_rows - read
            lines.append(
                f"{source.path}: this stage reads {read:,} of its {rows.num_rows:,} rows; {left:,} "
                f"({100 * left / rows.num_rows:.1f} %) are not read"
            )
    return lines
