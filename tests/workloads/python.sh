#!/usr/bin/env bash
# A virtual environment, a wheel without the network, and a program with processes, threads and a shared memory.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

mkdir -p wheel/greeting wheel/greeting-1.0.dist-info
echo 'def hello(): return "hello"' >wheel/greeting/__init__.py
printf 'Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n' >wheel/greeting-1.0.dist-info/METADATA
printf 'Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >wheel/greeting-1.0.dist-info/WHEEL
printf '%s\n' greeting/__init__.py,, greeting-1.0.dist-info/METADATA,, greeting-1.0.dist-info/WHEEL,, \
    greeting-1.0.dist-info/RECORD,, >wheel/greeting-1.0.dist-info/RECORD
(cd wheel && python3 -m zipfile -c ../greeting-1.0-py3-none-any.whl greeting greeting-1.0.dist-info)
cat >work.py <<'END'
import concurrent.futures, hashlib, json, multiprocessing, multiprocessing.shared_memory, sqlite3, threading, greeting

def digest(n):
    return hashlib.sha256(str(n).encode()).hexdigest()

if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        many = list(pool.map(digest, range(200)))
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20)
    memory.buf[5] = 7
    lock, total = threading.Lock(), [0]
    def add():
        for _ in range(1000):
            with lock:
                total[0] += 1
    threads = [threading.Thread(target=add) for _ in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(json.dumps([greeting.hello(), many[3][:8], memory.buf[5], total[0]]))
    memory.close(); memory.unlink()
END
# Without a pip of its own, whose unpacking takes longer than all else: Debian's installs into the environment.
step venv python3 -m venv --without-pip env
step 'pip install' python3 -m pip --python env/bin/python install -q --no-index ./greeting-1.0-py3-none-any.whl
step 'processes, threads' bash -c 'env/bin/python work.py >said'
same 'what it says' "$(cat said)" "[\"hello\", \"4e074085\", 7, 8000]"
step 'start, five times' bash -c 'for n in 1 2 3 4 5; do env/bin/python -c pass; done'
same 'the package' "$(env/bin/python -c 'import importlib.metadata; print(importlib.metadata.version("greeting"))')" 1.0
