#!/usr/bin/env bash
# Builds the kthwd with the minor of Kubernetes and etcd before this one's, for the tests of
# upgrades: test/previous.sh FILE. It is a commit of this repository, and is built again only
# when that changes. test/previous.sh FILE COMMIT builds another commit.
set -euo pipefail

# The last commit with Kubernetes 1.36 and etcd 3.6. The next move to another minor moves it.
commit=${2:-a43a5e47298f6b60fc3c1a3783729abce1908f7b}

file=$(realpath -m "$1") stamp=$(realpath -m "$1").commit
mkdir -p "$(dirname "$file")"
exec 9>"$file.lock"
flock 9 # two at once would compile everything twice
if [ -x "$file" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$commit" ]; then
	exit
fi
cd "$(dirname "$0")/.."
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
	echo "previous.sh: this clone does not have commit $commit, of which the previous kthwd is built: git fetch --unshallow" >&2
	exit 1
fi
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
git archive "$commit" | tar -x -C "$sources"
rm -f "$stamp"
make -s -C "$sources" build BIN="$sources/kthwd" VERSION=v0.1.0-dev COMMIT="${commit:0:12}" SOURCE_DATE_EPOCH="$(git log -1 --format=%ct "$commit")"
mv "$sources/kthwd" "$file"
echo "$commit" >"$stamp"
