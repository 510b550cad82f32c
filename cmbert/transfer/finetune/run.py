"""`cmbert finetune`: one model on several tasks, and the table of all models that were tuned so far."""

from collections.abc import Sequence
from pathlib import Path

from cmbert.transfer.finetune.backbone import open_backbone
from cmbert.transfer.finetune.defaults import Asked
from cmbert.transfer.finetune.protocol import finetune
from cmbert.transfer.finetune.results import write_results
from cmbert.transfer.tasks.task import Task


def finetune_tasks(
    model: str,
    tasks: Sequence[tuple[Task, Path]],
    output: Path,
    *,
    asked: Asked,
    num_seeds: int,
    name: str | None = None,
    untrained: bool = False,
    trust: bool = False,
    save: Path | None = None,
) -> None:
    """Fine-tune `model` on every task and print the table. See `finetune`.

    tasks: each with the folder of its files. name: of the model in folders and tables; None: of its path. save: folder
    for the tuned model; of several tasks, the parent of a folder for each. Raises InputError, ConfigError or
    CheckpointError for what the user can mend, before any training if it can.
    """
    backbone = open_backbone(model, untrained=untrained, trust=trust)
    name = name or "-".join(Path(model).parts[-2:]).strip("-/.") + "-untrained" * untrained
    for task, folder in tasks:
        finetune(
            backbone,
            task,
            folder,
            output,
            model_name=name,
            asked=asked,
            num_seeds=num_seeds,
            model_folder=Path(model),
            save=save / task.name if save and len(tasks) > 1 else save,
        )
        write_results(output)
    print((output / "results.md").read_text(encoding="utf-8"))
    print(f"written to {output / 'results.md'} and {output / 'results.html'}")
    if save:
        print(f"the tuned model is in {save}; its README.md says how to use it")
