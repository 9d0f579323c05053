@COMMON@
if [ "$1" -eq 0 ]; then
	stop_all
	disable_all # nothing comes after it, unlike Debian's purge
fi
