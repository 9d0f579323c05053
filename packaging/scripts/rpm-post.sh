@COMMON@
set_up
if [ "$1" -gt 1 ]; then
	upgraded
fi
