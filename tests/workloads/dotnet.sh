#!/usr/bin/env bash
# .NET's runtime: threads, files, garbage; the heap and the CPUs are those of the container's limits, 512 MiB and one.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

# It looks for ICU's data, which a server seldom needs.
export DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 DOTNET_CLI_TELEMETRY_OPTOUT=1
cat >Work.cs <<'END_OF_PROGRAM'
using System;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

public static class Work {
    // By name: the compiler's own class library is an older one.
    static long Heap() {
        object info = typeof(GC).GetMethod("GetGCMemoryInfo", Type.EmptyTypes).Invoke(null, null);
        return (long)info.GetType().GetProperty("TotalAvailableMemoryBytes").GetValue(info);
    }

    public static void Main(string[] what) {
        if (what.Length > 0) {
            Console.WriteLine(Heap() + " " + Environment.ProcessorCount);
            return;
        }
        long sum = 0;
        Task.WaitAll(Enumerable.Range(0, 64).Select(n => Task.Run(() => {
            Interlocked.Add(ref sum, Enumerable.Range(n * 1000, 1000).Select(x => x % 7).Sum());
        })).ToArray());
        byte[][] kept = new byte[64][];
        for (int n = 0; n < 320; n++) kept[n % 64] = new byte[1 << 20];
        File.WriteAllLines("lines", Enumerable.Range(0, 20000).Select(n => n.ToString()));
        var lengths = File.ReadLines("lines").GroupBy(line => line.Length).Select(group => group.Key + "=" + group.Count());
        Console.WriteLine(sum + " " + string.Join(" ", lengths) + " " + kept[63].Length);
    }
}
END_OF_PROGRAM
step mcs mcs -out:work.dll Work.cs
run() { /opt/dotnet/dotnet exec --runtimeconfig /opt/dotnet/runtimeconfig.json work.dll "$@"; }
with_output() { run >said; }
step 'threads, files, 320 MB of garbage' with_output
same 'what it says' "$(cat said)" '191997 1=10 2=90 3=900 4=9000 5=10000 1048576'
# Three quarters of the limit, by the collector's default; a hard limit of the collector's own; one CPU.
same 'the heap, and the CPUs' "$(run limits)" "$((384 << 20)) 1"
same 'half of the limit' "$(DOTNET_GCHeapHardLimitPercent=0x32 run limits)" "$((256 << 20)) 1"
