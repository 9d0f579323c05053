#!/bin/sh
set -e
@DOWNGRADE@
case $1 in
install | upgrade) refuse_downgrade ;;
esac
