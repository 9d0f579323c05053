@DOWNGRADE@
refuse_downgrade
# The files below /etc/kthwd belong to these groups, so the groups come first.
systemd-sysusers --replace=/usr/lib/sysusers.d/kthwd.conf - <<'USERS' || true
@SYSUSERS@
USERS
