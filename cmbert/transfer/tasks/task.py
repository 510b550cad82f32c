"""Fine-tuning tasks: CLUE's, and any task of classes, numbers or entities that a small TOML file describes.

Sources: CLUE (arXiv 2004.05986), its file formats and its notes on submissions of 2021-09-04, whose names and formats
its own baselines/paddlenlp write too (github.com/CLUEbenchmark/CLUE; issue 104: another name scores 0): JSON lines
{"id": 0, "label": "1"} in the order of the test file, C3's label a number, ChID and CMRC 2018 one object of id and
answer. FewCLUE's names: resources/fewclue_submit_examples of github.com/CLUEbenchmark/FewCLUE. C3 (arXiv 1904.09679),
ChID (arXiv 1906.01265), CMRC 2018 (arXiv 1810.07366). Lengths and epochs follow CLUE's own baselines where they have
one and it is not three epochs.
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cmbert.config.load import build, read_toml
from cmbert.errors import ConfigError
from cmbert.files.names import real
from cmbert.files.reading import shown
from cmbert.files.shipped import shipped_files

Reader = Literal["fields", "keywords", "pronoun", "c3", "chid", "cmrc", "conll", "entities"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Kind = Literal["classification", "multilabel", "regression", "tokens", "choice", "span"]
KIND_OF_READER: dict[Reader, Kind] = {
    "keywords": "classification",
    "pronoun": "classification",
    "c3": "choice",
    "chid": "choice",
    "cmrc": "span",
    "conll": "tokens",
    "entities": "tokens",
}
KIND_OF_PROBLEM: dict[ProblemType, Kind] = {  # of reader "fields"; the names are transformers'
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
LABELLED_KINDS = ("classification", "multilabel", "tokens")  # whose answers are labels
SCORES: dict[Kind, tuple[str, ...]] = {  # percent; settings are chosen by the first. Of classes: Task.metric
    "multilabel": ("micro_f1", "macro_f1"),
    "regression": ("spearman", "pearson"),
    "tokens": ("entity_f1", "precision", "recall"),
    "choice": ("accuracy",),
    "span": ("exact_match", "f1"),
}
OUTSIDE = "O"  # tag of a token that is in no entity

NLI_LABELS = ("entailment", "neutral", "contradiction")
LEAST_LENGTH = 16  # tokens: a text's special tokens, a question and something of the text fit in no less
OLDER_TEST = "test1.0.json"  # CLUE's first test sets of tnews, cluewsc2020, c3 and chid, beside those of its 1.1
TNEWS_LABELS = tuple(str(code) for code in range(100, 117) if code not in (105, 111))


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its files, what they hold, how it is scored and trained. A user's task file has these keys."""

    name: str
    """Folder under --output, and column of the results table."""
    text: tuple[str, ...] = ()
    """Key (JSON lines) or column (CSV, TSV) of the text, two for a pair; empty = "sentence", of entities "text"."""
    label: str = "label"
    """Key or column of the label, the labels, the number or the entities."""
    labels: tuple[str, ...] = ()
    """Every label or type of entity, as text; empty = those of the training set, if the answers are labels at all."""
    label_separator: str = "|"
    """What stands between the labels in a cell of a CSV or TSV file, of a task with several labels to a text."""
    problem_type: ProblemType = "single_label_classification"
    """What `label` holds, by transformers' names: one label, several or none, or a number."""
    dropped_labels: tuple[str, ...] = ()
    """Examples with one of these labels are left out ("-" in NLI: the annotators did not agree)."""
    train: tuple[str, ...] = ("train.json",)
    """Files of the split in the data folder, read in order."""
    dev: tuple[str, ...] = ("dev.json",)
    """Likewise; the setting is chosen on it. None: a tenth of the training examples, drawn by lot, is held back."""
    test: tuple[str, ...] = ("test.json",)
    """Likewise; may be absent. Scored if it has labels, answered in CLUE's submission format in any case."""
    max_length: int = 128
    """Longer texts are cut; tokens, [CLS] and [SEP] among them."""
    epochs: int = 0
    """Passes over the training examples; 0: by their number (`defaults.default_epochs`)."""
    batch_size: int = 32
    """Examples in one optimizer step, without --grid."""
    learning_rate: float = 0.0
    """Peak rate; 0: by the model's width (`defaults.default_learning_rate`)."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """What is reported of classes, in percent; other answers have their own (SCORES)."""
    reader: Reader = "fields"
    """How a line becomes an example: "conll" and "entities" read entities, "fields" any record of texts and a label;
    the others are formats of one task each."""
    predictions: str = ""
    """Name of the submission file; empty = <name>_predict.json."""
    in_simclue: bool = False
    """Its examples are part of SimCLUE: a model trained on SimCLUE must not be scored on it."""

    @property
    def kind(self) -> Kind:
        """Return what the model is to decide."""
        return KIND_OF_READER.get(self.reader, KIND_OF_PROBLEM[self.problem_type])

    @property
    def text_keys(self) -> tuple[str, ...]:
        """Return the keys of the text, or of a pair's two."""
        return self.text or (("text",) if self.reader == "entities" else ("sentence",))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the classifier's outputs, in order; of tokens "O", "B-x", "I-x", "B-y", ..."""
        if self.kind == "tokens":
            return (OUTSIDE, *(f"{place}-{label}" for label in self.labels for place in "BI"))
        if self.kind in LABELLED_KINDS:
            return self.labels
        return {"regression": (self.label,), "choice": ("choice",), "span": ("start", "end")}[self.kind]

    @property
    def needs_labels(self) -> bool:
        """Return whether the labels are yet to be taken from the training set."""
        return self.kind in LABELLED_KINDS and not self.labels

    @property
    def predictions_file(self) -> str:
        """Return the name of the submission file."""
        name = self.predictions or f"{self.name}_predict.json"
        return name.replace("11_predict", "10_predict") if OLDER_TEST in self.test else name

    @property
    def score_names(self) -> tuple[str, ...]:
        """Return the names of the scores; settings are chosen by the first."""
        return SCORES.get(self.kind, (self.metric,))


