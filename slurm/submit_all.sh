#!/bin/bash
# Submit a whole training, every job after those it needs. From the repository's root:
#   slurm/submit_all.sh [RECIPES [TEXT [JOBS]]]      default: recipes/large text 32
#   RECIPES   folder of stage1.toml and stage2.toml; the tokenizer they name must be there
#   TEXT      folder of the cleaned text of each shard set, under the set's last name: text/cci3_hq for .../shards/cci3_hq
#   JOBS      size of the array that makes a shard set
# Run it again whenever you like: what is done is left out, what waits or runs is kept, what failed is submitted anew.
set -euo pipefail
if [[ ! -f slurm/chain.py ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/env.sh
recipes=${1:-recipes/large}
texts=${2:-text}
array_jobs=${3:-32}
if [[ ! $array_jobs =~ ^[1-9][0-9]*$ ]]; then
    echo "submit_all: JOBS: $array_jobs: must be a number from 1 on" >&2
    exit 2
fi
chain=$("$CMBERT_PYTHON" slurm/chain.py "$recipes" "$texts")

# The fields of a line of the chain.
fact() {
    awk -F'\t' -v name="$1" -v field="${2:-2}" '$1 == name {print $field}' <<<"$chain"
}

root=$(fact root)
tokenizer=$(fact tokenizer)
jobs="$root/jobs.tsv" # name and number of every job submitted; the last of a name counts
mkdir -p "$root"
touch "$jobs"

is_done() {
    printf '%-28s %-10s %-10s\n' "$1" - "done"
}

number_of() {
    awk -F'\t' -v name="$1" '$1 == name {number = $2} END {print number}' "$jobs"
}

# The state of the job last submitted under a name, if it is still in the queue and can still run.
state_of() {
    local number
    number=$(number_of "$1")
    [[ -z $number ]] || squeue --noheader --jobs="$number" --format="%T %r" 2>/dev/null |
        awk '$2 != "DependencyNeverSatisfied" {print $1; exit}' || true
}

# submit NAME NEXT "JOBS IT NEEDS" OPTIONS AND SCRIPT: its number is then in $job, also if it was in the queue already.
# If it has left the queue and NEXT, a job that it must precede, has not, it is done: Slurm would have cancelled NEXT.
submit() {
    local name=$1 next=$2 needs=$3 state
    local -a dependency=()
    shift 3
    job=$(number_of "$name")
    state=$(state_of "$name")
    if [[ -n $job && -z $state && -n $(state_of "$next") ]]; then
        job=
        is_done "$name"
        return
    fi
    needs=${needs:+afterok:${needs// /:}}
    if [[ $state == PENDING && -n $needs ]]; then
        scontrol update "jobid=$job" "Dependency=$needs" # what it waited for may have been submitted anew
    elif [[ -z $state ]]; then
        [[ -z $needs ]] || dependency=("--dependency=$needs" --kill-on-invalid-dep=yes)
        job=$(sbatch --parsable --job-name="cmbert-$name" ${dependency[@]+"${dependency[@]}"} "$@")
        job=${job%%;*} # ;CLUSTER may follow
        printf '%s\t%s\n' "$name" "$job" >>"$jobs"
        state=submitted
    fi
    printf '%-28s %-10s %-10s %s\n' "$name" "$job" "$state" "$needs"
}

# The last value of an option among the header of stage1.sh and the site's own.
size_of() {
    { sed -n 's/^#SBATCH //p' slurm/stage1.sh; printf '%s\n' "${CMBERT_STAGE_OPTIONS[@]}"; } |
        sed -n "s/^--$1=//p" | tail -n 1
}

cpu() {
    submit "$1" "$2" "$3" "${CMBERT_CPU_OPTIONS[@]}" "${@:4}"
}

stage1=$(fact stage1 4)
before=()
while IFS=$'\t' read -r _ name folder text state; do
    make=(slurm/preprocess.sh --input "$text" --tokenizer "$tokenizer" --output "$folder")
    job=
    if [[ $state == missing ]]; then
        cpu "preprocess-$name" stage1 "" "--array=0-$((array_jobs - 1))" "${make[@]}"
        cpu "merge-$name" stage1 "$job" "${make[@]}"
        before+=(${job:+"$job"})
    else
        is_done "preprocess-$name"
        is_done "merge-$name"
    fi
    if [[ $stage1 == new ]]; then
        cpu "verify-$name" stage1 "$job" slurm/run.sh data_tools verify "$folder" --tokenizer "$tokenizer"
        before+=(${job:+"$job"})
    fi
done < <(grep $'^shards\t' <<<"$chain")
if [[ $stage1 == new ]]; then
    needs="${before[*]}"
    before=()
    for number in 1 2; do
        cpu "plan-stage$number" stage1 "$needs" slurm/run.sh cmbert plan "$(fact "stage$number")" \
            --gpus "$(($(size_of nodes) * $(size_of ntasks-per-node)))"
        before+=(${job:+"$job"})
    done
fi
for number in 1 2; do
    if [[ $(fact "stage$number" 4) == finished ]]; then
        is_done "stage$number"
        before=()
    else
        submit "stage$number" "" "${before[*]}" "${CMBERT_STAGE_OPTIONS[@]}" "slurm/stage$number.sh" \
            "$(fact "stage$number")"
        before=("$job")
    fi
done
if [[ -d $root/export ]]; then
    is_done export
else
    cpu export "" "${before[*]}" slurm/run.sh cmbert export "$(fact stage2 3)" --output "$root/export"
    before=("$job")
fi
heldout=$(fact heldout)
if [[ -f $root/eval.json ]]; then
    is_done evaluate
elif [[ -n $heldout ]]; then
    submit evaluate "" "${before[*]}" "${CMBERT_EVALUATE_OPTIONS[@]}" slurm/evaluate.sh eval "$(fact stage2 3)" \
        --data "$heldout" --by-position --output "$root/eval.json"
else
    echo "evaluate: left out, the recipe of stage 2 has no evaluation.shards"
fi
