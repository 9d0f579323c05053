#!/bin/sh
# remove keeps configuration, data and logs; purge removes kthwd's files by name and
# leaves any others beside them. The user stays, so that no other user gets its number,
# and with it the files.
set -e
@COMMON@
case $1 in
remove) removed ;;
purge)
	removed
	disable_all
	rm -rf /var/lib/kthwd-lb /var/log/kthwd /var/log/kthwd-lb
	data=/var/lib/kubernetes
	if [ -d "$data" ]; then
		for name in @DATA_FILES@; do
			rm -rf "$data/$name"
		done
		rm -f "$data"/audit-[0-9]*.log "$data"/audit-[0-9]*.log.gz "$data"/audit-unauthenticated-[0-9]*.log "$data"/audit-unauthenticated-[0-9]*.log.gz
		rmdir "$data/etcd" 2>/dev/null || true
		rmdir "$data" 2>/dev/null || say "$data is not empty, and what is in it is not kthwd's: it stays"
	fi
	rmdir /etc/kthwd 2>/dev/null || true
	;;
esac
