#!/usr/bin/env bash
# Docker inside, with overlay2 on a volume: an image made by import, built upon, run, limited, and a volume.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

loopback
root() {
    mkdir -p /tmp/image/bin /tmp/image/lib64 /tmp/image/lib/x86_64-linux-gnu /tmp/image/etc
    cp /bin/sh /bin/cat /bin/hostname /bin/sleep /tmp/image/bin/
    cp /lib64/ld-linux-x86-64.so.2 /tmp/image/lib64/
    cp /lib/x86_64-linux-gnu/libc.so.6 /tmp/image/lib/x86_64-linux-gnu/
    tar -C /tmp/image -c . | docker import - small:1
}
# dockerd gives a containerd that it starts 15 seconds, which an emulated machine may need more of.
daemons() {
    containerd --root /data/containerd >/data/containerd.log 2>&1 &
    until_so ctr version
    dockerd --containerd /run/containerd/containerd.sock --storage-driver overlay2 --data-root /data/docker >/data/dockerd.log 2>&1 &
    until_so docker version
}
trap 'tail -n 20 /data/*.log >&2' EXIT
step 'start' daemons
same 'the driver' "$(docker info --format '{{.Driver}}')" overlay2
step 'docker import' root
step 'docker run' bash -c 'docker run --rm small:1 /bin/sh -c "echo inside" >/data/said'
same 'what it says' "$(cat /data/said)" inside
docker run -d --name box --hostname inner -m 64m -v /data/shared:/mnt small:1 /bin/sh -c 'echo kept >/mnt/file; echo changed >/etc/new; exec /bin/sleep 1000' >&2
until_so test -s /data/shared/file
step 'docker exec' docker exec box /bin/hostname
same 'its name' "$(docker exec box /bin/hostname)" inner
same 'its file' "$(cat /data/shared/file)" kept
same 'its limit' "$(docker inspect --format '{{.HostConfig.Memory}}' box)" 67108864
step 'docker commit' docker commit box small:2
docker rm -f box >&2
same 'the layer' "$(docker run --rm small:2 /bin/cat /etc/new)" changed
pkill dockerd
until_so test ! -e /var/run/docker.pid
