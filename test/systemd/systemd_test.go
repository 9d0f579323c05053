package systemd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/names"
	"kthwd/test/kthwtest"
)

const (
	controllerAddress = "10.0.0.1"
	balancerAddress   = "10.0.0.2"

	controllerUnit = "kthwd-controller.service"
	balancerUnit   = "kthwd-lb.service"
)

// TestDebian is the life of two machines, one step after the other.
func TestDebian(t *testing.T) {
	ns := network(t, controllerAddress, balancerAddress)
	c, b := boot(t, "kthwd-controller-"+old, ns), boot(t, "kthwd-lb-"+old, ns)
	for _, step := range []struct {
		name string
		run  func(t *testing.T, c, b *machine)
	}{
		{"installs and starts nothing", installs},
		{"units are clean", cleanUnits},
		{"controller serves", controllerServes},
		{"load balancer serves", balancerServes},
		{"limits of memory", memoryLimits},
		{"kill -9 of the controller", controllerKilled},
		{"kill -9 of the load balancer", balancerKilled},
		{"watchdog", watchdog},
		{"reboot", reboot},
		{"refused upgrade", upgradeRefused},
		{"upgrade", upgrade},
		{"downgrade", downgrade},
		{"bad input", badInput},
		{"remove and purge", removeAndPurge},
	} {
		begun := time.Now()
		if !t.Run(step.name, func(t *testing.T) {
			for _, m := range []*machine{c, b} {
				m.t = t
			}
			step.run(t, c, b)
		}) {
			break // the next ones would fail for the same reason
		}
		t.Logf("%s: %v", step.name, time.Since(begun).Round(100*time.Millisecond))
	}
	c.t, b.t = t, t
}

func installs(t *testing.T, c, b *machine) {
	deb := filepath.Join(os.Getenv(packagesEnv), "kthwd_"+fresh+"-1_amd64.deb")
	if out := host(t, "lintian", "--allow-root", "--fail-on=error,warning", deb); out != "" {
		t.Errorf("lintian:\n%s", out)
	}
	// The systemd of Debian 10, and nowhere to get a later one.
	c.run(`sed '/^Package: systemd$/,/^$/s/^Version: .*/Version: 241-7~deb10u10/' /var/lib/dpkg/status > /run/status`)
	out := c.fails("apt-get install --simulate -o Dir::State::status=/run/status -o Dir::State::lists=/run/none -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= ./kthwd_" + old + "-1_amd64.deb")
	if !strings.Contains(out, "kthwd : Depends: systemd (>= 247)") {
		t.Errorf("a systemd that is too old:\n%s", out)
	}
	for _, m := range []*machine{c, b} {
		m.install(old)
		for _, unit := range []string{controllerUnit, balancerUnit, "kthwd-lb.socket"} {
			if got := m.property(unit, "ActiveState") + " " + m.property(unit, "UnitFileState"); got != "inactive disabled" {
				t.Errorf("%s: %s after the installation", unit, got)
			}
		}
		for _, name := range names.All {
			m.shows("readlink --canonicalize /usr/lib/kthwd/bin/"+name, "/usr/bin/kthwd")
		}
		m.shows("/usr/lib/kthwd/bin/kubectl version --client", "Client Version: v")
		m.shows("getent passwd kthwd", "/usr/sbin/nologin")
		m.shows("stat -c '%a %U' /var/lib/kubernetes", "700 kthwd")
		m.shows("stat -c '%a %U:%G' /etc/kthwd/controller.yaml /etc/kthwd/lb.yaml /etc/default/kthwd", "640 root:kthwd\n640 root:kthwd-lb\n640 root:root\n")
		m.shows("dpkg-query --showformat '${Conffiles}' --show kthwd", "/etc/kthwd/controller.yaml", "/etc/kthwd/lb.yaml", "/etc/default/kthwd", "/etc/logrotate.d/kthwd")
		if out := m.run("logrotate --debug /etc/logrotate.d/kthwd 2>&1"); strings.Contains(out, "error") || !strings.Contains(out, "/var/log/kthwd-lb/*.log") {
			t.Errorf("logrotate --debug:\n%s", out)
		}
		m.run("bash -c 'source /usr/share/bash-completion/bash_completion && source /usr/share/bash-completion/completions/kthwd && complete -p kthwd'")
	}
}

var exposure = regexp.MustCompile(`Overall exposure level for (\S+): ([0-9.]+)`)

