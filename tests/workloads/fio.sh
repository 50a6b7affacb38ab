#!/usr/bin/env bash
# What is written is what is read: every block has its checksum. By write(2), by mappings, with O_DIRECT, from several jobs.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

run() {
    local name=$1
    shift
    step "$name" fio --output-format=terse --name="job" --directory=/data --filename_format="$1.\$jobnum" --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --group_reporting "${@:2}"
    rm -f "/data/$1".*
}
run 'random write, 4 KiB' random --ioengine=psync --rw=randwrite --bs=4k --size=4m --numjobs=2 --end_fsync=1
run 'sequential write, 1 MiB' sequential --ioengine=psync --rw=write --bs=1m --size=64m --end_fsync=1
run 'mapped' mapped --ioengine=mmap --rw=randwrite --bs=4k --size=8m
run 'direct' direct --ioengine=libaio --direct=1 --iodepth=8 --rw=randrw --bs=16k --size=8m
