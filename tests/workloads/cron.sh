#!/usr/bin/env bash
# rsyslogd on /dev/log, and a job of cron's, which comes at the next full minute at the latest.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

printf 'module(load="imuxsock")\n*.* /var/log/all\n' >/data/rsyslog.conf
step 'rsyslogd' rsyslogd -f /data/rsyslog.conf
until_so test -S /dev/log
logged() { for n in {1..50}; do logger -t work "line $n"; done; }
step '50 times logger' logged
until_so grep -q 'work: line 50$' /var/log/all
same 'the lines' "$(grep -c 'work: line' /var/log/all)" 50
printf '* * * * * root echo ran >/data/ran\n' >/etc/cron.d/work
cron
for ((n = 0; n < 75; n++)); do [ -e /data/ran ] || sleep 1; done
same 'the job' "$(cat /data/ran)" ran
until_so grep -q 'CRON' /var/log/all
