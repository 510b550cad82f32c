# shellcheck shell=bash disable=SC2034
# (SC2034: the job scripts read these variables.)
# Site facts, and nothing else: hyper-parameters live in recipes/. Read twice: by you before you submit
# (`source slurm/env.sh`), because sbatch takes SBATCH_* from the environment, and by the job itself.
# Every line is optional; what is commented out is left to the cluster.

# Where jobs go. Default: the cluster's default partition and your default account.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=nlp
# export SBATCH_QOS=long

# What a node must load before Python runs. Default: nothing.
# module load cuda

# The Python that has cmbert installed. Default: the .venv that `make test` sets up.
CMBERT_PYTHON="${CMBERT_PYTHON:-.venv/bin/python}"

# More options for srun, as a bash array; with enroot and pyxis the place for --container-image and --container-mounts.
# Default: none.
CMBERT_SRUN_OPTIONS=()

# What stands before Python on every rank, as a bash array; with apptainer the place for `apptainer exec --nv` and the
# image. Default: none.
CMBERT_PREFIX=()

# The network interface between nodes, if the libraries choose a wrong one. Default: they choose.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# What submit_all.sh adds to sbatch, as bash arrays: for the stages (their size, where nodes have not 8 GPUs), for the one
# GPU of evaluate.sh, and for jobs without GPUs. Default: nothing.
CMBERT_STAGE_OPTIONS=()    # --nodes=14 --ntasks-per-node=4 --gpus-per-node=4
CMBERT_EVALUATE_OPTIONS=() # --partition=gpu
CMBERT_CPU_OPTIONS=()      # --partition=cpu

# What submit_all.sh adds to `data_tools clean --against`, as a bash array: where the evaluation sets lie that no text that
# is trained on may hold. Default: nothing.
CMBERT_CLEAN_OPTIONS=() # --decontaminate clue simclue
