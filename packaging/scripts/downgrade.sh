# refuse_downgrade ends the script if a later minor version than this package's last
# served the data. kthwd refuses such data too, but only at its start, when the version
# that can serve them is gone.
refuse_downgrade() {
	record=/var/lib/kubernetes/member.json
	[ -r "$record" ] || return 0
	for part in kthwd kubernetes etcd; do
		case $part in
		kthwd) own=@KTHWD@ ;;
		kubernetes) own=@KUBERNETES@ ;;
		etcd) own=@ETCD@ ;;
		esac
		# Two spaces: the versions that may run. Further in are those from before an upgrade that is not
		# finished, and those that ran last.
		had=$(sed -n "s/^  \"$part\": \"v*\([0-9]*\.[0-9]*\)\.[^\"]*\",*\$/\1/p" "$record")
		[ -n "$had" ] || continue
		if [ "${had%%.*}" -gt "${own%%.*}" ] || { [ "${had%%.*}" -eq "${own%%.*}" ] && [ "${had#*.}" -gt "${own#*.}" ]; }; then
			echo "kthwd: error: /var/lib/kubernetes was last run with $part $had, and this package has $own: there is no way back to an older minor" >&2
			hint="keep the installed version; to go back, put back a copy of etcd's data from before the upgrade and move $record away"
			! grep -q '^  "kubernetesEmulated"' "$record" || hint="the upgrade is not finished: run kthwd upgrade back, then install this package again"
			echo "kthwd: hint: $hint" >&2
			exit 1
		fi
	done
}
