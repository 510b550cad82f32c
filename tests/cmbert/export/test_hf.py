"""Export: the folder works without this package, equals our model, and never appears when it would not."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.export.hf import _write, export_folder
from cmbert.model.folder import load_folder
from cmbert.vocabulary import SPECIAL_TOKENS

TEXTS = ["今天天气很好，我们去公园散步。" * 12, "你好", "", "语言模型学习词语之间的关系。" * 3, "第五段"]

OUTSIDER = """
import sys
sys.modules["cmbert"] = None  # any import of it fails
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
folder, scratch, trust = sys.argv[1], sys.argv[2], sys.argv[3] == "trust"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
inputs = tokenizer(sys.argv[4:], padding=True, return_tensors="pt")
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=trust).eval()
with torch.inference_mode():
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    model.save_pretrained(scratch + "/again")
    again = AutoModelForMaskedLM.from_pretrained(scratch + "/again", trust_remote_code=trust).eval()
    assert torch.equal(again(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, logits)
base = AutoModel.from_pretrained(folder, trust_remote_code=trust)
base.save_pretrained(scratch + "/base")
classifier = AutoModelForSequenceClassification.from_pretrained(
    scratch + "/base", num_labels=3, trust_remote_code=trust
)
assert (classifier.head.norm.weight == 1).all() and classifier.classifier.weight.std() > 0
assert torch.equal(classifier.model.final_norm.weight, model.model.final_norm.weight)
norm = "RMSNorm" if trust else "LayerNorm"
kinds = {type(module).__name__ for name, module in classifier.named_modules() if name.endswith("norm")}
assert kinds == {norm, "Identity"}  # Identity: attn_norm of layer 0
assert classifier(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits.shape == (len(sys.argv) - 4, 3)
torch.save({"logits": logits, **{k: inputs[k] for k in ("input_ids", "attention_mask")}}, scratch + "/seen.pt")
"""


def card(measured):
    return f"compared {measured.num_tokens} tokens\n"


SENTENCE_VECTORS = """
import sys
sys.modules["cmbert"] = None  # any import of it fails
import warnings
import numpy as np
warnings.filterwarnings("error", module="sentence_transformers")  # it warns of layouts that will go
from sentence_transformers import SentenceTransformer
folder, scratch, trust = sys.argv[1], sys.argv[2], sys.argv[3] == "trust"
model = SentenceTransformer(folder, trust_remote_code=trust, device="cpu")
assert model.max_seq_length == 512 == model.tokenizer.model_max_length
np.save(scratch + "/vectors.npy", model.encode(sys.argv[4:], batch_size=3))
"""


@pytest.fixture
def tokenizer_directory(tmp_path):
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=270, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.add_tokens([f"<{index}>" for index in range(320 - tokenizer.get_vocab_size())])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL_TOKENS, strict=True))}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize(("norm", "format"), [("rmsnorm", "hf"), ("layernorm", "hf-modernbert")])
def test_exported_folder_works_without_this_package(make_perturbed, tokenizer_directory, tmp_path, norm, format):
    model = make_perturbed(norm)
    folder = tmp_path / "exported"
    measured = export_folder(
        model.state_dict(), model.config, tokenizer_directory, folder, format=format, texts=TEXTS, card=card
    )
    assert measured.num_tokens > 500
    assert max(measured.errors.values()) < measured.allowed / 4
    trust = "trust" if norm == "rmsnorm" else "stock"
    assert (folder / "modeling_cmbert.py").exists() == (trust == "trust")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "outside"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDER, str(folder), str(tmp_path), trust, *TEXTS],
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    seen = torch.load(tmp_path / "seen.pt")
    is_real = seen["attention_mask"].bool()
    cu_seqlens = torch.nn.functional.pad(is_real.sum(1).cumsum(0), (1, 0)).int()
    ours = model.logits(seen["input_ids"][is_real], cu_seqlens)
    torch.testing.assert_close(seen["logits"][is_real], ours, atol=1e-4, rtol=0)


QUIET_TOKENIZER = """
import sys
from transformers import AutoTokenizer
folder = sys.argv[1]
tokenizer = eval("AutoTokenizer.from_pretrained(folder" + sys.argv[2] + ")")
assert tokenizer("今天[MASK]")["input_ids"][0] == 2 and tokenizer.mask_token_id == 4
assert tokenizer.model_max_length == 512
"""


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_the_tokenizer_loads_without_a_question_or_a_warning(make_perturbed, tokenizer_directory, tmp_path, norm):
    folder = tmp_path / "folder"
    folder.mkdir()
    _write(folder, make_perturbed(norm), tokenizer_directory)
    for trust in ("", ", trust_remote_code=True"):
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "outside"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", "-c", QUIET_TOKENIZER, str(folder), trust]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), trust


def mean_vectors(model, tokenizer_directory, texts):
    """The mean of our packed encoder's hidden states over each text's tokens, [CLS] and [SEP] included."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    tokenizer.enable_truncation(model.config.max_length)
    ids = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    lengths = torch.tensor([len(text) for text in ids])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    with torch.no_grad():
        hidden = model.model(torch.cat(ids), cu_seqlens)
    return torch.stack([part.mean(0) for part in hidden.split(lengths.tolist())])


@pytest.mark.parametrize("norm", ["rmsnorm", pytest.param("layernorm", marks=pytest.mark.slow)])
def test_exported_folder_is_a_sentence_transformer(make_perturbed, tokenizer_directory, tmp_path, norm):
    pytest.importorskip("sentence_transformers")
    model = make_perturbed(norm)
    settings = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 8192  # a tokenizer that serves longer models, too
    (tokenizer_directory / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = tmp_path / "exported"
    export_folder(model.state_dict(), model.config, tokenizer_directory, folder, format="hf", texts=TEXTS, card=card)
    texts = [*TEXTS, "今天天气很好，我们去公园散步。" * 60]  # the last is longer than the model
    trust = "trust" if norm == "rmsnorm" else "stock"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "outside"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-I", "-c", SENTENCE_VECTORS, str(folder), str(tmp_path), trust, *texts],
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    seen = torch.from_numpy(np.load(tmp_path / "vectors.npy"))
    torch.testing.assert_close(seen, mean_vectors(model, tokenizer_directory, texts), atol=2e-5, rtol=0)


def test_our_model_survives_the_round_trip(make_perturbed, tokenizer_directory, tmp_path, pack):
    model = make_perturbed("rmsnorm")
    weights = {name: weight for name, weight in model.state_dict().items() if name != "decoder.weight"}
    folder = tmp_path / "deep" / "exported"
    measured = export_folder(
        weights, model.config, tokenizer_directory, folder, format="hf", texts=TEXTS[:2], card=card
    )
    loaded, config = load_folder(folder)
    assert config == model.config
    assert torch.equal(loaded.logits(*pack([9, 70], 320)), model.logits(*pack([9, 70], 320)))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["exported"]
    assert (folder / "README.md").read_text() == card(measured)
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def change_config(folder, **values):
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in written.items() if value is not None}), encoding="utf-8")