// cleanUnits prints systemd's own figures and holds them to 1.6.
func cleanUnits(t *testing.T, c, _ *machine) {
	if out := c.run("systemd-analyze --man=no verify kthwd-controller.service kthwd-lb.service kthwd-lb.socket 2>&1"); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	for _, unit := range []string{controllerUnit, balancerUnit} {
		m := exposure.FindStringSubmatch(c.run("systemd-analyze security --no-pager " + unit))
		if m == nil {
			t.Fatalf("%s: no exposure level", unit)
		}
		t.Logf("systemd-analyze security %s: %s", unit, m[2])
		if level, err := strconv.ParseFloat(m[2], 64); err != nil || level > 1.6 {
			t.Errorf("%s: exposure %s, want at most 1.6", unit, m[2])
		}
	}
}

const controllerYAML = `advertise-address: ` + controllerAddress + `
bind-address: ` + controllerAddress + `
subject-alt-name: [` + balancerAddress + `]
name: c0
`

const kubectl = "kubectl --kubeconfig /var/lib/kubernetes/admin.kubeconfig "

func controllerServes(t *testing.T, c, _ *machine) {
	c.run("cat >> /etc/kthwd/controller.yaml <<'E'\n" + controllerYAML + "E")
	c.run("systemctl enable --now " + controllerUnit)
	c.shows("systemctl status --no-pager "+controllerUnit, "active (running)", `Status: "ready"`)
	out := c.shows(kubectl+"get componentstatuses", "etcd-0", "scheduler", "controller-manager")
	if strings.Count(out, "Healthy") != 3 {
		t.Errorf("component statuses:\n%s", out)
	}
	c.run(kubectl + "create configmap before --from-literal=x=1")
	// Public files are readable by users who may enter the directory, and by nobody else.
	if out := c.run("find /var/lib/kubernetes ! -user kthwd -print -o -perm /022 -print -o -type d -perm /077 -print -o -type f -perm /077 ! -name '*.pem' ! -name audit-policy.yaml ! -name authentication-config.yaml -print -o -name '*-key.pem' -perm /077 -print"); out != "" {
		t.Errorf("not of user kthwd, or others may read it:\n%s", out)
	}
	journal := c.run("journalctl --no-pager -o cat -u " + controllerUnit)
	if !strings.Contains(journal, "kthwd: all ready took=") || regexp.MustCompile(`(?m)^(<[0-7]>|time=|\{)`).MatchString(journal) {
		t.Errorf("the journal:\n%s", journal)
	}
	c.shows("journalctl --no-pager -o json -u "+controllerUnit, `"PRIORITY":"6"`)
	if bad := c.run("journalctl --no-pager -o cat -p err -u " + controllerUnit); bad != "" {
		t.Errorf("errors in a start of which nothing is wrong:\n%s", bad)
	}
	if got := c.run("ps -o user= -C kthwd"); strings.TrimSpace(got) != "kthwd" {
		t.Errorf("it runs as %q", got)
	}
}

// rotates: the load balancer is told, and goes on in the new file.
func rotates(t *testing.T, b *machine) {
	const request = "kubectl --kubeconfig /etc/kthwd/admin.kubeconfig version"
	b.shows(request+" && cat /var/log/kthwd-lb/access.log", `"backend"`)
	process := b.property(balancerUnit, "MainPID")
	b.run("logrotate --force /etc/logrotate.d/kthwd")
	b.shows("stat --format '%a %U:%G %n' /var/log/kthwd-lb/*", "640 kthwd-lb:kthwd-lb /var/log/kthwd-lb/access.log\n", "600 kthwd-lb:kthwd-lb /var/log/kthwd-lb/access.log.1\n")
	b.shows(request+" && cat /var/log/kthwd-lb/access.log", `"backend"`)
	if now := b.property(balancerUnit, "MainPID"); now != process {
		t.Errorf("logrotate restarted it: process %s, before %s", now, process)
	}
}

// keepsKeysApart: the load balancer cannot read a controller's files on its machine, whatever
// their modes, and neither unit leaves a core dump, which would contain keys.
func keepsKeysApart(t *testing.T, b *machine) {
	b.run("touch /var/lib/kubernetes/probe && chmod 0777 /var/lib/kubernetes && chmod 0666 /var/lib/kubernetes/probe")
	defer b.run("rm /var/lib/kubernetes/probe && chmod 0700 /var/lib/kubernetes")
	inside := "nsenter --mount --target $(systemctl show -p MainPID --value " + balancerUnit + ") runuser -u kthwd-lb -- cat /var/lib/kubernetes/probe 2>&1"
	if out := b.fails(inside); !strings.Contains(out, "ermission denied") && !strings.Contains(out, "No such file") {
		t.Errorf("the load balancer reads a controller's file: %s", out)
	}
	for _, unit := range []string{controllerUnit, balancerUnit} {
		if got := b.property(unit, "LimitCORE"); got != "0" {
			t.Errorf("%s: LimitCORE %s", unit, got)
		}
	}
}

