# shellcheck shell=bash
# What the scripts have in common: where the cache is, how a step is announced, how a failure is reported.
# To be sourced; leaves nothing behind.

umask 022
export LC_ALL=C

# The top of the checkout.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Results of long steps, by the hash of their inputs; shared by all checkouts of this user.
cache=${TATAMI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tatami}
# Parallel jobs of the long steps.
jobs=${TATAMI_JOBS:-$(nproc)}
export top cache jobs

say() { printf 'tatami: %s\n' "$*" >&2; }

# die MESSAGE [REMEDY]: one line of what is wrong, one of what to do.
die() {
    printf 'tatami: error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'tatami: remedy: %s\n' "$2" >&2
    exit 1
}

# logged LOG COMMAND…: runs a long step with its output in LOG; on failure shows the tail and names the file, after what
# $remedy says if the caller has set it. Not to be called as a condition: the shell would then carry on after a failing
# command inside COMMAND.
logged() {
    local log=$1 begin=$SECONDS status
    shift
    mkdir -p "$(dirname "$log")"
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        die "$(basename "$1") failed after $((SECONDS - begin)) s" "${remedy:+$remedy; }the whole output is in $log"
    fi
    say "  done in $((SECONDS - begin)) s"
}

# hash_of FILE…: one sum over the contents and names of files, the names relative to the checkout.
hash_of() {
    local file
    for file in "$@"; do
        printf '%s %s\n' "${file#"$top"/}" "$(sha256sum <"$file")"
    done | sha256sum | cut -c1-24
}
