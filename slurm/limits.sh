# shellcheck shell=bash
# What jobs and submit_all.sh share: what env.sh may leave out, times as Slurm writes them, what a script asks for.
CMBERT_PYTHON=${CMBERT_PYTHON:-.venv/bin/python}

# Seconds of "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours[:minutes[:seconds]]"; without a limit a
# hundred years.
seconds_of() {
    local text=$1 days=0 a=0 b="" c=""
    if [[ ! $text =~ ^[0-9:-]+$ ]]; then
        echo 3153600000
        return
    fi
    IFS=: read -r a b c <<<"${text#*-}"
    if [[ $text == *-* ]]; then
        days=${text%%-*}
    elif [[ -z $c ]]; then
        c=${b:-0} b=$a a=0
    fi
    echo $(((10#$days * 24 + 10#$a) * 3600 + 10#${b:-0} * 60 + 10#${c:-0}))
}

# The value of an option that counts, as sbatch reads them: the last one given to it, in any spelling, else its own
# variable, else the script's header.
#   option_of NAME SCRIPT [OPTIONS]
option_of() {
    local name=$1 script=$2 short="" value="" word is_next=""
    shift 2
    value=$(sed -n "s/^#SBATCH --$name=//p" "$script" | tail -n 1)
    case $name in
        time) short=-t value=${SBATCH_TIMELIMIT:-$value} ;;
        partition) short=-p value=${SBATCH_PARTITION:-$value} ;;
        nodes) short=-N ;;
    esac
    for word in "$@"; do
        if [[ -n $is_next ]]; then
            value=$word is_next=""
        elif [[ $word == "--$name" || $word == "${short:---$name}" ]]; then
            is_next=yes
        elif [[ $word == "--$name="* ]]; then
            value=${word#*=}
        elif [[ -n $short && $word == "$short"* ]]; then
            value=${word#"$short"}
        fi
    done
    echo "$value"
}