const balancerYAML = `listen: ['` + balancerAddress + `:6443']
backend: ['` + controllerAddress + `:6443']
backend-ca: /etc/kthwd/ca.pem
metrics-address: 127.0.0.1:10301
access-log: /var/log/kthwd-lb/access.log
`

func balancerServes(t *testing.T, c, b *machine) {
	for _, name := range []string{"ca.pem", "admin.kubeconfig"} {
		b.write("/etc/kthwd/"+name, c.run("cat /var/lib/kubernetes/"+name))
	}
	b.run("sed -i s/" + controllerAddress + ":/" + balancerAddress + ":/ /etc/kthwd/admin.kubeconfig")
	b.run("cat >> /etc/kthwd/lb.yaml <<'E'\n" + balancerYAML + "E")
	b.write("/etc/systemd/system/kthwd-lb.socket.d/here.conf", "[Socket]\nListenStream=\nListenStream="+balancerAddress+":6443\n")
	b.run("systemctl daemon-reload && systemctl enable --now kthwd-lb.socket kthwd-lb.service")
	b.shows("systemctl status --no-pager "+balancerUnit, "active (running)", `Status: "ready"`)
	b.shows("kubectl --kubeconfig /etc/kthwd/admin.kubeconfig get configmap before", "before")
	if out := b.run("journalctl --no-pager -o cat -p warning -u " + balancerUnit); strings.Contains(out, "inherited socket") {
		t.Errorf("the socket of the unit was not used:\n%s", out)
	}
	if got := b.run("ps -o user= -C kthwd"); strings.TrimSpace(got) != "kthwd-lb" {
		t.Errorf("it runs as %q", got)
	}
	keepsKeysApart(t, b)
	rotates(t, b)
}

// memoryLimits: the garbage collector keeps below MemoryMax= of the unit. Where the
// machine that runs the test gives the tested ones no control over memory, as one
// with version 1 of control groups does, the whole tested machine has the limit:
// systemd then does not write the unit's.
func memoryLimits(t *testing.T, c, b *machine) {
	const limit, want = 1 << 30, "memory is limited by the control group limit-mib=921"
	for m, unit := range map[*machine]string{c: controllerUnit, b: balancerUnit} {
		if bad := m.run("journalctl --no-pager -o cat -u " + unit); strings.Contains(bad, "memory is limited") {
			t.Errorf("%s: without a limit:\n%s", unit, bad)
		}
		m.run("systemctl set-property " + unit + " MemoryMax=1G")
		if _, err := m.try("grep --quiet --word-regexp memory /sys/fs/cgroup/cgroup.controllers"); err != nil {
			t.Logf("%s: memory is not this machine's to share out: the limit is the machine's", m.name)
			defer m.limitMemory(limit)()
		}
		m.run("systemctl restart " + unit)
		m.shows("journalctl --no-pager -o cat -u "+unit, want)
		m.state(unit, "active")
		m.run("systemctl revert " + unit)
	}
	b.run("systemctl restart " + balancerUnit)
}

