#!/bin/sh
set -e
@COMMON@
case $1 in
remove) stop_all ;;
esac
