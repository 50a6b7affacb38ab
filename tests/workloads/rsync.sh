#!/usr/bin/env bash
# A tree with links, times, modes, owners and attributes: copied, changed, copied again; then by tar.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

mkdir from
cp -a /usr/share/perl/*.0/{File,Module,Pod,TAP,Test} from/
head -c 2000000 /dev/urandom >from/large
ln from/large from/second
ln -s large from/link
mkfifo from/fifo
chown 1234:4321 from/large
chmod 4750 from/large
touch -d '2001-02-03 04:05:06.789' from/large
truncate -s 64M from/sparse
# rsync leaves the times of links and FIFOs as they come.
listing() {
    (cd "$1" && find . -type f -printf '%p %s %m %U:%G %T@ %n\n' -o ! -type d -printf '%p %s %m %U:%G %n %l\n' | sort)
}
alike() {
    listing "$1" >one
    listing "$2" >two
    diff one two >&2
}
step 'first copy' rsync -aHSX from/ to/
alike from to
same 'it is sparse' "$([ "$(stat -c %b to/sparse)" -lt 1000 ] && echo yes)" yes
echo more >>from/link
rm -r from/TAP
step 'second copy' rsync -aHSX --delete --checksum from/ to/
alike from to
same 'the content' "$(sha256sum <to/large)" "$(sha256sum <from/large)"
archive() { tar -C from --sparse --xattrs -cf - . | tar -C third --xattrs -xf -; }
mkdir third
step 'tar to tar' archive
alike from third