PAIR = ("sentence1", "sentence2")
CLUE_TASKS = (
    Task(name="afqmc", text=PAIR, labels=("0", "1"), in_simclue=True),
    Task(name="tnews", labels=TNEWS_LABELS, predictions="tnews11_predict.json"),
    Task(name="iflytek", labels=tuple(str(code) for code in range(119)), max_length=512),
    Task(name="cmnli", text=PAIR, labels=NLI_LABELS, dropped_labels=("-",), in_simclue=True),
    Task(
        name="ocnli",
        text=PAIR,
        labels=NLI_LABELS,
        dropped_labels=("-",),
        train=("train.50k.json",),
        epochs=5,
        predictions="ocnli_50k_predict.json",
        in_simclue=True,
    ),
    Task(
        name="cluewsc2020",
        labels=("false", "true"),
        reader="pronoun",
        epochs=50,
        predictions="cluewsc11_predict.json",
    ),
    Task(name="csl", labels=("0", "1"), reader="keywords", max_length=512, epochs=5),
    Task(
        name="c3",
        reader="c3",
        max_length=512,
        epochs=8,
        train=("d-train.json", "m-train.json"),
        dev=("d-dev.json", "m-dev.json"),
        test=("test1.1.json",),
        predictions="c311_predict.json",
    ),
    Task(name="chid", reader="chid", max_length=160, test=("test1.1.json",), predictions="chid11_predict.json"),
    Task(name="cmrc2018", reader="cmrc", max_length=512, epochs=2),
)


def find_task(name: str, where: str = "--task") -> Task:
    """Return CLUE's task of that name, a shipped one, or the one that the TOML file `name` describes.

    Raises ConfigError.
    """
    known, shipped = {task.name: task for task in CLUE_TASKS}, shipped_files("recipes/tasks", ".toml")
    if name.endswith(".toml"):
        if not Path(name).exists() and Path(name).stem in {*known, *shipped}:
            raise ConfigError(f"{where} {shown(name)[1:-1]}: no such file; {Path(name).stem} is shipped, without .toml")
        return load_task(Path(name))
    if name in shipped:
        return load_task(shipped[name])
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *shipped], n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join([*known, *shipped])}."
        raise ConfigError(
            f"{where} {shown(name)[1:-1]}: unknown task; {remedy} For a task of your own name its TOML file"
        )
    return known[name]


def load_task(path: Path, seen: tuple[Path, ...] = ()) -> Task:
    """Read a task file. It may start from a CLUE task by `like = "ocnli"` and state only what differs.

    `like` may be another task file, relative to this one. Raises ConfigError naming file and key.
    """
    if real(path) in seen:
        raise ConfigError(f"{path}: like: task files are like each other in a circle; remove one like")
    table = read_toml(path, "task file")
    like = table.pop("like", None)
    if like is None:
        task: Task = build(Task, table, str(path))
    elif not isinstance(like, str):
        raise ConfigError(f"{path}: like: must be a task's name or file in quotes")
    else:
        other = (*seen, real(path))
        base = load_task(path.parent / like, other) if like.endswith(".toml") else find_task(like, f"{path}: like")
        changes = build(Task, {"name": base.name, **table}, str(path))
        task = replace(base, **{key: getattr(changes, key) for key in table})
    check_task(task, table, str(path))
    return task


