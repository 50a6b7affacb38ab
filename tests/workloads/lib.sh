# shellcheck shell=bash
# What the cases of `make workloads` have in common: measured steps and checks. To be sourced. A case begins in /data.

# step NAME COMMAND…: runs a step and tells how long it took. Its output goes to the standard error.
step() {
    local name=$1 begin=$EPOCHREALTIME
    shift
    "$@" >&2
    local took=$((${EPOCHREALTIME/./} - ${begin/./}))
    printf 'step %s %d.%06d\n' "$name" $((took / 1000000)) $((took % 1000000))
}

# same WHAT GOT WANTED
same() {
    [ "$2" = "$3" ] || {
        printf '%s: %q is not %q\n' "$1" "$2" "$3" >&2
        exit 1
    }
}

# until_so COMMAND…: waits until a command succeeds, three minutes at most.
until_so() {
    local tries
    for ((tries = 0; tries < 1800; tries++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    printf 'not within three minutes: %s\n' "$*" >&2
    exit 1
}

# Without CNI nobody has set it up.
loopback() { ip link set lo up; }
