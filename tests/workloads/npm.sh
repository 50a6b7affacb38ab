#!/usr/bin/env bash
# npm ci without the network: a lock file, packages from tarballs, one with a script and a program, links, and a tree of a thousand files.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

# A big package, and one that needs it, has a program, and a script that is run when it is installed.
mkdir -p big/package/lib greet/package
printf '{ "name": "big", "version": "1.2.3", "main": "lib/0.js" }\n' >big/package/package.json
for ((n = 0; n < 1000; n++)); do echo "module.exports = $n" >"big/package/lib/$n.js"; done
cat >greet/package/package.json <<'END_OF_PACKAGE'
{ "name": "greet", "version": "2.0.0", "dependencies": { "big": "1.2.3" }, "bin": { "greet": "greet.js" },
  "scripts": { "install": "node -e 'fs.writeFileSync(\"built\", process.env.npm_package_version)'" } }
END_OF_PACKAGE
printf '#!/usr/bin/env node\nconsole.log("hello", require("big/lib/999"), require("fs").readFileSync(__dirname + "/built", "utf8"));\n' \
    >greet/package/greet.js
for name in big greet; do tar -C $name -czf $name.tgz package; done
integrity() { printf 'sha512-%s' "$(openssl dgst -sha512 -binary "$1" | base64 -w 0)"; }
cat >package.json <<'END_OF_PACKAGE'
{ "name": "app", "version": "1.0.0", "dependencies": { "big": "file:big.tgz", "greet": "file:greet.tgz" }, "scripts": { "start": "greet" } }
END_OF_PACKAGE
cat >package-lock.json <<END_OF_LOCK
{ "name": "app", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
  "": { "name": "app", "version": "1.0.0", "dependencies": { "big": "file:big.tgz", "greet": "file:greet.tgz" } },
  "node_modules/big": { "version": "1.2.3", "resolved": "file:big.tgz", "integrity": "$(integrity big.tgz)" },
  "node_modules/greet": { "version": "2.0.0", "resolved": "file:greet.tgz", "integrity": "$(integrity greet.tgz)",
    "hasInstallScript": true, "dependencies": { "big": "1.2.3" }, "bin": { "greet": "greet.js" } } } }
END_OF_LOCK
export npm_config_update_notifier=false npm_config_audit=false npm_config_fund=false
step 'npm ci' npm ci --offline
same 'the files' "$(find node_modules/big -type f | wc -l)" 1001
same 'the program' "$(readlink node_modules/.bin/greet)" ../greet/greet.js
step 'npm start' bash -c 'npm --silent start >said'
same 'what it says' "$(cat said)" 'hello 999 2.0.0'
# What does not fit the lock file is refused.
echo 'module.exports = 0' >big/package/lib/999.js
tar -C big -czf big.tgz package
rm -rf ~/.npm/_cacache
if npm ci --offline >refused 2>&1; then same 'a changed package' taken refused; fi
grep -q EINTEGRITY refused || same 'the error' "$(tail -n 5 refused)" EINTEGRITY
