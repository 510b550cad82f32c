"""Texts of ten topics in every format of training, a tiny model, and the command on them."""

import numpy as np
import pytest

from cmbert.cli import main
from cmbert.config.schema import ModelConfig
from cmbert.export.hf import export_folder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from tests.cmbert.transfer.embedding.topics import text, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts of one topic belong together; the test's forms are not those of training."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    triplets, labelled = [], []
    for topic, one, other, a, b in draw.integers(0, [10, 10, 10, 6, 6], (260, 5)).tolist():
        if a != b and topic != one:
            triplets.append({"query": text(topic, a), "title": text(topic, b), "neg_title": text(one, a)})
        same = {"sentence1": text(topic, 6), "sentence2": text(topic, 7), "label": "1"}
        labelled.append(same if a % 2 else same | {"sentence2": text((topic + 1 + other % 9) % 10, 7), "label": "0"})
    write(folder / "rank.json", triplets)
    write(folder / "test.json", labelled)
    write(folder / "sts.json", [row | {"label": 4.5 * int(row["label"])} for row in labelled[:40]])
    nli = {"1": "entailment", "0": "contradiction"}
    write(folder / "nli.json", [row | {"label": nli[row["label"]]} for row in labelled[:40]])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer_directory):
    config = ModelConfig(
        num_layers=3, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=384, local_window=16, max_length=64
    )
    network = MaskedLanguageModel(config)
    initialise(network, seed=0)
    output = tmp_path_factory.mktemp("exported") / "model"
    export_folder(
        network.state_dict(), config, tokenizer_directory, output, format="hf", texts=["今天天气很好"], card=str
    )
    return output


@pytest.fixture(scope="module")
def command(data, model):
    def command(output, *more, model=model):
        options = {"--model": model, "--pairs": data / "rank.json", "--eval": data / "test.json", "--output": output}
        options |= {"--batch-size": 16, "--max-length": 32, "--learning-rate": 2e-3}
        return main(["embed-train", *(str(word) for pair in options.items() for word in pair), *map(str, more)])

    return command
