#!/usr/bin/env bash
# A server and its clients in one program, worker threads, files that are watched, and the heap by the container's limit.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

cat >work.js <<'END'
const http = require('http'), fs = require('fs'), crypto = require('crypto'), { Worker } = require('worker_threads');
async function main() {
    const server = http.createServer((request, response) => response.end(crypto.createHash('sha256').update(request.url).digest('hex')));
    // By default the server closes a connection that is idle for 5 s, which can be while a client is about to use it.
    server.keepAliveTimeout = 0;
    await new Promise(done => server.listen(0, '127.0.0.1', done));
    const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
    const get = path => new Promise((done, failed) => http.get({ host: '127.0.0.1', port: server.address().port, path, agent }, response => {
        let body = ''; response.on('data', part => body += part); response.on('end', () => done(body));
    }).on('error', failed));
    const all = await Promise.all(Array.from({ length: 200 }, (_, n) => get('/' + n)));
    server.close(); agent.destroy();
    const watched = new Promise(done => { const w = fs.watch('/data', (_, name) => { if (name === 'new') { w.close(); done(name); } }); });
    fs.writeFileSync('/data/new', 'x');
    const squares = await Promise.all([3, 4].map(n => new Promise(done =>
        new Worker('require("worker_threads").parentPort.postMessage(' + n + ' ** 2)', { eval: true }).on('message', done))));
    console.log(new Set(all).size, all[7] === crypto.createHash('sha256').update('/7').digest('hex'), await watched, squares.join(' '));
}
main();
END
step 'start, three times' bash -c 'for n in 1 2 3; do node -e 0; done'
step 'requests, workers, a watch' bash -c 'node work.js >said'
same 'what it says' "$(cat said)" '200 true new 9 16'
same 'the limit of memory' "$(node -p 'Math.min(require("os").totalmem(), process.constrainedMemory?.() ?? Infinity) <= 1024 * 2 ** 20 * 1.5')" true
