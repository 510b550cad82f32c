"""The tables of fine-tuning: what may stand beside what."""

from cmbert.files.whole import write_json
from cmbert.transfer.finetune.protocol import interval
from cmbert.transfer.finetune.results import score_table, write_results


def test_splits_have_columns_of_their_own():
    score = {"accuracy": interval([70.0, 72.0])}
    splits = {"dev": {"labelled": True, "majority_share": 40.0, **score}, "test": {"labelled": False}}
    head, rows = score_table(
        [{"task": "ocnli", "model": "mine", "scores": ["accuracy"], "splits": splits, "train_examples": 50_437}]
    )
    assert head == ["model", "ocnli dev, accuracy", "ocnli test", "ocnli leaderboard test, accuracy"]
    assert rows[0] == ["mine", "71.00 ± 12.71 (2)", "no labels", ""]
    assert rows[1] == ["majority class", "40.00", "", ""]
    assert {row[3] for row in rows[2:]} == {"79.10", "78.20"}


def test_few_shot_scores_do_not_stand_beside_published_rows(tmp_path):
    def write(task, model, examples):
        result = {"task": task, "model": model, "scores": ["accuracy"], "grid": [{}], "max_length": 128, "texts_cut": 0}
        result |= {"splits": {"test": {"examples": 9, "labelled": True, "accuracy": interval([70.0])}}}
        result |= {"setting": {"learning_rate": 1e-3, "batch_size": 16, "epochs": 20}, "hardware": "", "seconds": 1.0}
        write_json(tmp_path / task / model / "result.json", result | {"train_examples": examples})

    for task, examples in (("cluewsc2020", 160), ("eprstmt", 160), ("ocnli", 10_000)):
        (tmp_path / task / "mine").mkdir(parents=True)
        write(task, "mine", examples)
    write_results(tmp_path)
    assert "published" not in (tmp_path / "results.md").read_text(encoding="utf-8").replace("no published row", "")
    (tmp_path / "cluewsc2020" / "full").mkdir()
    write("cluewsc2020", "full", 1_244)
    write_results(tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    scores, few = text.split("## Few-shot")[0], text.split("## Few-shot")[1].split("- Percent")[0]
    assert "| RoBERTa-wwm-large, published " in scores
    assert "| full " in scores
    assert "cluewsc2020 test" in few
    assert "eprstmt test" in few
    assert "leaderboard" not in few
    assert "RoBERTa" not in few
    assert "Few-shot" in (tmp_path / "results.html").read_text(encoding="utf-8")
