#!/usr/bin/env bash
# Requests through the loopback, an append-only file that survives SIGKILL, a snapshot.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

# It says LOADING while it reads its file.
answers() { redis-cli ping | grep -qx PONG; }
serve() {
    redis-server --dir /data --appendonly yes --appendfsync always --daemonize yes --pidfile /data/pid --save '' >/dev/null
    until_so answers
}
load() { redis-benchmark --csv -n 1000 -c 10 -r 100000 -t set,get; }
pipelined() { redis-benchmark --csv -n 20000 -c 10 -P 50 -t incr; }
loopback
step start serve
step '1,000 set, get' load
step '20,000 incr, pipelined' pipelined
for ((n = 0; n < 100; n++)); do echo "SET key:$n $n"; done | redis-cli >/dev/null
kill -9 "$(cat /data/pid)"
while redis-cli ping >/dev/null 2>&1; do sleep 0.1; done
step 'start after SIGKILL' serve
same 'a key' "$(redis-cli get key:99)" 99
same 'the counter' "$(redis-cli get counter:__rand_int__)" 20000
step snapshot redis-cli save
redis-check-rdb /data/dump.rdb >&2
redis-cli shutdown nosave || true