@pytest.mark.parametrize(("norm", "shape"), [("rmsnorm", (1, 32)), ("layernorm", (32,))])
def test_a_norm_is_not_taken_for_the_other_kind(make_perturbed, tokenizer_directory, tmp_path, norm, shape):
    _write(tmp_path, make_perturbed(norm), tokenizer_directory)
    weights = load_file(tmp_path / "model.safetensors")
    assert {weight.shape for name, weight in weights.items() if name.endswith("norm.weight")} == {shape}
    load_folder(tmp_path)
    change_config(tmp_path, norm=None if norm == "rmsnorm" else "rmsnorm")
    with pytest.raises(
        CheckpointError, match=r"config\.json: norm is '(rmsnorm|layernorm)', and .* is of another kind"
    ):
        load_folder(tmp_path)


def test_a_folder_of_an_earlier_version_is_read(make_perturbed, tokenizer_directory, tmp_path, pack):
    model = make_perturbed("rmsnorm")
    _write(tmp_path, model, tokenizer_directory)
    weights = load_file(tmp_path / "model.safetensors")
    flat = {name: weight.flatten() if "norm" in name else weight for name, weight in weights.items()}
    save_file(flat, tmp_path / "model.safetensors")
    change_config(tmp_path, model_type="cmbert", norm=None)
    loaded, config = load_folder(tmp_path)
    assert config == model.config
    assert torch.equal(loaded.logits(*pack([9, 70], 320)), model.logits(*pack([9, 70], 320)))


def spoil_nan(arguments):
    arguments["state_dict"]["model.layers.2.mlp.Wo.weight"][3, 4] = float("nan")


def spoil_missing(arguments):
    del arguments["state_dict"]["head.norm.weight"]


def spoil_vocabulary(arguments):
    weight = arguments["state_dict"].pop("decoder.weight")[:256]
    arguments["state_dict"] |= {"model.embeddings.tok_embeddings.weight": weight, "decoder.bias": torch.zeros(256)}
    arguments["config"] = dataclasses.replace(arguments["config"], vocab_size=256)


def spoil_tokenizer(arguments):
    (arguments["tokenizer_directory"] / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_nan, CheckpointError, "not finite"),
        (spoil_missing, CheckpointError, r"head\.norm\.weight"),
        (spoil_vocabulary, ConfigError, "model.vocab_size: 256, but .* has 320 ids"),
        (lambda arguments: arguments.update(format="hf-modernbert"), ConfigError, "format hf"),
        (lambda arguments: arguments.update(texts=[]), InputError, "text"),
        (spoil_tokenizer, ConfigError, r"tokenizer_config\.json"),
        (lambda arguments: arguments["output"].mkdir(), CheckpointError, "exists"),
    ],
    ids=["nan", "missing weight", "wrong tokenizer", "rmsnorm as stock", "no texts", "no tokenizer config", "exists"],
)
def test_refusals_leave_no_folder(make_perturbed, tokenizer_directory, tmp_path, spoil, error, message):
    model = make_perturbed("rmsnorm")
    output = tmp_path / "exports" / "model"
    output.parent.mkdir()
    arguments = {
        "state_dict": model.state_dict(),
        "config": model.config,
        "tokenizer_directory": tokenizer_directory,
        "output": output,
        "format": "hf",
        "texts": TEXTS[:2],
        "card": card,
    }
    spoil(arguments)
    is_there = output.exists()
    with pytest.raises(error, match=message):
        export_folder(**arguments)
    assert output.exists() == is_there
    assert len(list(output.parent.iterdir())) == is_there


def test_load_folder_names_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    with pytest.raises(CheckpointError, match="model_type is 'bert'"):
        load_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "cmbert", "num_hidden_layers": 2}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="hidden_size"):
        load_folder(tmp_path)
    for damaged in (b'{"model_type": "\xe5', b"[]"):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"config\.json: (not valid JSON|found .*must be an object).*; export or download"
        ):
            load_folder(tmp_path)
