#!/bin/sh
# Builds the packages again from a copy of the sources in a different environment
# (directory, umask, language, time zone, file times, one processor), and compares
# them byte by byte with those in dist: check.sh ARGUMENTS-OF-MAKE...
set -eu
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - |
	tar --null --files-from=- -c | tar -C "$copy" -xm
(
	umask 0077
	export TZ=Pacific/Kiritimati LC_ALL=C.UTF-8 GOMAXPROCS=1
	make -s -C "$copy" "$@" package >/dev/null
)
bad=0
while read -r _ name; do
	if cmp "dist/$name" "$copy/dist/$name"; then
		echo "same bytes: $name"
	else
		bad=1
	fi
done <dist/SHA256SUMS
cmp dist/SHA256SUMS "$copy/dist/SHA256SUMS" || bad=1
[ "$bad" = 0 ] || echo "kthwd: error: the same sources made other packages: diffoscope tells where they differ" >&2
exit "$bad"
