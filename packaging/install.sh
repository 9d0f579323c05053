#!/bin/sh
# Installs kthwd and all its files below a directory: install.sh ROOT BINARY
# GENERATED [KIND]. GENERATED is the output directory of kthwd generate. KIND is tree
# (the default), deb or rpm, which put documents and zsh's completion in different
# places. For tree, existing files in ROOT/etc are kept.
set -eu
root=$1 binary=$2 generated=$3 kind=${4:-tree}
from=$(cd "$(dirname "$0")" && pwd)

put() { # MODE SOURCE DESTINATION
	install -D -m "$1" "$2" "$root$3"
}
settings() { # SOURCE DESTINATION [MODE]
	if [ -e "$root$2" ]; then
		cmp -s "$1" "$root$2" || { put "${3:-0644}" "$1" "$2.new"; echo "kept $root$2; the new one is $2.new"; }
	else
		put "${3:-0644}" "$1" "$2"
	fi
}

put 0755 "$binary" /usr/bin/kthwd
mkdir -p "$root/usr/lib/kthwd/bin"
for name in etcd etcdctl etcdutl kube-apiserver kube-controller-manager kube-scheduler kubectl; do
	ln -sfn ../../../bin/kthwd "$root/usr/lib/kthwd/bin/$name"
done
units=/lib/systemd/system
[ "$kind" != rpm ] || units=/usr/lib/systemd/system
for unit in kthwd-controller.service kthwd-lb.service kthwd-lb.socket; do
	put 0644 "$from/systemd/$unit" "$units/$unit"
done
put 0644 "$from/systemd/restart-steps.conf" /usr/share/kthwd/restart-steps.conf
put 0755 "$from/keepalived/lb-serves" /usr/lib/kthwd/lb-serves
put 0644 "$from/keepalived/keepalived.conf" /usr/share/kthwd/keepalived.conf
put 0644 "$from/etc/90-kthwd.preset" "$units-preset/90-kthwd.preset"
put 0644 "$from/etc/sysusers.conf" /usr/lib/sysusers.d/kthwd.conf
put 0644 "$from/etc/tmpfiles.conf" /usr/lib/tmpfiles.d/kthwd.conf
settings "$generated/controller.yaml" /etc/kthwd/controller.yaml
settings "$generated/lb.yaml" /etc/kthwd/lb.yaml
# Flags may hold secrets. Debian's packages have the usual mode until they are installed (scripts/common.sh: private).
default=0640
[ "$kind" != deb ] || default=0644
settings "$from/etc/default" /etc/default/kthwd $default
settings "$from/etc/logrotate" /etc/logrotate.d/kthwd
for page in "$generated"/man/*.1; do
	put 0644 "$page" "/usr/share/man/man1/${page##*/}"
	gzip -9nf "$root/usr/share/man/man1/${page##*/}"
done
put 0644 "$generated/completion/kthwd" /usr/share/bash-completion/completions/kthwd
put 0644 "$generated/completion/kthwd.fish" /usr/share/fish/vendor_completions.d/kthwd.fish
zsh=/usr/share/zsh/site-functions
[ "$kind" != deb ] || zsh=/usr/share/zsh/vendor-completions
put 0644 "$generated/completion/_kthwd" "$zsh/_kthwd"
case $kind in
deb)
	put 0644 "$generated/copyright" /usr/share/doc/kthwd/copyright
	put 0644 "$generated/changelog" /usr/share/doc/kthwd/changelog.Debian
	gzip -9nf "$root/usr/share/doc/kthwd/changelog.Debian"
	put 0644 "$from/etc/lintian-overrides" /usr/share/lintian/overrides/kthwd
	;;
rpm) put 0644 "$from/../LICENSE" /usr/share/licenses/kthwd/LICENSE ;;
esac
