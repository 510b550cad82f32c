"""Commands of the documents that the suite does not run as they stand: what is left out and why, what runs instead."""

from typing import NamedTuple


class NotRun(NamedTuple):
    """Commands whose text matches `pattern` from its beginning to its end."""

    pattern: str
    reason: str
    test: str
    """What covers it instead, a path in the repository."""


SLURM = "needs a Slurm: run on a real one there"
SUITE = "is this suite, or takes minutes"
NOT_RUN = (
    NotRun(r"make demo( FRESH=1)?", "five minutes; its steps run here, and all of it at a tiny size there",
           "tests/integration/test_demo.py"),
    NotRun(r"make adapt( .*)?|python recipes/adapt/adapt\.py( .*)?", "minutes; on a tiny model there",
           "tests/integration/test_adapt.py"),
    NotRun(r"make (test|test-all|check)( .*)?", SUITE, ".ci/run"),
    NotRun(r"python recipes/large/duplicates\.py .*", "minutes and gigabytes; fewer documents there",
           "tests/integration/test_duplicates_recipe.py"),
    NotRun(r"make bench( .*)?", "minutes of timing; `cmbert bench` runs here at a tiny size",
           "tests/cmbert/bench/test_throughput.py"),
    NotRun(r"(make gpu|python recipes/gpu/run\.py)( .*)?", "needs a GPU; all of it at a tiny size there",
           "tests/integration/test_gpu_recipe.py"),
    NotRun(r"python recipes/serving/(measure|int8)\.py .*", "minutes of timing; at a tiny size there",
           "tests/integration/test_serving_recipe.py"),
    NotRun(r"python examples/predict\.py .*", "reads lines of the reader's; a model and its lines there",
           "tests/examples/test_predict.py"),
    NotRun(r"source \.venv/bin/activate", "the environment in which this suite runs", ".ci/run"),
    NotRun(r"make \.venv/ready", "downloads packages; every clone's CI begins with it", ".ci/run"),
    NotRun(r"pip (install|wheel|download)( .*)?", "downloads packages", ".ci/run"),
    NotRun(r"slurm/submit_all\.sh recipes/large(/layernorm)? text", SLURM, "tests/slurm/test_chain.py"),
    NotRun(r"sbatch .*slurm/stage[12]\.sh.*", SLURM, "tests/slurm/test_life_cycle.py"),
    NotRun(r"sbatch slurm/evaluate\.sh .*", SLURM, "tests/slurm/test_chain.py"),
    NotRun(r"srun .*", SLURM, "tests/slurm/test_life_cycle.py"),
    NotRun(r"(squeue|scontrol|scancel) .*", SLURM, "tests/slurm/test_life_cycle.py"),
    NotRun(r"sbatch --(no-requeue|test-only)", "an option of Slurm's own", "tests/slurm/test_life_cycle.py"),
    NotRun(r"slurm/install_kernels\.sh", "needs a CUDA toolkit; with stand-ins there", "tests/slurm/test_kernels.py"),
    NotRun(r"\$EDITOR slurm/env\.sh", "an editor", "tests/slurm/test_scripts.py"),
    NotRun(r"tail -F .*", "does not end", "tests/slurm/test_life_cycle.py"),
    NotRun(r"tensorboard --logdir .*", "a server that does not end", "tests/cmbert/runs/test_metrics.py"),
    NotRun(r"wandb sync .*", "sends to a network", "tests/cmbert/runs/test_metrics.py"),
    NotRun(r"python -m tests\.golden\.golden_run", "writes into the repository; the test runs all of it but that",
           "tests/golden/test_golden.py"),
    NotRun(r"python -m tests\.integration\.soak .*", "a quarter of an hour; faults one by one there",
           "tests/integration/test_reliability.py"),
    NotRun(r"python -m tests\.slurm\.soak .*", "an hour; faults one by one there",
           "tests/integration/test_endings.py"),
    NotRun(r"python -m tests\.slurm\.soak_clean .*", "half an hour; five kills there",
           "tests/slurm/test_from_raw_text.py"),
    NotRun(r"cmbert plan recipes/large/stage[12]\.toml --gpus (48|56 --gpu-memory-gb 14|56 --set .*=16384)",
           "shows what is refused", "tests/cmbert/plan/test_refusals.py"),
    NotRun(r"cmbert ablate recipes/ablations/(?!attention)\w+\.toml.*", "one list runs here, all are loaded there",
           "tests/cmbert/ablation/test_lists.py"),
    NotRun(r"python recipes/ablations/word_boundary\.py .*", "needs thousands of documents; a few hundred there",
           "tests/cmbert/ablation/test_word_boundary.py"),
    NotRun(r"(torchrun|deepspeed|mpirun) .* cmbert train RECIPE", "each launcher on two ranks there",
           "tests/integration/test_launchers.py"),
    NotRun(r"cmbert train RECIPE --processes 8", "two ranks there", "tests/integration/test_local_ranks.py"),
)  # fmt: skip

