#!/usr/bin/env bash
# initdb, a load, a crash by SIGKILL in the middle of commits: what was acknowledged is there afterwards.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

bin=$(echo /usr/lib/postgresql/*/bin)
as() {
    local program=$1
    shift
    setpriv --reuid postgres --regid postgres --clear-groups "$bin/$program" "$@"
}
export PGHOST=/data PGDATABASE=postgres PGUSER=postgres
start() { as pg_ctl -D /data/base -w -t 120 -l /data/log -o "-k /data -c shared_buffers=64MB" start; }
chown postgres /data
loopback
# Small, so that it comes to its end in an emulated guest: pgbench's own tables begin with 100,000 rows.
step initdb as initdb -N -D /data/base -A trust --locale C
step start start
tables='CREATE TABLE accounts(n integer PRIMARY KEY, balance integer NOT NULL); CREATE TABLE history(n integer, delta integer);
    INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 1000) n'
cat >/data/work.sql <<'END'
\set n random(1, 1000)
\set delta random(-5000, 5000)
BEGIN;
UPDATE accounts SET balance = balance + :delta WHERE n = :n;
INSERT INTO history VALUES (:n, :delta);
COMMIT;
END
step '1,000 rows' as psql -qc "$tables"
step 'pgbench, 100 transactions' as pgbench -n -f /data/work.sql -c 4 -t 25
same 'the sum' "$(as psql -Atc 'SELECT count(*) FROM history')" 100
same 'balances' "$(as psql -Atc 'SELECT (SELECT sum(balance) FROM accounts) = (SELECT sum(delta) FROM history)')" t

# A client that says which of its rows are committed, and everything killed under it.
as psql -c 'CREATE TABLE kept(n integer)' >&2
(for ((n = 1; n <= 100000; n++)); do
    echo "INSERT INTO kept VALUES ($n);"
    printf '\\echo %s\n' "$n"
done | as psql -qAt >/data/acknowledged 2>/dev/null) &
until_so grep -q '^30$' /data/acknowledged
head -n 1 /data/base/postmaster.pid >/data/postmaster
pkill -9 -u postgres postgres || true
wait || true
until_so test ! -d "/proc/$(cat /data/postmaster)"
step 'start after SIGKILL' start
last=$(tail -n 1 /data/acknowledged)
kept=$(as psql -Atc "SELECT count(*) FROM kept WHERE n <= $last")
same 'the acknowledged rows' "$kept" "$last"
step stop as pg_ctl -D /data/base -w -m fast stop
