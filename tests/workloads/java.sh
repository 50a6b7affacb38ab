#!/usr/bin/env bash
# A compiler and a program; the heap and the CPUs are those of the container's limits, 512 MiB and one.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

cat >Work.java <<'END'
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

public class Work {
    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Integer>> parts = new ArrayList<>();
        for (int n = 0; n < 64; n++) {
            int from = n * 1000;
            parts.add(pool.submit(() -> IntStream.range(from, from + 1000).map(x -> x % 7).sum()));
        }
        int sum = 0;
        for (Future<Integer> part : parts) sum += part.get();
        pool.shutdown();
        Path file = Path.of("lines");
        Files.write(file, IntStream.range(0, 20000).mapToObj(Integer::toString).collect(Collectors.toList()));
        Map<Integer, Long> lengths = Files.lines(file).collect(Collectors.groupingBy(String::length, Collectors.counting()));
        byte[][] kept = new byte[64][];
        for (int n = 0; n < 320; n++) kept[n % 64] = new byte[1 << 20];
        System.out.println(sum + " " + lengths + " " + kept[63].length + " " + Runtime.getRuntime().availableProcessors());
    }
}
END
step javac javac Work.java
step 'threads, files, 320 MB of garbage' bash -c 'java Work >said'
same 'what it says' "$(cat said)" '191997 {1=10, 2=90, 3=900, 4=9000, 5=10000} 1048576 1'
# A quarter of the limit, by the JVM's default, and half of it as asked for.
flag() { java "$@" -XX:+PrintFlagsFinal -version 2>/dev/null | awk '$2 == "MaxHeapSize" { print $4 }'; }
same 'the heap' "$(flag -Xint)" $((128 << 20))
same 'half of the limit' "$(flag -XX:MaxRAMPercentage=50)" $((256 << 20))
settings=$(java -XshowSettings:system -version 2>&1)
same 'the limit' "$(echo "$settings" | sed -n 's/^ *Memory Limit: //p')" 512.00M
