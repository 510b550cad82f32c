"""`cmbert embed-train` on a tiny model: what it learns, leaves and records; repeats, resumes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from cmbert.model.config_json import runs_our_code
from cmbert.transfer.contamination import read_training_data, read_training_sentences, sentence_hashes, share_seen
from cmbert.transfer.embedding import train as embed_train
from cmbert.transfer.embedding.card import render_card
from cmbert.transfer.embedding.data import TrainingData
from cmbert.transfer.embedding.pairs import Graded, Pair
from cmbert.transfer.embedding.scoring import open_embedder
from cmbert.transfer.embedding.train import SCALE, ContrastiveSettings, build_datasets, last_checkpoint, train_embedder
from tests.cmbert.transfer.embedding.topics import text, write


def results(output):
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command):
    output = tmp_path_factory.mktemp("runs") / "one"
    assert command(output, "--epochs", 3) == 0
    return output


def test_it_learns_and_says_so(trained):
    found = results(trained)
    before, after = found["before"], found["runs"][0]["after"]
    assert after["spearman"] > before["spearman"] + 0.02  # two labels allow .86 at best
    assert after["pearson"] > before["pearson"] + 0.1
    assert f" {after['spearman']:.4f} |" in (trained / "results.md").read_text(encoding="utf-8")
    assert {"settings", "versions", "hardware", "seconds"} <= found.keys()
    assert found["runs"][0]["training"]["rows"]["triplets"] > 50
    assert 0 < found["runs"][0]["training"]["loss"] < 3
    assert not (trained / "checkpoints").exists()


def test_the_record_of_what_it_saw(trained, data):
    rows = [json.loads(line) for line in (data / "rank.json").read_text(encoding="utf-8").splitlines()]
    pairs = {(row["query"], row["title"]) for row in rows}
    for folder in (trained, trained / "model"):
        (file,) = read_training_data(folder)
        assert (file.path, file.source, file.pairs) == ("rank.json", "simclue", len(pairs))
        assert read_training_sentences(folder).tolist() == sentence_hashes(t for r in rows for t in r.values()).tolist()
    assert share_seen(trained / "model", [text(0, 0), text(0, 7)]) == 0.5


def test_the_card_says_what_it_is_and_all_may_read_it(trained):
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    found = results(trained)
    for score in (found["before"], found["runs"][0]["after"]):
        assert f"| {score['pearson']:.4f} | {score['spearman']:.4f} |" in card
    assert "| rank.json | simclue |" in card
    assert "SentenceTransformer(folder, trust_remote_code=True)" in card
    umask = os.umask(0)
    os.umask(umask)
    for path in trained.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_the_card_takes_over_what_its_start_says(trained, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "README.md").write_text("# X\n## Training data\nlaws\n## Stage 1: s\n## Results\nno\n", encoding="utf-8")
    found = results(trained)
    card = render_card(found["settings"], found["before"], found["runs"][0], [], start)
    assert card.endswith("was pretrained\n\n## Training data\nlaws\n## Stage 1: s\n")
    assert "trust_remote_code" not in card


def test_the_same_command_gives_the_same_figures(trained, command, tmp_path):
    assert command(tmp_path / "again", "--epochs", 3, "--mini-batch-size", 64) == 0
    one, other = results(trained), results(tmp_path / "again")
    assert one["before"] == other["before"]
    assert one["runs"][0]["after"] == other["runs"][0]["after"]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (trained, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_an_interrupted_training_ends_where_a_whole_one_does(trained, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed_train, "SAVE_SECONDS", 0.0)
    on_step_end = embed_train._Watch.on_step_end

    def interrupt(self, args, state, control, **more):
        if state.global_step == 7:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(embed_train._Watch, "on_step_end", interrupt)
        assert command(tmp_path / "run", "--epochs", 3) == 130
    assert "interrupted; run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    torn = tmp_path / "run" / "checkpoints" / "checkpoint-9"
    torn.mkdir()
    assert last_checkpoint(torn.parent).name == "checkpoint-6"
    assert command(tmp_path / "run", "--epochs", 3) == 0
    assert "continuing from checkpoint-6" in capsys.readouterr().out
    assert results(tmp_path / "run")["runs"][0]["training"]["continued"]
    assert results(tmp_path / "run")["runs"][0]["after"] == results(trained)["runs"][0]["after"]


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(trained, command, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert command(trained, "--epochs", 3) == 0
    assert "is finished" in capsys.readouterr().out
    assert command(trained, "--epochs", 2, "--seed", 4) == 2
    assert "made with other settings (epochs, seed; epochs was 3, is now 2)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_readers_of_either_spelling_and_no_other_norm_find_what_they_look_for(trained):
    folder = trained / "model"
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ropes = [values["rope_parameters"][kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")]
    assert [values["global_rope_theta"], values["local_rope_theta"]] == ropes
    assert (values["model_type"], values["norm"], values["architectures"]) == ("modernbert", "rmsnorm", ["CmbertModel"])
    assert runs_our_code(folder)
    assert load_file(folder / "model.safetensors")["final_norm.weight"].shape == (1, 32)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 32
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert next(key for key, value in pooling.items() if value is True) == "pooling_mode_mean_tokens"
    assert pooling["pooling_mode_cls_token"] is False
    kinds = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert kinds == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]


OUTSIDER = """
import socket, sys
sys.modules["cmbert"] = None
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from sentence_transformers import SentenceTransformer
embeddings = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu").encode(["今天天气很好", "公园"])
assert embeddings.shape == (2, 32)
"""


def test_the_model_loads_without_this_package_or_a_network(trained, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path)}
    command = [sys.executable, "-I", "-c", OUTSIDER, str(trained / "model")]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)


def test_training_again_carries_the_record_over(trained, command, data, tmp_path):
    other = write(tmp_path / "other.json", [{"sentence1": "新的", "sentence2": "新事", "label": 1}])
    options = ("--pairs", other, "--sts", data / "sts.json", "--nli", data / "nli.json", "--negatives", "mined")
    assert command(tmp_path / "two", *options, model=trained / "model") == 0
    sources = {file.path: file.source for file in read_training_data(tmp_path / "two" / "model")}
    assert sources == {"rank.json": "simclue", "other.json": "other", "sts.json": "other", "nli.json": "other"}
    assert share_seen(tmp_path / "two", ["新的", text(0, 0), text(0, 6)]) == 1.0
    rows = results(tmp_path / "two")["runs"][0]["training"]["rows"]
    assert rows["similarity"] == 40
    assert rows["pairs"] == 1


def test_the_curve_trains_each_size_once(command, tmp_path, monkeypatch):
    train, sizes = embed_train.train_embedder, []

    def counted(embedder, pairs, *rest):
        sizes.append(len(pairs))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return train(embedder, pairs, *rest)

    monkeypatch.setattr(embed_train, "train_embedder", counted)
    assert command(tmp_path / "curve", "--scaling", "16,32") == 130
    assert command(tmp_path / "curve", "--scaling", "16,32") == 0
    assert sizes == [16, 32, 32]
    found = results(tmp_path / "curve")
    assert [run["pairs"] for run in found["runs"]] == [16, 32]
    assert (tmp_path / "curve" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    small, large = (set(read_training_sentences(tmp_path / "curve" / f"pairs_{n:09d}").tolist()) for n in (16, 32))
    assert small < large
    assert command(tmp_path / "single", "--num-pairs", 16) == 0
    assert results(tmp_path / "single")["runs"][0]["after"] == found["runs"][0]["after"]


def test_data_sets():
    sets = build_datasets([Pair("a", "b"), Pair("c", "d", "e")], [Pair("p", "h", "x")], [Graded("s", "t", 0.5)])
    assert {name: rows[:] for name, rows in sets.items()} == {
        "pairs": {"anchor": ["a"], "positive": ["b"]},
        "triplets": {"anchor": ["c"], "positive": ["d"], "negative": ["e"]},
        "inference_triplets": {"anchor": ["p"], "positive": ["h"], "negative": ["x"]},
        "similarity": {"sentence1": ["s"], "sentence2": ["t"], "score": [0.5]},
    }


def test_a_checkpoint_is_exported_first(command, model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr("cmbert.export.release.export", lambda path, output, format: shutil.copytree(model, output))
    assert command(tmp_path / "out", "--num-pairs", 16, model=run) == 0
    assert results(tmp_path / "out")["settings"]["model"]["name"] == "run"


def test_it_says_one_thing_at_a_time(command, tmp_path, capfd):
    assert command(tmp_path / "out", "--num-pairs", 16) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    where = str(tmp_path / "out" / "model")
    assert f"model written to {where}; load it: SentenceTransformer({where!r}, trust_remote_code=True)" in shown.out
    assert len([line for line in shown.out.splitlines() if line and not line.startswith(("|", "#"))]) <= 9


@pytest.mark.parametrize("with_negatives", [False, True])
def test_the_forwards_of_a_step_change_neither_loss_nor_gradient(model, with_negatives):
    embedder = open_embedder(str(model), 32).eval()
    texts = [[text(topic, form) * (1 + topic) for topic in range(7)] for form in range(2 + with_negatives)]
    found = []
    for size in (7, 3, 2):  # 7 pairs: one forward, or several of which the last is smaller
        features = [embedder.preprocess(column) for column in texts]
        loss = CachedMultipleNegativesRankingLoss(embedder, scale=SCALE, mini_batch_size=size)(features, None)
        embedder.zero_grad()
        loss.backward()
        gradients = [weight.grad.flatten() for weight in embedder.parameters() if weight.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert (gradient - found[0][1]).norm() < 1e-5 * found[0][1].norm()


def test_rows_that_no_batch_has_room_for_are_counted(model, tmp_path, caplog):
    """Rows that share a text are in no batch together, and a pass ends before all have had one of their own."""
    pairs = [Pair("天气", f"天气很好{i}") for i in range(20)] + [Pair(text(i, 0), text(i, 1)) for i in range(10)]
    data = TrainingData(pairs, [0] * 30, [], [], [], [], [])
    settings = ContrastiveSettings(epochs=1, batch_size=10, mini_batch_size=10, learning_rate=1e-4, seed=0)
    with caplog.at_level("INFO"):
        found = train_embedder(open_embedder(str(model), 32), pairs, data, settings, tmp_path)
    assert found["steps"] == 3
    assert 30 - 3 - 10 <= found["rows_left_out_of_a_pass"] < 20  # of the twenty no more than one a batch
    assert f"{found['rows_left_out_of_a_pass']} of 30 rows were in no batch of the last pass" in caplog.text
