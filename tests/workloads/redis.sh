#!/usr/bin/env bash
# Requests through the loopback, an append-only file that survives SIGKILL, a snapshot.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

serve() {
    redis-server --dir /data --appendonly yes --appendfsync always --daemonize yes --pidfile /data/pid --save '' >/dev/null
    until_so redis-cli ping
}
load() { redis-benchmark -q -n 5000 -c 10 -r 100000 -t set,get; }
pipelined() { redis-benchmark -q -n 50000 -c 10 -P 50 -t incr; }
loopback
step start serve
step '10,000 set, get' load
step '50,000 incr, pipelined' pipelined
for ((n = 0; n < 100; n++)); do echo "SET key:$n $n"; done | redis-cli >/dev/null
kill -9 "$(cat /data/pid)"
while redis-cli ping >/dev/null 2>&1; do sleep 0.1; done
step 'start after SIGKILL' serve
same 'a key' "$(redis-cli get key:99)" 99
same 'the counter' "$(redis-cli get counter:__rand_int__)" 50000
step snapshot redis-cli save
redis-check-rdb /data/dump.rdb >&2
redis-cli shutdown nosave || true
