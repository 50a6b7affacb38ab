#!/usr/bin/env bash
# Small files over one connection, a large one by sendfile(2), a log.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

mkdir -p /data/www
for ((n = 0; n < 200; n++)); do echo "page $n" >"/data/www/$n"; done
head -c 30000000 /dev/urandom >/data/www/large
sum=$(sha256sum </data/www/large)
cat >/data/nginx.conf <<'END'
user www-data;
pid /data/nginx.pid;
error_log /data/error.log;
events {}
http {
    sendfile on;
    access_log /data/access.log;
    server { listen 80; root /data/www; }
}
END
small() { curl -sS --fail 'http://127.0.0.1/[0-199]' >/data/got; }
connections() { for ((n = 0; n < 10; n++)); do curl -sS --fail http://127.0.0.1/7; done; }
large() { curl -sS --fail -o /data/large http://127.0.0.1/large; }
loopback
step start nginx -c /data/nginx.conf
step '200 requests, one connection' small
step '10 times curl' connections
step '30 MB' large
same 'the pages' "$(sort -k2n /data/got | sha256sum)" "$(for ((n = 0; n < 200; n++)); do echo "page $n"; done | sha256sum)"
same 'the large file' "$(sha256sum </data/large)" "$sum"
same 'a part of it' "$(curl -sS -r 5000000-5999999 http://127.0.0.1/large | wc -c)" 1000000
nginx -c /data/nginx.conf -s quit
until_so test ! -e /data/nginx.pid
same 'the log' "$(wc -l </data/access.log)" 212