func (m *machine) restarts(unit string) int {
	n, err := strconv.Atoi(m.property(unit, "NRestarts"))
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// comesBack waits for one more restart than before, and for the unit to serve.
func (m *machine) comesBack(unit string, before int) {
	m.t.Helper()
	kthwtest.WaitFor(m.t, unit+" to be restarted", kthwtest.Soon, func() error {
		if got := m.restarts(unit); got <= before {
			return fmt.Errorf("it was restarted %d times, %d before", got, before)
		}
		return nil
	})
	m.state(unit, "active")
}

func controllerKilled(t *testing.T, c, _ *machine) {
	before := c.restarts(controllerUnit)
	c.run("systemctl kill --signal=KILL " + controllerUnit)
	c.comesBack(controllerUnit, before)
	c.shows(kubectl+"get configmap before", "before")
}

// balancerKilled: the socket is systemd's, so nobody is refused while there is no process.
func balancerKilled(t *testing.T, c, b *machine) {
	before := b.restarts(balancerUnit)
	b.run("systemctl kill --signal=KILL " + balancerUnit)
	out, err := b.try("curl --silent --show-error --max-time 60 --cacert /etc/kthwd/ca.pem https://" + balancerAddress + ":6443/livez")
	if err != nil || out != "ok" {
		t.Errorf("a client that comes while no process is there: %v\n%s", err, out)
	}
	b.comesBack(balancerUnit, before)
}

// watchdog stops the process, as a kernel or a machine might. The limits are cut to
// keep the test short.
func watchdog(t *testing.T, c, _ *machine) {
	c.write("/etc/systemd/system/kthwd-controller.service.d/test.conf", "[Service]\nWatchdogSec=8\nTimeoutAbortSec=2\n")
	c.run("systemctl daemon-reload && systemctl restart " + controllerUnit)
	c.state(controllerUnit, "active")
	before := c.restarts(controllerUnit)
	pid := c.property(controllerUnit, "MainPID")
	c.run("kill -STOP " + pid)
	c.comesBack(controllerUnit, before)
	c.shows("journalctl --no-pager -u "+controllerUnit, "Watchdog timeout", "result 'watchdog'")
	if now := c.property(controllerUnit, "MainPID"); now == pid {
		t.Errorf("the same process: %s", pid)
	}
	c.shows(kubectl+"get configmap before", "before")
	c.run("rm /etc/systemd/system/kthwd-controller.service.d/test.conf && systemctl daemon-reload")
}

func reboot(t *testing.T, c, _ *machine) {
	first := c.init()
	c.run("systemctl reboot")
	kthwtest.WaitFor(t, "the machine to go down", kthwtest.Soon, func() error {
		if now := c.init(); now == 0 || now == first {
			return errors.New("it is up")
		}
		return nil
	})
	c.booted()
	c.state(controllerUnit, "active")
	c.shows(kubectl+"get configmap before", "before")
}

// upgradeRefused: a controller whose settings the new version refuses, in the file or in a program's
// flag, goes on with the old version, and the package says why and what to do.
func upgradeRefused(t *testing.T, c, _ *machine) {
	const settings = "/etc/kthwd/controller.yaml"
	process := c.property(controllerUnit, "MainPID")
	c.run("cp -p " + settings + " /run/good.yaml")
	for line, want := range map[string]string{
		"secure-prt: 1": `unknown key "secure-prt"`,
		"kube-scheduler-arg: [\"no-such-flag=1\"]": "the upgrade must wait: configuration: the new binary refuses it: ",
	} {
		c.run("cp -p /run/good.yaml " + settings + "; echo '" + line + "' >> " + settings)
		out := c.run("apt-get install -y -q --reinstall ./kthwd_" + fresh + "-1_amd64.deb")
		if !strings.Contains(out, "kthwd: the controller goes on with the old version: ") || !strings.Contains(out, want) || !strings.Contains(out, "; then: systemctl restart "+controllerUnit) {
			t.Errorf("%s: it does not say what it did:\n%s", line, out)
		}
		if now := c.property(controllerUnit, "MainPID"); now != process {
			t.Errorf("%s: the controller was process %s and is %s", line, process, now)
		}
		c.shows("kthwd status", "kthwd v"+old, "\nready")
	}
	c.run("cp -p /run/good.yaml " + settings)
	c.install(old) // the data have not seen the new version
}

// upgrade: the controller restarts with its data; of the load balancer, the
// watches that go through it notice nothing.
func upgrade(t *testing.T, c, b *machine) {
	if out := c.install(fresh); !strings.Contains(out, "kthwd: the controller was restarted and is ready") {
		t.Errorf("it does not say what it did:\n%s", out)
	}
	c.state(controllerUnit, "active")
	c.shows("kthwd status", "kthwd v"+fresh, "\nready")
	c.shows(kubectl+"get configmap before", "before")

	b.run("systemd-run --unit=watch --property=StandardOutput=file:/run/watch.out kubectl --kubeconfig /etc/kthwd/admin.kubeconfig get configmaps --watch")
	b.shows("cat /run/watch.out", "before")
	watcher, process := b.property("watch", "MainPID"), b.property(balancerUnit, "MainPID")
	sockets := b.run("ss -Htn state established dst " + balancerAddress + ":6443 | awk '{print $3}' | sort")
	if out := b.install(fresh); !strings.Contains(out, "kthwd: the load balancer has handed its connections over to the new version") {
		t.Errorf("it does not say what it did:\n%s", out)
	}
	if now := b.property(balancerUnit, "MainPID"); now == process {
		t.Error("the process is the old one")
	}
	c.run(kubectl + "create configmap after")
	b.shows("cat /run/watch.out", "after")
	if now := b.property("watch", "MainPID"); now != watcher || now == "0" {
		t.Errorf("the watching kubectl was process %s, and is %s", watcher, now)
	}
	if now := b.run("ss -Htn state established dst " + balancerAddress + ":6443 | awk '{print $3}' | sort"); !strings.Contains(now, strings.TrimSpace(sockets)) {
		t.Errorf("connections before:\n%s\nafterwards:\n%s", sockets, now)
	}
	b.shows("kthwd status --metrics-address=127.0.0.1:10301", "kthwd v"+fresh)
	b.state(balancerUnit, "active")
	b.run("systemctl stop watch")
	// What was handed over is still a unit like any other one.
	before := b.restarts(balancerUnit)
	b.run("systemctl kill --signal=KILL " + balancerUnit)
	b.comesBack(balancerUnit, before)
}

func downgrade(t *testing.T, c, b *machine) {
	out := c.fails("apt-get install -y -q --allow-downgrades ./kthwd_" + old + "-1_amd64.deb")
	for _, want := range []string{"kthwd: error: /var/lib/kubernetes was last run with kthwd 0.10", "this package has 0.9", "kthwd: hint: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the refusal lacks %q:\n%s", want, out)
		}
	}
	c.shows("dpkg-query --showformat '${Version} ${Status}' --show kthwd", fresh+"-1 install ok installed")
	c.state(controllerUnit, "active")
	b.install(old) // there are no data
	b.shows("kthwd status --metrics-address=127.0.0.1:10301", "kthwd v"+old)
	b.install(fresh)
}

