#!/usr/bin/env bash
# A database in WAL mode: one writer that commits, another that reads meanwhile; then a check of the file.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

commits() {
    {
        echo 'PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, s TEXT);'
        for ((n = 1; n <= 200; n++)); do
            echo "INSERT INTO t VALUES ($n, hex(randomblob(100)));"
        done
    } | sqlite3 base.db
}
bulk() {
    sqlite3 base.db 'WITH RECURSIVE c(n) AS (VALUES (1000) UNION ALL SELECT n + 1 FROM c WHERE n < 20999)
        INSERT INTO t SELECT n, hex(n) FROM c; CREATE INDEX i ON t(s);'
}
step '200 commits' commits
step '20,000 rows and an index' bulk
same 'the rows' "$(sqlite3 base.db 'SELECT count(*), sum(n) FROM t')" '20200|220010100'
same 'the check' "$(sqlite3 base.db 'PRAGMA integrity_check')" ok
