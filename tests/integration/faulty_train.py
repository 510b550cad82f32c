"""`cmbert train` with one fault put in, as FAULT=kind:step:rank says. What is broken is the world, not the trainer."""

import os
import signal
import sys
import time
from concurrent import futures
from typing import Any

import torch

from cmbert.checkpoint import writer as checkpoint_writer
from cmbert.cli import main
from cmbert.data.batches import StepData
from cmbert.data.reader import StepBatches
from cmbert.errors import ShardError
from cmbert.train import loop

KIND, STEP, RANK = os.environ["FAULT"].split(":")
MINE = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")) == int(RANK)
SPIKE = 1e4


def spoil_gradient(run: loop.Run, factor: float) -> None:
    """Multiply the gradient of one weight by `factor` in this step's backward passes."""
    weight = run.engine.module.model.layers[0].attn.Wqkv.weight
    handle = weight.register_hook(lambda gradient: gradient * factor)
    run.engine.spoiled = handle


def spoil(run: loop.Run) -> None:
    match KIND:
        case "nan":
            spoil_gradient(run, float("nan"))
        case "spike":
            spoil_gradient(run, SPIKE)
        case "hang":
            time.sleep(600)
        case "pause":  # until a signal comes
            print(f"paused in step {run.step}", flush=True)
            signal.pause()
        case "wait":
            print(f"waiting in step {run.step}", flush=True)
            while not (run.directory / "go").exists():
                time.sleep(0.02)
        case "deaf":
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            print(f"deaf in step {run.step}", flush=True)
            time.sleep(600)
        case "raise":
            raise RuntimeError("the world is broken\nin more than one line")
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "clock":
            real = time.time
            time.time = lambda: real() - 86_400.0
        case "term_twice":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)


def broken_step(run: loop.Run, data: Any, *more: Any) -> Any:
    is_now = (
        run.step == int(STEP)
        and not getattr(broken_step, "done", KIND.startswith(("save_", "eval_", "data_")))
        and MINE
    )
    if is_now:
        broken_step.done = True
        spoil(run)
    launched = sound_step(run, data, *more)
    if is_now and hasattr(run.engine, "spoiled"):
        run.engine.spoiled.remove()
    return launched


def broken_write(copies: list, directory: Any, host: Any) -> Any:
    """A fault while the thread writes the checkpoint of STEP."""
    if MINE and directory.name.startswith(f".step_{int(STEP):09d}."):
        if KIND == "save_kill":
            path, table = copies[0]
            torch.save(table, path)
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if KIND == "save_raise":
            raise ValueError("the thread is broken")
        if KIND == "save_term":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
    return sound_write(copies, directory, host)


def prompt_begin(writer: checkpoint_writer.CheckpointWriter, *arguments: Any) -> None:
    """Wait for the thread: then a checkpoint is published a step later, whatever else the machine does."""
    sound_begin(writer, *arguments)
    if writer.begin_error is None:
        futures.wait([writer.written])


def broken_evaluate(run: loop.Run) -> dict[str, float]:
    """A stop request while the held-out rows are scored."""
    if KIND == "eval_term" and run.step == int(STEP) and MINE:
        os.kill(os.getpid(), signal.SIGTERM)
    return sound_evaluate(run)


def broken_batches(run: loop.Run) -> Any:
    """A stop request while the trainer waits for data, which then takes a second more."""
    for data in sound_batches(run):
        if KIND == "data_term" and run.step == int(STEP) and MINE:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
        yield data


class BrokenBatches(StepBatches):
    """What a loader process meets in STEP."""

    def __getitem__(self, step: int) -> StepData:
        if MINE and step == int(STEP):
            match KIND:
                case "data_raise":
                    raise RuntimeError("the loader is broken")
                case "data_shard":
                    raise ShardError("a shard is damaged; copy it again")
                case "data_kill":
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(step)


if KIND in ("data_raise", "data_shard", "data_kill"):
    loop.StepBatches = BrokenBatches
sound_evaluate, loop.evaluate = loop.evaluate, broken_evaluate
sound_batches, loop.batches = loop.batches, broken_batches
sound_step, loop.train_step = loop.train_step, broken_step
sound_begin, checkpoint_writer.CheckpointWriter.begin = checkpoint_writer.CheckpointWriter.begin, prompt_begin
sound_write, checkpoint_writer._write_all = checkpoint_writer._write_all, broken_write

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