// fast has a unit give up soon.
const fast = "[Unit]\nStartLimitBurst=2\n[Service]\nRestartSec=100ms\n"

// badInputs are inputs that must not be retried for ever, and systemctl status's text
// for each.
var badInputs = []struct {
	name, set, undo string
	balancer        bool // it is the load balancer's, not the controller's
	dropin          string
	exit            string
	want            []string
}{
	{
		name: "a broken file", set: "cp /etc/kthwd/controller.yaml /run/good.yaml; echo 'secure-prt: 1' >> /etc/kthwd/controller.yaml",
		undo: "cp /run/good.yaml /etc/kthwd/controller.yaml", exit: "2",
		want: []string{"error: /etc/kthwd/controller.yaml:", `unknown key "secure-prt"`, "did you mean secure-port?"},
	},
	{
		name: "a port that is taken", set: "systemd-run --unit=squatter kthwd --role=lb --config= --check=tcp --backend=192.0.2.1:1 --listen=" + controllerAddress + ":2380 --metrics-address=",
		undo: "systemctl stop squatter", dropin: fast, exit: "1",
		want: []string{"etcd: listen tcp 10.0.0.1:2380: bind: address already in use", "ss -ltnp"},
	},
	{
		name: "a read-only file system", dropin: fast + "ReadOnlyPaths=/var/lib/kubernetes\n", exit: "1",
		want: []string{"read-only file system", "/var/lib/kubernetes"},
	},
	{
		name: "a full disk", set: "mkdir -p /var/lib/full && mount -t tmpfs -o size=64k tmpfs /var/lib/full && chown kthwd: /var/lib/full && chmod 700 /var/lib/full && head -c 1M /dev/zero > /var/lib/full/ballast || true",
		undo: "umount /var/lib/full", dropin: fast + "ReadWritePaths=/var/lib/full\nEnvironment=KTHWD_CONTROLLER_OPTS=--data-dir=/var/lib/full\n", exit: "1",
		want: []string{"no space left on device", "make room"},
	},
	{
		name: "a capability that is missing", dropin: fast + "AmbientCapabilities=\nCapabilityBoundingSet=\n", exit: "1",
		want: []string{":80: bind: permission denied", "CAP_NET_BIND_SERVICE"},
	},
	{
		name: "a broken file of the load balancer", balancer: true,
		set:  "cp /etc/kthwd/lb.yaml /run/good.yaml; printf 'balance: fastest\\nbackends: [a]\\n' >> /etc/kthwd/lb.yaml",
		undo: "cp /run/good.yaml /etc/kthwd/lb.yaml", exit: "2",
		want: []string{"error: /etc/kthwd/lb.yaml:", `unknown key "backends"`, "did you mean backend?"},
	},
	{
		name: "a port of the load balancer that is taken", balancer: true, dropin: fast,
		set:  "systemctl stop kthwd-lb.socket; systemd-run --unit=squatter kthwd --role=lb --config= --check=tcp --backend=192.0.2.1:1 --listen=" + balancerAddress + ":6443 --metrics-address=",
		undo: "systemctl stop squatter; systemctl start kthwd-lb.socket", exit: "1",
		want: []string{"listen on " + balancerAddress + ":6443: address already in use", "ss -ltnp"},
	},
	{
		name: "a port of the load balancer without the capability", balancer: true, dropin: fast + "AmbientCapabilities=\nCapabilityBoundingSet=\nEnvironment=KTHWD_LB_OPTS=--listen=" + balancerAddress + ":443\n",
		set: "systemctl stop kthwd-lb.socket", undo: "systemctl start kthwd-lb.socket", exit: "1",
		want: []string{":443: permission denied", "CAP_NET_BIND_SERVICE"},
	},
}

