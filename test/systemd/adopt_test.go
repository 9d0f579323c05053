package systemd

import (
	"strings"
	"testing"
)

// adoptsUnits lets kthwd adopt the units of kthwd eject on a machine whose systemd knows more
// than their files say: a transient unit, drop-ins of other directories and of a common prefix of
// names, and a file that has changed since it was read. The plan's own commands stop them.
func adoptsUnits(t *testing.T, m *machine) {
	t.Helper()
	api, scheduler := m.execStart("kube-apiserver"), m.execStart("kube-scheduler")
	m.run("systemctl stop " + controllerUnit + " && rm /etc/systemd/system/kube-scheduler.service")
	m.write("/etc/systemd/system/kube-.service.d/10-ttl.conf", "[Service]\nEnvironment=TTL=--event-ttl=2h\n")
	m.write("/etc/systemd/system.control/kube-apiserver.service.d/50-chance.conf", "[Service]\nEnvironment=\"CHANCE=--goaway-chance=0.001 --v=1\"\n")
	m.run("mkdir -p /run/systemd/system/kube-apiserver.service.d && cat > /run/systemd/system/kube-apiserver.service.d/60-start.conf <<'E'\n[Service]\nExecStart=\nExecStart=" + api + " $TTL $CHANCE\nE")
	m.run("systemctl enable kube-controller-manager && systemctl daemon-reload") // systemd forgets what nothing wants
	// It fails, without an API server, and stays known.
	m.run("systemd-run --unit=kube-scheduler --uid=kthwd --gid=kthwd --property=Restart=always --property=RestartSec=1000 " + scheduler)
	m.run("echo '# changed' >> /etc/systemd/system/kube-controller-manager.service")

	// kthwd's user, which owns the data, asks: systemd answers every user.
	plan := m.run("runuser -u kthwd -- kthwd adopt --from=units --out=/var/lib/kubernetes/adopted.yaml")
	for _, want := range []string{
		"kube-scheduler, of /run/systemd/transient/kube-scheduler.service\n", "kube-apiserver-arg: event-ttl=2h", "kube-apiserver-arg: goaway-chance=0.001",
		"note: /etc/systemd/system/kube-controller-manager.service has changed, and systemd has not read it again",
		"\n  systemctl stop kube-scheduler\n  systemctl disable --now kube-controller-manager kube-apiserver etcd\n",
	} {
		if !strings.Contains(plan, want) {
			t.Errorf("the plan lacks %q:\n%s", want, plan)
		}
	}
	for line := range strings.Lines(plan) {
		if strings.HasPrefix(line, "  systemctl ") {
			m.run(strings.TrimSpace(line))
		}
	}
	m.run("install -m 0640 -g kthwd /var/lib/kubernetes/adopted.yaml /etc/kthwd/controller.yaml && systemctl start " + controllerUnit)
	m.shows("kthwd status", "\nready")
	m.shows("kthwd explain kube-apiserver --config=/etc/kthwd/controller.yaml", "--event-ttl=2h", "--goaway-chance=0.001")
}

// execStart is the command line of a unit in one line.
func (m *machine) execStart(unit string) string {
	m.t.Helper()
	_, text, found := strings.Cut(m.run("cat /etc/systemd/system/"+unit+".service"), "\nExecStart=")
	text, _, _ = strings.Cut(strings.ReplaceAll(text, "\\\n", " "), "\n")
	if !found || strings.ContainsAny(text, `"'%$`) {
		m.t.Fatalf("%s: a command line that this test cannot read: %q", unit, text)
	}
	return text
}
