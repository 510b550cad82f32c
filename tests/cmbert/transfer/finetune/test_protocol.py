"""The protocol from files to results: what is chosen, what is kept apart by model, data and split, what is refused."""

import json
from dataclasses import replace

import pytest

from cmbert.cli import main
from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.transfer.contamination import TrainingFile, sentence_hashes, write_training_data
from cmbert.transfer.finetune.defaults import Asked
from cmbert.transfer.finetune.protocol import finetune, interval, share_of_texts_seen
from cmbert.transfer.finetune.results import settings_table
from cmbert.transfer.finetune.trial import Setting
from cmbert.transfer.tasks.examples import read_split
from cmbert.transfer.tasks.task import find_task

SETTING = Setting(learning_rate=5e-3, batch_size=8, epochs=6)


def run(backbone, task, folder, output, settings, seeds=2, name="mine"):
    asked = Asked(
        learning_rates=tuple(dict.fromkeys(setting.learning_rate for setting in settings)),
        batch_sizes=tuple(dict.fromkeys(setting.batch_size for setting in settings)),
        epochs=tuple(dict.fromkeys(setting.epochs for setting in settings)),
    )
    return finetune(backbone, task, folder, output, model_name=name, asked=asked, num_seeds=seeds)


def test_the_protocol(ours, task, review_folder, tmp_path, monkeypatch):
    settings = [replace(SETTING, learning_rate=rate) for rate in (1e-6, 5e-3)]
    result = run(ours, task, review_folder, tmp_path / "out", settings)
    assert result["setting"]["learning_rate"] == 5e-3
    assert len(result["grid"]) == 2
    dev, test = result["splits"]["dev"], result["splits"]["test"]
    assert len(dev["accuracy"]["values"]) == 2
    assert test == {"examples": 20, "labelled": False}
    assert 50 <= dev["majority_share"] < dev["accuracy"]["mean"]
    place = tmp_path / "out" / "reviews" / "mine"
    lines = (place / "reviews_predict.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(20))
    assert {json.loads(line)["label"] for line in lines} <= {"0", "1"}
    (curve, _) = result["curves"]
    assert len(curve["dev"]) == len(curve["train_loss"]) == 6
    assert curve["dev"][-1]["accuracy"] == dev["accuracy"]["values"][0]
    monkeypatch.setattr("cmbert.transfer.finetune.protocol.run_trial", None)  # nothing is trained again
    assert run(ours, task, review_folder, tmp_path / "out", settings) == result


def test_settings_of_earlier_calls_are_counted_and_may_win(ours, task, review_folder, tmp_path):
    worse = replace(SETTING, learning_rate=1e-6)
    for settings, chosen, tried in (([worse], worse, 1), ([SETTING], SETTING, 2), ([worse], SETTING, 2)):
        result = run(ours, task, review_folder, tmp_path / "out", settings, seeds=1)
        assert result["setting"]["learning_rate"] == chosen.learning_rate
        head, rows = settings_table([result])
        assert rows[0][head.index("settings tried")] == str(tried)


def test_results_are_not_mixed(ours, task, review_folder, tmp_path):
    run(ours, task, review_folder, tmp_path / "out", [SETTING], seeds=1)
    with (review_folder / "dev.json").open("a", encoding="utf-8") as file:
        file.write('{"id": 99, "sentence": "很好", "label": "1"}\n')
    with pytest.raises(ConfigError, match="holds results with other data; name another --output"):
        run(ours, task, review_folder, tmp_path / "out", [SETTING], seeds=1)
    ours.encoder.final_norm.weight.data += 1
    with pytest.raises(ConfigError, match="holds results with other weights, data"):
        run(ours, task, review_folder, tmp_path / "out", [SETTING], seeds=1)


def test_the_same_at_once_is_refused(ours, task, review_folder, tmp_path, occupy):
    place = tmp_path / "out" / "reviews" / "mine"
    occupy(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(CheckpointError, match=r"mine: is written by a run on n7 .*`the same command`\); stop that, or"):
        run(ours, task, review_folder, tmp_path / "out", [SETTING], seeds=1)
    assert sorted(place.rglob("*")) == before
    run(ours, task, review_folder, tmp_path / "out", [SETTING], seeds=1, name="other")
    assert not list(tmp_path.glob("out/*/other/lease.*"))


def test_intervals_are_students():
    assert interval([1.0, 2.0, 3.0])["half_width"] == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-5)
    assert interval([5.0])["half_width"] is None


def test_the_command(bert_folder, review_folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["finetune", "--model", str(bert_folder), "--task", str(review_folder / "task.toml")]
    arguments += ["--data", str(review_folder), "--output", str(output), "--seeds", "1", "--epochs", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--untrained"]) == 0
    printed = capsys.readouterr().out
    assert "| majority class " in printed
    page = (output / "results.html").read_text(encoding="utf-8")
    assert f"{bert_folder.parent.name}-bert-untrained" in page
    assert "://" not in page
    for change, message in (
        (["--model", "/nowhere/model"], "neither a run, a checkpoint nor a model"),
        (["--task", "tnew"], "did you mean 'tnews'"),
        (["--data", str(bert_folder)], "no train.json of reviews"),
    ):
        assert main([*arguments, *change]) == 2
        assert message in capsys.readouterr().err


def test_a_model_without_its_tokenizer(bert_folder, review_folder, tmp_path, capsys):
    arguments = ["finetune", "--model", str(bert_folder), "--task", str(review_folder / "task.toml")]
    arguments += ["--data", str(review_folder), "--output", str(tmp_path / "out")]
    vocabulary = json.loads((bert_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["vocab"] |= {f"新{index}": 100 + index for index in range(50)}
    (bert_folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    assert main(arguments) == 2
    assert "use its own" in capsys.readouterr().err
    for path in bert_folder.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            path.unlink()
    assert main(arguments) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_saw_simclue_is_not_scored_on_what_it_contains(ours, task, review_folder, tmp_path):
    texts = [part[0] for e in read_split(task, review_folder, "dev").examples for part in e.parts]
    record = [TrainingFile("train_pair.json", "simclue", 100, "00")]
    write_training_data(tmp_path, record, sentence_hashes(["别的句子"]))
    contained = replace(task, in_simclue=True)
    splits = {"dev": read_split(task, review_folder, "dev"), "test": None}
    with pytest.raises(ConfigError, match=r"trained on SimCLUE \(train_pair\.json\), which contains reviews"):
        share_of_texts_seen(contained, splits, tmp_path)
    assert share_of_texts_seen(task, splits, tmp_path) == 0
    write_training_data(tmp_path, [replace(record[0], source="other")], sentence_hashes(texts[: len(texts) // 2]))
    assert 0.3 < share_of_texts_seen(task, splits, tmp_path) < 0.9
    with pytest.raises(ConfigError, match="% of these texts"):  # the file went under another name
        share_of_texts_seen(contained, splits, tmp_path)


def test_reading_comprehension_from_file_to_submission(ours, tmp_path):
    """C3's and CMRC's own formats: the answer can be seen in the text, and is found on the texts learnt from."""
    words = ["北京", "酒店", "公园", "大学", "房间", "天气"]
    folder = tmp_path / "data"
    folder.mkdir()
    choices = []
    for i, word in enumerate(words):
        asked = {"question": "去哪里？", "choice": [words[i - 1], word, words[i - 2]], "answer": word}
        choices.append([[f"他去了{word}。"], [asked], str(i)])
    for name in ("d-train.json", "m-train.json", "d-dev.json", "m-dev.json"):
        (folder / name).write_text(json.dumps(choices), encoding="utf-8")
    for entry in choices:
        del entry[1][0]["answer"]
    (folder / "test1.1.json").write_text(json.dumps(choices), encoding="utf-8")
    setting = Setting(learning_rate=5e-3, batch_size=4, epochs=100)
    task = find_task("c3")
    result = run(ours, task, folder, tmp_path / "out", [setting], seeds=1)
    assert result["splits"]["dev"]["accuracy"]["mean"] > 60  # of three
    lines = (tmp_path / "out/c3/mine/c311_predict.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(6))
    assert {json.loads(line)["label"] for line in lines} <= {0, 1, 2}

    articles = []
    for i, word in enumerate(words):
        question = {"query_id": f"Q{i}", "query_text": "去哪里？", "answers": [word]}
        articles.append({"context_text": f"今天他去了{word}，很好。", "qas": [question]})
    for name in ("train.json", "dev.json", "test.json"):
        (folder / name).write_text(json.dumps({"data": articles}), encoding="utf-8")
    result = run(ours, find_task("cmrc2018"), folder, tmp_path / "out", [setting], seeds=1)
    assert result["splits"]["test"]["exact_match"]["mean"] > 60
    assert result["splits"]["test"]["f1"]["mean"] >= result["splits"]["test"]["exact_match"]["mean"]
    answers = json.loads((tmp_path / "out/cmrc2018/mine/cmrc2018_predict.json").read_text(encoding="utf-8"))
    assert sorted(answers) == [f"Q{i}" for i in range(6)]
    assert sum(answers[f"Q{i}"] == word for i, word in enumerate(words)) > 3


def test_what_is_cut_or_left_out_is_said(ours, tmp_path, caplog):
    """An answer that is not in its text, one longer than any window, a label that is dropped, a test half answered."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = {"很好": "今天很好。", "广州": "今天很好。", "今天" * 40: "今天" * 60 + "。"}
    articles = [
        {"context_text": text, "qas": [{"query_id": f"Q{i}", "query_text": "去哪里？" * 9, "answers": [answer]}]}
        for i, (answer, text) in enumerate(texts.items())
    ]
    for name in ("train.json", "dev.json", "test.json"):
        (folder / name).write_text(json.dumps({"data": articles}), encoding="utf-8")
    setting = Setting(learning_rate=1e-3, batch_size=2, epochs=1)
    task = replace(find_task("cmrc2018"), max_length=32)
    with caplog.at_level("INFO"):
        result = run(ours, task, folder, tmp_path / "out", [setting], seeds=1)
    assert result["answers_not_in_their_text_left_out"] == 1
    assert result["answers_across_all_windows"] == 1
    assert result["train_examples"] == 2
    assert result["texts_cut"] >= 3 * 3  # a question that is cut, in every window
    assert "1 answers not in their text left out; 1 answers across all windows" in caplog.text

    pair = {"sentence1": "他在看书", "sentence2": "他没在睡觉"}
    records = [pair | {"label": label, "id": i} for i, label in enumerate(("entailment", "-", "neutral", "-"))]
    tests = [pair | {"label": "neutral", "id": "007"}, pair | {"id": "²"}]
    for name, rows in (("train.50k.json", records), ("dev.json", records), ("test.json", tests)):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run(ours, find_task("ocnli"), folder, tmp_path / "out", [setting], seeds=1)
    assert result["examples_left_out_for_their_label"] == 4
    assert result["test_examples_without_answer_so_none_scored"] == 1
    assert result["splits"]["test"] == {"examples": 2, "labelled": False}
    lines = (tmp_path / "out/ocnli/mine/ocnli_50k_predict.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["007", "²"]


def test_a_train_split_whose_answers_stand_nowhere(ours, tmp_path):
    article = {"context_text": "甲", "qas": [{"query_id": "Q", "query_text": "谁？", "answers": ["乙"]}]}
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text(json.dumps({"data": [article]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"no answer of train\.json stands in its text; nothing to learn"):
        run(ours, find_task("cmrc2018"), tmp_path, tmp_path / "out", [SETTING], seeds=1)
