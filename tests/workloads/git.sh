#!/usr/bin/env bash
# A repository of 500 files and 20 commits: status, clone, branches, gc, fsck.
set -euo pipefail
# shellcheck source=tests/workloads/lib.sh
. /workloads/lib.sh

export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
make_files() {
    git init -q -b main tree
    local n
    for ((n = 0; n < 500; n++)); do
        [ $((n % 25)) -ne 0 ] || mkdir "tree/d$((n / 25))"
        printf '%s\n' "$n" $((n * n)) >"tree/d$((n / 25))/f$n"
    done
}
commits() {
    git add .
    git commit -qm first
    local n
    for ((n = 0; n < 19; n++)); do
        echo changed >>"d$((n % 20))/f$((n % 20 * 25))"
        git commit -qam "change $n"
    done
}
branches() {
    git switch -qc other HEAD~10
    echo other >other
    git add other
    git commit -qm other
    git rebase -q main
    git switch -q main
    git merge -q --no-ff -m merged other
}
step '500 files' make_files
cd tree
step '20 commits' commits
step 'status, five times' bash -c 'for n in 1 2 3 4 5; do git status --porcelain; done'
same 'a clean tree' "$(git status --porcelain)" ''
step 'branch, rebase, merge' branches
step 'clone' git clone -q --no-local . ../clone
step gc git gc -q --aggressive
step fsck git fsck --full --strict
same 'the commits' "$(git -C ../clone rev-list --count HEAD)" 22
same 'the trees' "$(git -C ../clone rev-parse 'HEAD^{tree}')" "$(git rev-parse 'HEAD^{tree}')"
same 'the files' "$(git -C ../clone ls-files | wc -l)" 501
