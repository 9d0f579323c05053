#!/bin/sh
# Runs every fuzz target for an equal part of a time: fuzz.sh SECONDS. A failing input is
# kept below testdata/fuzz of the package, and is a test case from then on.
#
# Light packages are instrumented, so that inputs that reach new code are kept. To
# instrument Kubernetes and etcd takes longer than a round, so targets of other packages
# run on their seeds' mutations alone. An input that reaches new code is made smaller by a few
# attempts only: Go's 60 seconds for each would be the whole round of a target.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

targets=$(grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' appliance cmd health lb rbacseed | sed 's,^\(.*\)/[^/]*:[0-9]*:func ,\1 ,' | sort)
count=$(echo "$targets" | wc -l)
each=$((seconds / count))
[ "$each" -ge 1 ] || each=1

# Go 1.26 may report the end of -fuzztime as a failure (golang/go#75804): such a run names
# no input, neither one that it wrote nor one of the seeds.
ended_in_time() {
	grep -qx '    context deadline exceeded' "$1" && ! grep -qE 'Failing input written|seed corpus entry|panic:|DATA RACE' "$1"
}

failed=
echo "$targets" >"$work/targets"
while read -r package target; do
	printf '%s %s: ' "$package" "$target"
	if grep -q "^$package  *light\$" appliance/config/testdata/arrows.txt; then
		set -- go test -run '^$' -fuzz "^$target\$" -fuzztime "${each}s" -fuzzminimizetime 20x "./$package"
	else
		binary=$work/$(echo "$package" | tr / -)
		[ -x "$binary" ] || go test -c -o "$binary" "./$package"
		set -- env -C "$package" "$binary" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "${each}s" -test.fuzzminimizetime 20x -test.fuzzcachedir "$work/cache"
	fi
	if "$@" >"$work/out" 2>&1 || ended_in_time "$work/out"; then
		grep -o 'execs: [0-9]*' "$work/out" | tail -n 1
	else
		echo failed
		cat "$work/out"
		failed="$failed $target"
	fi
done <"$work/targets"
[ -z "$failed" ] || { echo "fuzz: error: failed:$failed" >&2; exit 1; }
