#!/usr/bin/env bash
# stress-ng's stressors of files and of the network, one second each: what they do is what a kernel promises.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

# binderfs can be mounted by nobody who is not privileged on the machine.
class() {
    stress-ng --class "$1" --exclude binderfs --sequential 1 --timeout 1 --verify --temp-path /data
}
loopback
for name in filesystem network; do step "$name" class "$name"; done