HOLD_OUT = "data_tools clean --input raw/{0} --config recipes/large/clean/{0}.toml --heldout text/heldout/{0}"
CLEAN_AGAINST = (
    "data_tools clean --input raw/{0} --config recipes/large/clean/{0}.toml --output text/{0} --against text/heldout "
    "--decontaminate clue simclue"
)
SHARDS = "data_tools preprocess --input text/{0} --tokenizer runs/large/tokenizer --output runs/large/shards/{0}"
DOMAIN = "data_tools preprocess --input {0}.jsonl --tokenizer runs/large/tokenizer --output runs/domains/{0}"
OWN_SET = "data_tools preprocess --input {0}.jsonl --tokenizer runs/quickstart/tokenizer --output runs/{0}"
CORPORA = ("cci3_hq", "cci4_web_zh", "cosmopedia_zh")
TRAIN = "python -m cmbert train recipes/{0}.toml"
ARRAY = "data_tools preprocess --input legal.jsonl --tokenizer runs/large/tokenizer --output runs/array"
SMALL_BENCH = "--segments 64,32 --set model.vocab_size=1024 --set model.hidden_size=32 --set kernels.compile=false"
SHORT_BENCH = f"--lengths 64 --batch-tokens 128 {SMALL_BENCH}"
SMALL_STAGE = " ".join(
    f"--set {key}"
    for key in ("model.vocab_size=1024", "train.total_tokens=16384", "mask.warmup_tokens=0", "schedule.warmup_tokens=0")
)
DOMAINS_SCORED = (
    "cmbert eval runs/quickstart/stage2 --data news+reviews=runs/quickstart/heldout laws=runs/laws "
    "reviews=runs/reviews --context 512,1024 --unit word,token --max-rows 40"
)

