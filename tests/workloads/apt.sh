#!/usr/bin/env bash
# A package of its own and two of Debian's, installed, verified and removed; dpkg calls fsync(2) for each file.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

mkdir -p /data/own/DEBIAN /data/own/usr/share/own
for ((n = 0; n < 100; n++)); do echo "$n" >"/data/own/usr/share/own/$n"; done
printf 'Package: own\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDepends: hello\nDescription: own\n' >/data/own/DEBIAN/control
printf '#!/bin/sh\nadduser --system --quiet owner\nchown owner /usr/share/own/0\n' >/data/own/DEBIAN/postinst
chmod 755 /data/own/DEBIAN/postinst
export DEBIAN_FRONTEND=noninteractive
step 'dpkg-deb --build' dpkg-deb --build /data/own /tmp/own.deb
step 'apt-get install' apt-get install -y -q --no-install-recommends /tmp/own.deb /opt/debs/*.deb
same 'tree' "$(tree -i --noreport /usr/share/own | wc -l)" 101
same 'hello' "$(hello)" 'Hello, world!'
same 'the owner' "$(stat -c %U /usr/share/own/0)" owner
same 'the files' "$(dpkg --verify own)" ''
step 'apt-get purge' apt-get purge -y -q own hello
same 'none is left' "$(ls /usr/share/own 2>/dev/null || true)" ''