def check_task(task: Task, given: Collection[str], where: str) -> None:
    """Raise ConfigError for values that no training or no file name can be made of; `given`: the file's own keys."""
    texts = task.text if "text" in given else task.text_keys
    most, number = (1, "one key") if task.reader == "entities" else (2, "one key or two")
    rules = {
        "name": (is_file_name(task.name), "be a folder's name: not empty, without /"),
        "predictions": (task.predictions == "" or is_file_name(task.predictions), "be a file's name, without /"),
        "max_length": (task.max_length >= LEAST_LENGTH, f"be {LEAST_LENGTH} tokens or more"),
        "epochs": (task.epochs >= 1 or "epochs" not in given, "be 1 or more"),
        "batch_size": (task.batch_size >= 1, "be 1 or more"),
        "learning_rate": (task.learning_rate > 0 or "learning_rate" not in given, "be positive"),
        "text": (1 <= len(set(texts)) == len(texts) <= most, f"name {number}, found {len(texts)}"),
        "label": (task.reader != "fields" or task.label not in texts, "be another key than the text's"),
        "labels": _rule_of_labels(task),
        "label_separator": (task.label_separator.strip(), "be a sign"),
        "train": (task.train and all(map(is_path, task.train)), "list one file or more"),
        "dev": (all(map(is_path, task.dev)), "list one file or more, or none: a tenth of train is held back"),
        "test": (all(map(is_path, task.test)), "list files, or nothing"),
    }
    rules |= {key: (False, f"be left out: {why}") for key, why in _without_effect(task).items() if key in given}
    for key, (is_right, must) in rules.items():
        if not is_right:
            raise ConfigError(f"{where}: {key}: must {must}")


def _rule_of_labels(task: Task) -> tuple[bool, str]:
    """Return whether the labels are right, and what they must be."""
    once = len(set(task.labels)) == len(task.labels) and not set(task.labels) & set(task.dropped_labels)
    enough = task.kind != "classification" or len(task.labels) != 1
    rules = {
        "classification": (once and enough, "list two labels or more, each once, none dropped"),
        "multilabel": (once, "list labels, each once, none dropped"),
        "tokens": (once and OUTSIDE not in task.labels, f'list types of entities, each once, none "{OUTSIDE}"'),
    }
    return rules.get(task.kind, (True, ""))


def _without_effect(task: Task) -> dict[str, str]:
    """Return the keys that mean nothing for this kind of task: key -> why."""
    keys = {} if task.reader == "fields" else {"problem_type": f"reader is {task.reader!r}"}
    if task.kind != "classification":
        keys["metric"] = "only classes have a choice"
    if task.kind != "multilabel":
        keys["label_separator"] = "an example has no list of labels"
    if task.kind not in LABELLED_KINDS:
        keys["labels"] = keys["dropped_labels"] = "answers are no labels"
    if task.kind == "tokens":
        keys["dropped_labels"] = "entities are labelled, not examples"
    if task.reader == "conll":
        keys["text"] = keys["label"] = "the first and the last column are read"
    return keys


def is_path(text: str) -> bool:
    """Return whether a text can be the path of a file."""
    return bool(text.strip()) and text.isprintable() and not text.endswith("/")


def is_file_name(text: str) -> bool:
    """Return whether a text can be the name of a file."""
    return is_path(text) and "/" not in text and text not in (".", "..") and len(text.encode("utf-8", "replace")) <= 200


def find_data(root: Path, task: Task, num_tasks: int) -> Path:
    """Return the folder of a task's files: `root`, or with several tasks `root`/NAME or NAME_public (as CLUE's zips).

    Raises ConfigError when there is none.
    """
    if not root.is_dir():
        raise ConfigError(f"--data {root}: no such folder; name the one with the files of {task.name}")
    candidates = [root / task.name, root / f"{task.name}_public"] + ([root] if num_tasks == 1 else [])
    for folder in candidates:
        if folder.is_dir() and (folder / task.train[0]).is_file():
            return folder
    raise ConfigError(
        f"--data {root}: no {task.train[0]} of {task.name} in {', '.join(map(str, candidates))}; "
        "unpack the task's data there"
    )
