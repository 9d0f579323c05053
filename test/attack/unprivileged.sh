#!/bin/sh
# Runs the attacks as an ordinary user, to whom the kernel grants nothing, when root calls
# it: unprivileged.sh BINARY. Some tests are about the checkout, which may be root's alone.
set -eu
binary=$1
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go test -c -o "$work/attack.test" .
cp "$binary" "$work/kthwd"
chown -R nobody "$work"
cd "$work"
HOME=$work TMPDIR=$work KTHWD_BIN=$work/kthwd setpriv --reuid=nobody --regid=nogroup --clear-groups \
	"$work/attack.test" -test.v -test.timeout=10m -test.skip='^(TestTable|TestReproductions|TestUnitsKeepUsersApart)$'