# A command of the documents -> what is run for it: with the reader's own values in its placeholders, with what the
# document says in words beside it ("once per corpus"), or smaller. {} stands for the command itself.
INSTEAD: dict[str, tuple[str, ...]] = {
    "sbatch slurm/stage1.sh": (TRAIN.format("large/stage1"),),
    "sbatch --dependency=afterok:JOB slurm/stage2.sh": (TRAIN.format("large/stage2"),),
    HOLD_OUT.format("cci3_hq"): tuple(HOLD_OUT.format(name) for name in CORPORA),
    CLEAN_AGAINST.format("cci3_hq"): tuple(CLEAN_AGAINST.format(name) for name in CORPORA),
    SHARDS.format("cci3_hq"): tuple(SHARDS.format(name) for name in CORPORA),
    DOMAIN.format("legal"): ("{}", DOMAIN.format("medical")),
    DOMAINS_SCORED: (OWN_SET.format("laws"), OWN_SET.format("reviews"), "{}"),
    "data_tools verify DIR [--quick] [--tokenizer DIR [--input PATH...]]": (
        "data_tools verify runs/quickstart/shards --quick --tokenizer runs/quickstart/tokenizer "
        "--input runs/quickstart/text/train.jsonl",
    ),
    "data_tools inspect DIR [--document N --tokenizer DIR]": (
        "data_tools inspect runs/quickstart/shards",
        "data_tools inspect runs/quickstart/shards --document 1 --tokenizer runs/quickstart/tokenizer",
    ),
    "data_tools merge DIR... --output DIR": (
        "data_tools merge runs/large/shards/cci4_web_zh runs/large/shards/cosmopedia_zh --output runs/merged",
    ),
    "data_tools preprocess ... --workers 64": (ARRAY.replace("runs/array", "runs/workers") + " --workers 2",),
    "mpiexec -n 65 data_tools preprocess ... --mpi": (
        "mpiexec -n 2 " + ARRAY.replace("runs/array", "runs/mpi") + " --mpi",
    ),
    "data_tools preprocess ... --num-tasks N --task-index I": (
        f"{ARRAY} --num-tasks 2 --task-index 0",
        f"{ARRAY} --num-tasks 2 --task-index 1",
        ARRAY,
    ),
    "cmbert import FOLDER --output DIR": (
        "cmbert export runs/quickstart/stage2 --output runs/theirs",
        "cmbert import runs/theirs --output runs/start",
    ),
    "cmbert ledger RUN --step 1200": ("cmbert ledger runs/quickstart/stage1 --step 3",),
    "cmbert ledger RUN --step 1200 --show": ("cmbert ledger runs/quickstart/stage1 --step 3 --show",),
    "data_tools inspect DIR --document N --tokenizer DIR": (
        "data_tools inspect runs/quickstart/shards --document 1 --tokenizer runs/quickstart/tokenizer",
    ),
    "cmbert ledger RUN --step N": ("cmbert ledger runs/quickstart/stage1 --step 3",),
    "cmbert ledger RUN --step N --show": ("cmbert ledger runs/quickstart/stage1 --step 3 --show",),
    "cmbert train RECIPE --skip-steps 1195:1205": (
        f"{TRAIN.format('quickstart/stage1')} --set run_directory=runs/skipping --max-steps 2",
        f"{TRAIN.format('quickstart/stage1')} --set run_directory=runs/skipping --skip-steps 4:6",
    ),
    "cmbert train RECIPE --branch RUN@STEP --set run_directory=NEW": (
        f"{TRAIN.format('quickstart/stage1')} --set run_directory=runs/branch --branch runs/quickstart/stage1@8 "
        "--set train.total_tokens=24576 --max-steps 2",
    ),
    "cmbert eval RUN --data held --context 8192 --by-position --max-rows 60": (
        "cmbert eval runs/quickstart/stage2 --data runs/quickstart/heldout --context 8192 --by-position --max-rows 60",
    ),
    "cmbert finetune --model RUN --task TASK --data DIR --output DIR --learning-rates 1e-4,3e-4,1e-3,3e-3 --epochs 3 "
    "--seeds 1": (
        "cmbert finetune --model runs/quickstart/stage2 --task chnsenticorp --data chnsenticorp --output runs/rates "
        "--learning-rates 1e-4,3e-3 --epochs 1 --seeds 1",
    ),
    "cmbert export runs/reviews --format onnx --output runs/reviews_onnx": (
        "cmbert export runs/quickstart/export --format onnx --output runs/logits_onnx",  # no task is tuned here
    ),
    "cmbert merge-checkpoints RUN --steps 1600,1800,2000 --output DIR": (
        f"{TRAIN.format('quickstart/stage1')} --set run_directory=runs/merging --set train.checkpoint_every_steps=2 "
        "--set train.keep_checkpoints=3",
        "cmbert merge-checkpoints runs/merging --steps 4,6,8 --output runs/mean",
    ),
    "cmbert plan recipes/large/stage1.toml --gpus 64 --set optimizer.kind=muon": (
        "cmbert plan recipes/large/stage1.toml --gpus 56 --set optimizer.kind=muon",  # the shrunken step has 56 rows
    ),
    "cmbert plan RECIPE --gpus N": ("cmbert plan recipes/large/stage2.toml --gpus 7",),
    "cmbert bench train --against hf": (f"cmbert bench train --against hf --lengths 1024,8192 {SHORT_BENCH}",),
    "cmbert bench train --against hf --lengths 1024,8192": (f"{{}} {SHORT_BENCH}",),
    "cmbert bench inference --against hf": (f"{{}} {SHORT_BENCH}",),
    "cmbert bench loader --data DIR --tokenizer DIR": (
        "cmbert bench loader --data runs/large/shards/cci3_hq --tokenizer runs/large/tokenizer --lengths 128",
    ),
}
# What is added to a command that begins so, to make it small: the last of an option counts.
SMALLER = {
    "data_tools train-tokenizer --input mine/text": "--vocab-size 1024",
    "data_tools extend-tokenizer --tokenizer runs/large/tokenizer": "--add 16",
    **{f"cmbert {words} mine/stage": SMALL_STAGE for words in ("plan", "train")},
    "data_tools sample --output runs/quickstart/text": "--size 1000000",
    "cmbert eval runs/large/stage2 --data runs/large/heldout --long-context": "--max-rows 1 --long-context 4096",
    "cmbert eval runs/quickstart/stage2 --data runs/laws --long-context": "--max-rows 1 --long-context 4096",
    "cmbert eval runs/large/stage2 --data": "--max-rows 20",
    "cmbert bench train --model recipes/quickstart/stage1.toml": SMALL_BENCH,
    "cmbert bench inference --model recipes": "--lengths 512,1024 --batch-tokens 1024",
}
