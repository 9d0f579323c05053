#!/bin/sh
# Writes the scripts of the packages: scripts.sh OUT GENERATED VERSION
# KUBERNETES ETCD. Each is a single file, because a package manager keeps no file that
# it could source.
set -eu
out=$1 generated=$2 kthwd=${3#v} kubernetes=${4#v} etcd=${5#v}
from=$(cd "$(dirname "$0")" && pwd)/scripts
mkdir -p "$out"
minor() { echo "$1" | cut -d. -f1,2; }

for script in "$from"/deb-*.sh "$from"/rpm-*.sh; do
	name=${script##*/}
	sed -e "/^@COMMON@\$/{r $from/common.sh
		d}" -e "/^@SYSUSERS@\$/{r $from/../etc/sysusers.conf
		d}" -e "/^@DOWNGRADE@\$/{r $from/downgrade.sh
		d}" "$script" |
		sed -e "s/@KUBERNETES@/$(minor "$kubernetes")/" -e "s/@ETCD@/$(minor "$etcd")/" -e "s/@KTHWD@/$(minor "$kthwd")/" \
			-e "s,@DATA_FILES@,$(tr '\n' ' ' <"$generated/data-files")," >"$out/${name%.sh}"
	chmod 0755 "$out/${name%.sh}"
	sh -n "$out/${name%.sh}"
done
