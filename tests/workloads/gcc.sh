#!/usr/bin/env bash
# A project of 8 units, by make; again with nothing to do, and after a change of its header.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

mkdir -p /data/project
cd /data/project
for ((n = 0; n < 8; n++)); do
    printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include "all.h"\nint f%d(int x) { return x + %d + BASE; }\n' $n $n >"u$n.c"
done
{
    echo '#define BASE 0'
    for ((n = 0; n < 8; n++)); do echo "int f$n(int);"; done
} >all.h
{
    echo '#include <stdio.h>'
    echo '#include "all.h"'
    echo 'int main(void) { int sum = 0;'
    for ((n = 0; n < 8; n++)); do echo "sum += f$n(1);"; done
    printf '%s\n' 'printf("%d\n", sum); return 0; }'
} >main.c
cat >Makefile <<'END'
objects := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(objects)
	gcc -o $@ $^
%.o: %.c all.h
	gcc -O2 -c $<
END
step 'make' make -s
same 'the program' "$(./program)" 36
step 'nothing to do' make -s
sed -i 's/BASE 0/BASE 5/' all.h
step 'make -j4 after a change' make -s -j4
same 'the program again' "$(./program)" 76
same 'up to date' "$(make -q && echo yes)" yes
