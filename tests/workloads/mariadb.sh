#!/usr/bin/env bash
# MariaDB: a table, an index, SIGKILL to the server after a commit, recovery.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

answers() { mysqladmin --socket=/data/socket ping; }
serve() {
    mariadbd --user=mysql --datadir=/data/base --socket=/data/socket --pid-file=/data/base/pid --skip-networking >&2 &
    until_so answers
}
query() { mysql --socket=/data/socket --batch --skip-column-names -e "$1"; }
rows='CREATE DATABASE d; USE d; CREATE TABLE t(n INT PRIMARY KEY, s VARCHAR(100)); INSERT INTO t SELECT seq, hex(seq) FROM seq_1_to_20000;'
chmod 0777 /data
step 'a new base' mariadb-install-db --user=mysql --datadir=/data/base
step start serve
step '20,000 rows' query "$rows"
step 'an index' query 'ALTER TABLE d.t ADD INDEX(s)'
kill -9 "$(cat /data/base/pid)"
wait || true
step 'start after SIGKILL' serve
same 'the rows' "$(query 'SELECT count(*), sum(n) FROM d.t')" $'20000\t200010000'
same 'the check' "$(query 'CHECK TABLE d.t')" $'d.t\tcheck\tstatus\tOK'
mysqladmin --socket=/data/socket shutdown
