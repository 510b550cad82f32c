# shellcheck shell=bash
# What jobs and submit_all.sh know of limits: times as Slurm writes them, and what a script asks for.

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

# The last value of an option in the header of a script and among options given to sbatch.
#   option_of NAME SCRIPT [OPTIONS]
option_of() {
    local name=$1 script=$2
    shift 2
    { sed -n 's/^#SBATCH //p' "$script"; printf '%s\n' "$@"; } | sed -n "s/^--$name=//p" | tail -n 1
}
