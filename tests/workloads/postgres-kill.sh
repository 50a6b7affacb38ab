#!/usr/bin/env bash
# The two halves of a crash: `commit` commits for ever and tells what is acknowledged, `count N` counts what is there of it.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

bin=$(echo /usr/lib/postgresql/*/bin)
as() {
    local program=$1
    shift
    setpriv --reuid postgres --regid postgres --clear-groups "$bin/$program" "$@"
}
export PGHOST=/tmp PGDATABASE=postgres PGUSER=postgres
start() { as pg_ctl -D /data/base -w -t 120 -l /data/log -o "-k /tmp -c shared_buffers=64MB" start >&2; }
loopback
case $1 in
commit)
    chown postgres /data
    as initdb -N -D /data/base -A trust --locale C >&2
    start
    as psql -qc 'CREATE TABLE kept(n integer)'
    for ((n = 1; n <= 1000000; n++)); do
        echo "INSERT INTO kept VALUES ($n);"
        printf '\\echo %s\n' "$n"
    done | as psql -qAt >/data/acknowledged
    ;;
count)
    rm -f /data/base/postmaster.pid
    start
    as psql -Atc "SELECT count(*) FROM kept WHERE n <= $2"
    as pg_ctl -D /data/base -w -m fast stop >&2
    ;;
esac
