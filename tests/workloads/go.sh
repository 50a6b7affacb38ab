#!/usr/bin/env bash
# The compiler with an empty cache of its own, a test, and the runtime's view of the container's CPUs.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

export GOCACHE=/data/cache GOPATH=/data/path GOFLAGS=-mod=mod GOTOOLCHAIN=local CGO_ENABLED=0
mkdir -p /data/module
cd /data/module
printf 'module example.org/work\n\ngo 1.19\n' >go.mod
cat >main.go <<'END'
package main

import (
	"fmt"
	"runtime"
	"sync"
)

func sum(n int) int {
	total := 0
	for i := 0; i <= n; i++ {
		total += i
	}
	return total
}

func main() {
	var group sync.WaitGroup
	results := make(chan int, 100)
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func(n int) { defer group.Done(); results <- sum(n) }(i)
	}
	group.Wait()
	close(results)
	all := 0
	for r := range results {
		all += r
	}
	fmt.Println(all)
	fmt.Println(runtime.GOMAXPROCS(0), runtime.NumCPU())
}
END
step 'build, empty cache' go build -o work .
same 'the program' "$(./work | head -n 1)" 166650
# Go 1.19 knows no quota of CPU time: it counts the CPUs that it may run on.
same 'the CPUs' "$(./work | tail -n 1)" "$(nproc) $(nproc)"
sed -i 's/fmt.Println(all)/fmt.Println(all + 1)/' main.go
step 'build again' go build -o work .
same 'the program again' "$(./work | head -n 1)" 166651
same 'it is static' "$(ldd ./work 2>&1 | grep -c 'not a dynamic')" 1
