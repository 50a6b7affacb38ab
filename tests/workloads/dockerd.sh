#!/usr/bin/env bash
# Docker inside, with overlay2 on a volume: `serve` becomes the daemon, `use`, by exec, imports an image, runs it, limits it, commits.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

root() {
    mkdir -p /tmp/image/bin /tmp/image/lib64 /tmp/image/lib/x86_64-linux-gnu /tmp/image/etc
    cp /bin/sh /bin/cat /bin/hostname /bin/sleep /tmp/image/bin/
    cp /lib64/ld-linux-x86-64.so.2 /tmp/image/lib64/
    cp /lib/x86_64-linux-gnu/libc.so.6 /tmp/image/lib/x86_64-linux-gnu/
    tar -C /tmp/image -c . | docker import - small:1
}
# As Docker's own image for Docker in Docker has it: a cgroup that passes controllers on (version 2) may have no processes.
# An exec that comes at the same moment is one process more to move.
delegate() {
    [ -e /sys/fs/cgroup/cgroup.controllers ] || return 0
    mkdir /sys/fs/cgroup/init
    local pid
    until sed 's/ / +/g; s/^/+/' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control; do
        while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
        sleep 0.1
    done
}
# dockerd gives a containerd that it starts 15 seconds, which an emulated machine may need more of.
serve() {
    exec >/data/serve.log 2>&1
    loopback
    delegate
    containerd --root /data/containerd >/data/containerd.log 2>&1 &
    until_so test -S /run/containerd/containerd.sock
    exec dockerd --containerd /run/containerd/containerd.sock --storage-driver overlay2 --data-root /data/docker >/data/dockerd.log 2>&1
}
if [ "$1" = serve ]; then serve; fi

daemon() { until_so test -S /run/docker.sock && docker version; }
step 'start' daemon
same 'the driver' "$(docker info --format '{{.Driver}}')" overlay2
step 'docker import' root
step 'docker run' bash -c 'docker run --rm small:1 /bin/sh -c "echo inside" >/data/said'
same 'what it says' "$(cat /data/said)" inside
docker run -d --name box --hostname inner -m 64m -v /data/shared:/mnt small:1 /bin/sh -c 'echo kept >/mnt/file; echo changed >/etc/new; exec /bin/sleep 1000' >&2
until_so test -s /data/shared/file
step 'docker exec' docker exec box /bin/hostname
same 'its name' "$(docker exec box /bin/hostname)" inner
same 'its file' "$(cat /data/shared/file)" kept
same 'its limit' "$(cat /sys/fs/cgroup{,/memory}/docker/"$(docker inspect --format '{{.Id}}' box)"/memory{.max,.limit_in_bytes} 2>/dev/null)" 67108864
step 'docker commit' docker commit box small:2
docker rm -f box >&2
same 'the layer' "$(docker run --rm small:2 /bin/cat /etc/new)" changed

# BuildKit, which has its own snapshotter on overlay2: two layers, a cache mount, a file of another stage.
mkdir -p /tmp/build
cat >/tmp/build/Dockerfile <<'FILE'
FROM small:1 AS made
RUN echo built > /made
FROM small:1
COPY --from=made /made /made
RUN --mount=type=cache,target=/cache cat /made > /cache/copy; cat /cache/copy > /etc/built
FILE
build() { DOCKER_BUILDKIT=1 docker build --progress plain -t "small:$1" /tmp/build; }
step 'docker build' build 3
same 'what it built' "$(docker run --rm small:3 /bin/cat /etc/built)" built
build 4 >/data/again 2>&1
same 'layers that it keeps' "$(grep -c ' CACHED$' /data/again)" 3

# containerd by itself, whose snapshotter makes overlays, too.
layers() { docker save small:1 | ctr -n inner images import -; }
step 'ctr images import' layers
step 'ctr run' bash -c 'ctr -n inner run --rm --snapshotter overlayfs docker.io/library/small:1 box /bin/cat /proc/mounts >/data/mounts'
same 'its root' "$(awk '$2 == "/" { print $3 }' /data/mounts)" overlay
