#!/bin/sh
# Prints the limit of memory of the cgroup that it is in, of version 2 or, where the host's runc gives that, 1.
set -eu
cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max" 2>/dev/null ||
    cat "/sys/fs/cgroup/memory$(sed -n 's/.*:memory://p' /proc/self/cgroup)/memory.limit_in_bytes"
