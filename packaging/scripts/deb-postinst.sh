#!/bin/sh
set -e
@COMMON@
case $1 in
configure)
	set_up
	if [ -n "$2" ]; then
		upgraded
	fi
	;;
triggered)
	restart_steps
	;;
esac
