#!/usr/bin/env bash
# Builds the kthwd with the minor of Kubernetes and etcd before this one's, for the tests of
# upgrades: test/previous.sh FILE [VERSION DIR]. It is a commit of this repository, and is built again
# only when that changes. With VERSION and DIR, the Debian package of that version goes to DIR as well.
# COMMIT=… in the environment builds another commit.
set -euo pipefail

# The last commit with Kubernetes 1.36 and etcd 3.6. The next move to another minor moves it.
commit=${COMMIT:-a43a5e47298f6b60fc3c1a3783729abce1908f7b}

file=$(realpath -m "$1") stamp=$(realpath -m "$1").commit version=${2:-v0.1.0-dev} packages=${3:+$(realpath "$3")}
mkdir -p "$(dirname "$file")"
exec 9>"$file.lock"
flock 9 # two at once would compile everything twice
made=$commit${packages:+ $version}
if [ -x "$file" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$made" ]; then
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
target=build
if [ -n "$packages" ]; then
	target=package-deb-amd64 # as the tests on Debian machines take it
	# That of then is no test of what an unfinished upgrade must refuse: it let it pass.
	cp packaging/scripts/downgrade.sh "$sources/packaging/scripts/"
fi
make -s -C "$sources" "$target" BIN="$sources/kthwd" VERSION="$version" COMMIT="${commit:0:12}" SOURCE_DATE_EPOCH="$(git log -1 --format=%ct "$commit")"
[ -z "$packages" ] || cp "$sources"/dist/*.deb "$packages"
mv "$sources/kthwd" "$file"
echo "$made" >"$stamp"
