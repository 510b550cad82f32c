#!/bin/bash
# Submit a whole training, every job after those it needs. From the repository's root:
#   slurm/submit_all.sh [RECIPES [TEXT [JOBS [RAW]]]]      default: recipes/large text 32 raw
#   RECIPES   folder of stage1.toml and stage2.toml; a tokenizer that they name and that is missing is trained
#   TEXT      folder of the cleaned text of each shard set, under the set's last name: text/cci3_hq for .../shards/cci3_hq
#   JOBS      size of the arrays that clean a text or make a shard set
#   RAW       folder of the raw text of each set whose cleaned text is missing: it is cleaned first, by
#             RECIPES/clean/NAME.toml or the same in the folder above RECIPES
# Run it again whenever you like: what is done is left out, what waits or runs is kept, what failed is submitted anew.
# What Slurm would not take, or let wait for ever, is refused before anything is submitted.
set -euo pipefail
if [[ ! -f slurm/chain.py ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/env.sh
source slurm/limits.sh
source slurm/queue.sh
recipes=${1:-recipes/large}
texts=${2:-text}
array_jobs=${3:-32}
raws=${4:-raw}
if [[ ! $array_jobs =~ ^[1-9][0-9]*$ ]]; then
    echo "submit_all: JOBS: $array_jobs: must be a number from 1 on" >&2
    exit 2
fi
chain=$("$CMBERT_PYTHON" slurm/chain.py "$recipes" "$texts" "$raws")

# The fields of a line of the chain.
fact() {
    awk -F'\t' -v name="$1" -v field="${2:-2}" '$1 == name {print $field}' <<<"$chain"
}

root=$(fact root)
tokenizer=$(fact tokenizer)
jobs="$root/jobs.tsv" # name and number of every job submitted; the last of a name counts

declare -A makes # text, or the folder of held-out ones -> the jobs that make it

# Hold texts out of every corpus that is to be cleaned, then clean each: an array for each pass, of which each does what
# the first incomplete pass lacks, and a job that publishes. Of what is held out, a thousandth, that job does all passes
# but the first.
clean_texts() {
    local _ name raw config text passes job pass against
    local -a make
    against=$(fact against)
    while IFS=$'\t' read -r _ name raw config text; do
        make=(slurm/clean.sh --input "$raw" --config "$config" --heldout "$text")
        array "holdout1-$name" "" ${make[@]+"${make[@]}"}
        cpu "holdout-$name" stage1 "$job" ${make[@]+"${make[@]}"}
        makes[$against]+=${job:+ $job}
    done < <(grep $'^holdout\t' <<<"$chain")
    makes[$against]=${makes[$against]:+${makes[$against]# }}
    while IFS=$'\t' read -r _ name raw config text passes; do
        make=(slurm/clean.sh --input "$raw" --config "$config" --output "$text" --against "$against"
            ${CMBERT_CLEAN_OPTIONS[@]+"${CMBERT_CLEAN_OPTIONS[@]}"})
        [[ " ${CMBERT_CLEAN_OPTIONS[*]:-} " != *" --decontaminate "* ]] || ((passes += 2))
        job=${makes[$against]}
        for ((pass = 1; pass <= passes; pass++)); do
            array "clean$pass-$name" "$job" ${make[@]+"${make[@]}"}
        done
        cpu "clean-$name" stage1 "$job" ${make[@]+"${make[@]}"}
        makes[$text]=$job
    done < <(grep $'^clean\t' <<<"$chain")
}

# Train the tokenizer, if it is missing; its job is then in $trains.
make_tokenizer() {
    local text job=
    text=$(fact tokenizer 4)
    if [[ -n $text ]]; then
        cpu tokenizer stage1 "${makes[$text]:-}" slurm/run.sh data_tools train-tokenizer --input "$text" \
            --output "$tokenizer" --vocab-size "$(fact tokenizer 5)"
    fi
    trains=$job
}

# Every job of the chain, in order.
all_jobs() {
    local stage1 name folder text state number heldout needs job trains
    local -a before=() make
    stage1=$(fact stage1 4)
    makes=()
    clean_texts
    make_tokenizer
    while IFS=$'\t' read -r _ name folder text state; do
        make=(slurm/preprocess.sh --input "$text" --tokenizer "$tokenizer" --output "$folder")
        job=
        if [[ $state == missing ]]; then
            needs="${makes[$text]:-}${trains:+ $trains}"
            array "preprocess-$name" "${needs# }" ${make[@]+"${make[@]}"}
            cpu "merge-$name" stage1 "$job" ${make[@]+"${make[@]}"}
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
        needs="${before[*]:-}"
        before=()
        for number in 1 2; do
            cpu "plan-stage$number" stage1 "$needs" slurm/run.sh cmbert plan "$(fact "stage$number")" \
                --gpus "$(($(stage_option nodes) * $(stage_option ntasks-per-node)))"
            before+=(${job:+"$job"})
        done
    fi
    for number in 1 2; do
        if [[ $(fact "stage$number" 4) == finished ]]; then
            is_done "stage$number"
            before=()
        else
            submit "stage$number" "" "${before[*]:-}" ${CMBERT_STAGE_OPTIONS[@]+"${CMBERT_STAGE_OPTIONS[@]}"} "slurm/stage$number.sh" \
                "$(fact "stage$number")"
            before=("$job")
        fi
    done
    if [[ -d $root/export ]]; then
        is_done export
    else
        cpu export "" "${before[*]:-}" slurm/run.sh cmbert export "$(fact stage2 3)" --output "$root/export"
        before=("$job")
    fi
    heldout=$(fact heldout)
    if [[ -f $root/eval.json ]]; then
        is_done evaluate
    elif [[ -n $heldout ]]; then
        submit evaluate "" "${before[*]:-}" ${CMBERT_EVALUATE_OPTIONS[@]+"${CMBERT_EVALUATE_OPTIONS[@]}"} slurm/evaluate.sh eval "$(fact stage2 3)" \
            --data "$heldout" --by-position --output "$root/eval.json"
    elif [[ $mode == submit ]]; then
        echo "evaluate: left out, the recipe of stage 2 has no evaluation.shards"
    fi
}

# A number that the stages ask for; of "2-4" nodes, which Slurm takes for the least and the most, the least.
stage_option() {
    local value
    value=$(option_of "$1" slurm/stage1.sh ${CMBERT_STAGE_OPTIONS[@]+"${CMBERT_STAGE_OPTIONS[@]}"})
    echo "${value%%-*}"
}

checked=
mode=check
all_jobs
mode=submit
mkdir -p "$root" slurm/logs
touch "$jobs"
all_jobs