// badInput: the unit ends and prints the reason in one line, and what to do.
func badInput(t *testing.T, c, b *machine) {
	for _, tt := range badInputs {
		t.Run(tt.name, func(t *testing.T) {
			m, unit := c, controllerUnit
			if tt.balancer {
				m, unit = b, balancerUnit
			}
			m.t = t
			m.run("systemctl stop " + unit)
			dropin := "/etc/systemd/system/" + unit + ".d/bad.conf"
			m.write(dropin, tt.dropin)
			if tt.set != "" {
				m.run(tt.set)
			}
			m.run("systemctl daemon-reload; systemctl reset-failed " + unit)
			m.run("systemctl start --no-block " + unit)
			m.state(unit, "failed")
			if got := m.property(unit, "ExecMainStatus"); got != tt.exit {
				t.Errorf("exit code: got %s, want %s", got, tt.exit)
			}
			if tt.exit == "2" && m.restarts(unit) != 0 {
				t.Error("it was tried again")
			}
			status, _ := m.try("systemctl status --no-pager --full " + unit)
			for _, want := range tt.want {
				if !strings.Contains(status, want) {
					t.Errorf("systemctl status lacks %q:\n%s", want, status)
				}
			}
			if tt.undo != "" {
				m.run(tt.undo)
			}
			m.run("rm --recursive " + filepath.Dir(dropin))
		})
	}
	c.t, b.t = t, t
	for m, unit := range map[*machine]string{c: controllerUnit, b: balancerUnit} {
		m.run("systemctl daemon-reload; systemctl reset-failed " + unit + "; systemctl start " + unit)
		m.state(unit, "active")
	}
	c.shows(kubectl+"get configmap before", "before")
}

func removeAndPurge(t *testing.T, c, b *machine) {
	c.run("apt-get remove -y -q kthwd")
	c.run("test -e /var/lib/kubernetes/ca-key.pem -a -d /var/lib/kubernetes/etcd/member -a -e /etc/kthwd/controller.yaml -a ! -e /usr/bin/kthwd")
	if got := c.run("ps -C kthwd || true"); strings.Contains(got, "kthwd") {
		t.Errorf("it still runs:\n%s", got)
	}
	c.install(fresh)
	c.run("systemctl start " + controllerUnit)
	c.shows(kubectl+"get configmap before", "before")

	c.run("touch /var/lib/kubernetes/mine")
	out := c.run("apt-get purge -y -q kthwd")
	if !strings.Contains(out, "is not kthwd's: it stays") {
		t.Errorf("it does not say what stays:\n%s", out)
	}
	if left := c.run("find /var/lib/kubernetes /etc/kthwd /etc/default/kthwd /var/log/kthwd /var/log/kthwd-lb /lib/systemd/system/kthwd* /etc/systemd/system -name '*kthwd*' -o -path '/var/lib/kubernetes/*' 2>/dev/null || true"); strings.TrimSpace(left) != "/var/lib/kubernetes/mine" {
		t.Errorf("left after the purge:\n%s", left)
	}
	b.run("apt-get purge -y -q kthwd")
	b.run("test ! -e /var/lib/kthwd-lb -a ! -e /var/lib/kubernetes -a ! -e /run/kthwd-lb")
}
