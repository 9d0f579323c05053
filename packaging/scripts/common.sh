# Shared by the scripts that a package manager runs. They print one line for each thing
# that a person must do, and ask no questions.

booted() { [ -d /run/systemd/system ]; }
active() { booted && systemctl is-active --quiet "$1"; }
say() { echo "kthwd: $*"; }

# number KEY prints a number from the running controller's report.
number() {
	echo "$report" | sed -n "s/^ *\"$1\": \([0-9]*\),*\$/\1/p" | head -n 1
}

# ready UNIT SECONDS waits until the unit serves.
ready() {
	left=$2
	while [ "$left" -gt 0 ]; do
		state=$(systemctl show -p ActiveState --value "$1")
		[ "$state" != active ] || return 0
		[ "$state" != failed ] || return 1
		sleep 1
		left=$((left - 1))
	done
	return 1
}

sentence() { systemctl show -p StatusText --value "$1"; }

# refusal UNIT prints the sentence with which the new version refuses the upgrade of the
# running controller, which has the unit's flags; nothing if the upgrade may begin.
refusal() {
	process=$(systemctl show -p MainPID --value "$1")
	xargs -0 -a "/proc/$process/cmdline" sh -c 'exec kthwd upgrade check "$@"' 2>&1 >/dev/null |
		sed -n 's/^kthwd: error: //p' | head -n 1
}

# A controller of several is restarted only if the others can continue without it, as
# in a rolling restart; the next machine is upgraded when this one is ready again.
upgrade_controller() {
	unit=kthwd-controller.service
	booted || return 0
	[ "$(systemctl show -p ActiveState --value $unit)" != inactive ] || return 0
	if active $unit; then
		report=$(kthwd status --config=/etc/kthwd/controller.yaml -o json 2>/dev/null) || true
		members=$(number members) needed=$(number needed) alive=$(number active)
		if [ "${members:-1}" -gt 1 ] && [ $((${alive:-0} - 1)) -lt "${needed:-1}" ]; then
			say "the controller goes on with the old version, for without it there is no quorum ($alive of $members active); once the others are back: systemctl restart $unit"
			return 0
		fi
		refused=$(refusal $unit) || true
		if [ -n "$refused" ]; then
			say "the controller goes on with the old version: $refused; see: kthwd upgrade check --config=/etc/kthwd/controller.yaml; then: systemctl restart $unit"
			return 0
		fi
	fi
	systemctl restart --no-block $unit
	if ready $unit 120; then
		say "the controller was restarted and is ready"
	else
		say "the controller was restarted and is not ready yet: $(sentence $unit); see: systemctl status $unit"
	fi
}

# The load balancer hands its connections over to a process of the new version.
upgrade_lb() {
	unit=kthwd-lb.service
	active $unit || return 0
	old=$(systemctl show -p MainPID --value $unit)
	kill -USR2 "$old"
	left=60
	while [ "$left" -gt 0 ]; do
		now=$(systemctl show -p MainPID --value $unit)
		if [ "$now" != "$old" ] && [ ! -e "/proc/$old" ]; then
			say "the load balancer has handed its connections over to the new version"
			return 0
		fi
		sleep 1
		left=$((left - 1))
	done
	say "the load balancer goes on with the old version: it did not hand over within a minute; see: journalctl -u $unit, then: systemctl restart $unit"
}

# Growing pauses need systemd 254; an older one would warn.
restart_steps() {
	version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
	for unit in kthwd-controller kthwd-lb; do
		dropin=/lib/systemd/system/$unit.service.d/restart-steps.conf
		if [ "${version:-0}" -ge 254 ]; then
			mkdir -p "${dropin%/*}"
			ln -sf /usr/share/kthwd/restart-steps.conf "$dropin"
		else
			no_restart_steps $unit
		fi
	done
}
no_restart_steps() {
	rm -f "/lib/systemd/system/$1.service.d/restart-steps.conf"
	rmdir --ignore-fail-on-non-empty "/lib/systemd/system/$1.service.d" 2>/dev/null || true
}

# private keeps settings from other users of the machine, once the group exists that may
# read them. A mode that a person has chosen stays.
private() { # GROUP FILE
	[ "$(stat -c '%U:%G %a' "$2" 2>/dev/null)" = 'root:root 644' ] || return 0
	if command -v dpkg-statoverride >/dev/null && dpkg-statoverride --list "$2" >/dev/null; then
		return 0
	fi
	chgrp "$1" "$2"
	chmod 0640 "$2"
}

# set_up is the part that installation and upgrade share.
set_up() {
	systemd-sysusers kthwd.conf
	systemd-tmpfiles --create kthwd.conf || true
	private kthwd /etc/kthwd/controller.yaml
	private kthwd-lb /etc/kthwd/lb.yaml
	private root /etc/default/kthwd
	restart_steps
	if booted; then
		systemctl daemon-reload
	fi
}

# The load balancer once ran as the controller's user. Its files below /etc and the log
# that it then wrote are not those of its own user.
own_user_of_lb() {
	if grep -qs '^access-log: */var/log/kthwd/' /etc/kthwd/lb.yaml; then
		say "from its next restart the load balancer runs as kthwd-lb, which cannot write to /var/log/kthwd: set access-log: /var/log/kthwd-lb/access.log in /etc/kthwd/lb.yaml"
	fi
}

upgraded() {
	own_user_of_lb
	upgrade_controller
	upgrade_lb
}

stop_all() {
	booted || return 0
	systemctl stop kthwd-lb.socket kthwd-lb.service kthwd-controller.service || true
	for unit in kthwd-controller kthwd-lb; do
		no_restart_steps $unit
	done
}

disable_all() {
	for unit in kthwd-controller.service kthwd-lb.service kthwd-lb.socket; do
		rm -f "/etc/systemd/system/multi-user.target.wants/$unit" "/etc/systemd/system/sockets.target.wants/$unit"
	done
}

removed() {
	if booted; then
		systemctl daemon-reload
		systemctl reset-failed kthwd-controller.service kthwd-lb.service kthwd-lb.socket 2>/dev/null || true
	fi
}
