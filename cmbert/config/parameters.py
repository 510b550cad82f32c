"""How many parameters a model has, by part and by what moves them, in closed form."""

from dataclasses import dataclass

from cmbert.config.schema import ModelConfig, OptimizerConfig


@dataclass(frozen=True)
class Parameters:
    """Parameters by part. The decoder shares the embedding's weight, so `head` has its bias only."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int
    total: int
    embedding_share: float


def count_parameters(model: ModelConfig) -> Parameters:
    """Return the parameters by part, in closed form; equal to those of MaskedLanguageModel(model)."""
    width, layers = model.hidden_size, model.num_layers
    embedding = model.vocab_size * width
    attention = layers * 4 * width**2  # query, key, value, output
    mlp = layers * 3 * width * model.intermediate_size  # both halves of the GeGLU input, output
    norms = (2 * layers + 1) * width  # two a layer, but one in the first; after the embedding; at the end
    head = width**2 + width + model.vocab_size  # dense, norm, decoder bias
    total = embedding + attention + mlp + norms + head
    return Parameters(embedding, attention, mlp, norms, head, total, embedding / total)


def muon_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Return the (rows, columns) of the matrices that Muon moves, each as a whole, in the order of the model.

    A layer's query, key, value and attention output, both halves of its GeGLU input and its output; the head's dense.
    """
    width, inner = model.hidden_size, model.intermediate_size
    layer = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    return layer * model.num_layers + [(width, width)]


def count_muon_parameters(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """Return the parameters that Muon moves: none unless `optimizer` is of its kind."""
    if optimizer.kind != "muon":
        return 0
    return sum(rows * columns for rows, columns in muon_matrices(model))
