"""What a fine-tuning takes where nobody says: the learning rate by the model's width, the epochs by the examples.

Measured at the widths 128, 256 and 384 on ChnSentiCorp: docs/finetuning.md, "What is taken by default".
"""

import math
from dataclasses import dataclass

from cmbert.errors import ConfigError
from cmbert.transfer.finetune.trial import Setting
from cmbert.transfer.tasks.task import Task

BASE_WIDTH, BASE_RATE = 768, 5e-5  # BERT-base and the highest of its paper's rates (arXiv 1810.04805, A.3)
LOWEST_RATE, HIGHEST_RATE = 3e-5, 2e-3  # peak; the middle one of that paper; 3e-3 still did no harm at 128 and 256
LEAST_STEPS = 150  # optimizer steps: 50 were too few at a width of 128, 500 no better (docs/finetuning.md)
FEWEST_EPOCHS, MOST_EPOCHS = 3, 10  # CLUE's usual passes; more of a small set mostly learns it by heart (ours)
GRID_FACTORS = (1 / 3, 2 / 3, 1, 5 / 3, 8 / 3)  # of the rate: around 3e-5 they are 1e-5 to 8e-5, BERT's range (ours)
GRID_BATCH_SIZES = (16, 32)  # examples; with the factors the same for every model of every task (ours)


def default_learning_rate(width: int) -> float:
    """Return the peak rate for a model of `width` hidden values: as one over its square, within bounds, two digits."""
    return min(max(to_two_digits(BASE_RATE * (BASE_WIDTH / width) ** 2), LOWEST_RATE), HIGHEST_RATE)


def default_epochs(num_examples: int, batch_size: int) -> int:
    """Return how often to pass over `num_examples`: LEAST_STEPS steps or more, within the fewest and most epochs."""
    steps_per_epoch = math.ceil(num_examples / batch_size)
    return min(max(math.ceil(LEAST_STEPS / steps_per_epoch), FEWEST_EPOCHS), MOST_EPOCHS)


def to_two_digits(value: float) -> float:
    """Return `value` with two digits, as people write a rate."""
    return float(f"{value:.1e}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a call asks to try; empty: what the task says, else the default. Raises ConfigError if not positive."""

    learning_rates: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    grid: bool = False
    """Try GRID_FACTORS of the rate and GRID_BATCH_SIZES, where no values are given."""

    def __post_init__(self) -> None:
        wrong = [value for value in (*self.learning_rates, *self.batch_sizes, *self.epochs) if not value > 0]
        if wrong:
            raise ConfigError(f"--learning-rates, --batch-sizes, --epochs: {wrong[0]} must be positive")

    def settings(self, task: Task, width: int, num_examples: int) -> list[Setting]:
        """Return every combination to try on a model of `width` and so many training examples."""
        rate = task.learning_rate or default_learning_rate(width)
        around = tuple(to_two_digits(factor * rate) for factor in GRID_FACTORS) if self.grid else (rate,)
        rates = self.learning_rates or around
        batches = self.batch_sizes or (GRID_BATCH_SIZES if self.grid else (task.batch_size,))
        return [
            Setting(learning_rate=peak, batch_size=batch, epochs=epochs)
            for peak in rates
            for batch in batches
            for epochs in self.epochs or (task.epochs or default_epochs(num_examples, batch),)
        ]

    def why(self, task: Task, width: int, num_examples: int) -> dict[str, str]:
        """Return who chose the learning rates and the epochs that `settings` returns, as people read it."""
        if self.learning_rates:
            rate = "--learning-rates"
        else:
            rate = "the task's" if task.learning_rate else f"by the model's width, {width:,}"
            rate = f"--grid around {task.learning_rate or default_learning_rate(width):g}, {rate}" * self.grid or rate
        if self.epochs:
            epochs = "--epochs"
        elif task.epochs:
            epochs = "the task's"
        else:
            bounds = f"{LEAST_STEPS:,} steps or more in {FEWEST_EPOCHS} to {MOST_EPOCHS} epochs"
            epochs = f"by the {num_examples:,} training examples: {bounds}"
        return {"learning_rate": rate, "epochs": epochs}
