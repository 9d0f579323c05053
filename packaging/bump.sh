#!/usr/bin/env bash
# Moves go.mod to other versions of Kubernetes and etcd, checks the pages' references
# to upstream's files, and prints what a person must check:
#
#	packaging/bump.sh v1.37.3 v3.7.4
#
# With DRY=1 it prints the commands and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	echo "bump: error: $1" >&2
	echo "bump: hint: make bump K8S=v1.37.3 ETCD=v3.7.4" >&2
	exit 2
}

kubernetes=${1:-} etcd=${2:-}
[[ $kubernetes =~ ^v1\.[0-9]+\.[0-9]+(-(alpha|beta|rc)\.[0-9]+)?$ ]] || usage "K8S is '$kubernetes', not a version such as v1.37.3"
[[ $etcd =~ ^v3\.[0-9]+\.[0-9]+(-(alpha|beta|rc)\.[0-9]+)?$ ]] || usage "ETCD is '$etcd', not a version such as v3.7.4"
staging=v0.${kubernetes#v1.} # Kubernetes v1.37.3 releases its libraries as v0.37.3

required() { awk '/^require \(/ { inside = 1 } /^\)/ { inside = 0 } inside && NF >= 2 { print $1, $2 }' go.mod; }
old_kubernetes=$(required | awk '$1 == "k8s.io/kubernetes" { print $2 }')
old_etcd=$(required | awk '$1 == "go.etcd.io/etcd/server/v3" { print $2 }')
old_staging=v0.${old_kubernetes#v1.}

run() {
	echo "+ $*"
	[ -n "${DRY:-}" ] || "$@"
}

# Kubernetes' libraries have no version of their own: k8s.io/kubernetes requires them at
# v0.0.0, and each needs a line "replace" here. A new minor may bring a new one.
libraries=$(awk '$1 ~ /^k8s\.io\// && $2 == "=>" { print $1 }' go.mod)
if [ -z "${DRY:-}" ]; then
	theirs=$(go list -m -f '{{.GoMod}}' "k8s.io/kubernetes@$kubernetes")
	libraries+=$'\n'$(awk '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print $1 }' "$theirs")
fi

replaces=()
for module in $(sort -u <<<"$libraries"); do
	replaces+=("-replace=$module=$module@$staging")
done
wanted=("k8s.io/kubernetes@$kubernetes")
for module in $(required | awk -v old="$old_staging" '$1 ~ /^k8s\.io\// && $2 == old { print $1 }'); do
	wanted+=("$module@$staging")
done
for module in $(required | awk '$1 ~ /^go\.etcd\.io\/etcd\// { print $1 }'); do
	wanted+=("$module@$etcd")
done

run go mod edit "${replaces[@]}"
run go get "${wanted[@]}"
run go mod tidy
failed=0
run go test -count=1 -run '^TestUpstream' ./test/docs || failed=1 # the list says what to do about it

cat <<END

$old_kubernetes -> $kubernetes, $old_etcd -> $etcd. What upstream forces on us, by docs/ARCHITECTURE.md:
END
awk '
	/^## / { inside = $0 == "## What upstream forces on us"; found = found || inside; next }
	!inside { next }
	/^- / { sub(/^- /, "[ ] "); items++ }
	/^\*\*[^*]+\*\* / { $0 = "[ ] " $0; items++ }
	{ print }
	END { if (!found || !items) { print "bump: error: docs/ARCHITECTURE.md has no list \"What upstream forces on us\"" > "/dev/stderr"; exit 1 } }
' docs/ARCHITECTURE.md

cat <<END
Then:

[ ] the pages and tests that name the old versions:
END
git grep -lF -e "$old_kubernetes" -e "${old_etcd#v}" -- ':!go.mod' ':!go.sum' | sed 's/^/      /' || true
cat <<END
[ ] the table of versions in docs/versioning.md, and CHANGELOG.md
[ ] make verify, make test, make test-e2e, make test-conformance
END
if [ $failed = 1 ]; then
	echo "bump: error: the pages name files or words that upstream no longer has, see above" >&2
	exit 1
fi
