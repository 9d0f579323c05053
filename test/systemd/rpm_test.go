package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/names"
)

// TestRPM is the life of the RPM package: the scripts that it brings, in its own
// order, and what rpm keeps. The machine is a Debian, which has rpm but none of
// its packages: hence --nodeps and --force-debian.
func TestRPM(t *testing.T) {
	t.Parallel()
	m := boot(t, "kthwd-rpm", network(t, controllerAddress))
	const rpm = "rpm --force-debian --nodeps "
	first := filepath.Join(os.Getenv(packagesEnv), "kthwd-"+old+"-1.x86_64.rpm")
	host(t, "cp", first, later(t), filepath.Join(m.root, "root"))
	oldFile, freshFile := "./kthwd-"+old+"-1.x86_64.rpm", "./kthwd-"+fresh+"-1.x86_64.rpm"

	if out := m.fails("rpm --force-debian --install " + oldFile); !strings.Contains(out, "systemd >= 247 is needed by kthwd-"+old+"-1.x86_64") {
		t.Errorf("without systemd:\n%s", out)
	}
	before := files(m)
	if out := m.run(rpm + "--install " + oldFile); strings.Contains(strings.ToLower(out), "warning") || strings.Contains(out, "error") {
		t.Errorf("the installation:\n%s", out)
	}
	for _, unit := range []string{controllerUnit, balancerUnit, "kthwd-lb.socket"} {
		if got := m.property(unit, "ActiveState") + " " + m.property(unit, "UnitFileState"); got != "inactive disabled" {
			t.Errorf("%s: %s after the installation", unit, got)
		}
	}
	m.shows("getent passwd kthwd", "/usr/sbin/nologin")
	m.shows("stat --format '%a %U:%G' /etc/kthwd/controller.yaml /etc/kthwd/lb.yaml /etc/default/kthwd", "640 root:kthwd\n640 root:kthwd-lb\n640 root:root")
	m.shows("stat --format '%a %U:%G' /var/lib/kubernetes /var/log/kthwd /var/log/kthwd-lb", "700 kthwd:kthwd\n750 kthwd:kthwd\n750 kthwd-lb:kthwd-lb")
	if out := m.run("rpm --verify --nodeps kthwd"); out != "" {
		t.Errorf("rpm --verify:\n%s", out)
	}
	if got, want := strings.Fields(m.run("rpm --query --configfiles kthwd")), "/etc/default/kthwd /etc/kthwd/controller.yaml /etc/kthwd/lb.yaml /etc/logrotate.d/kthwd"; strings.Join(got, " ") != want {
		t.Errorf("settings: got %s, want %s", got, want)
	}
	if out := m.run("rpm --query --queryformat '[%{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:perms} %{FILENAMES}\n]' kthwd"); strings.Count(out, "root:root -rw-r--r-- ")+strings.Count(out, "root:root drwxr-xr-x ") != strings.Count(out, "\n")-5-len(names.All) ||
		strings.Count(out, " /usr/lib/kthwd/bin/") != len(names.All) ||
		!strings.Contains(out, "root:root -rw-r----- /etc/default/kthwd\n") ||
		!strings.Contains(out, "root:kthwd -rw-r----- /etc/kthwd/controller.yaml\nroot:kthwd-lb -rw-r----- /etc/kthwd/lb.yaml\n") ||
		!strings.Contains(out, "root:root -rwxr-xr-x /usr/bin/kthwd\n") || !strings.Contains(out, " /usr/lib/systemd/system/kthwd-lb.socket\n") {
		t.Errorf("files:\n%s", out)
	}

	m.shows("/usr/lib/kthwd/bin/kube-apiserver --version", "Kubernetes v")

	m.run("cat >> /etc/kthwd/controller.yaml <<'E'\n" + controllerYAML + "E")
	mine := m.run("cat /etc/kthwd/controller.yaml")
	m.run("systemctl enable --now " + controllerUnit)
	m.shows("kthwd status", "kthwd v"+old, "\nready")
	m.run(kubectl + "create configmap before")

	m.fails("systemctl start " + balancerUnit) // it has no backend yet
	m.state(balancerUnit, "failed")

	out := m.run(rpm + "--upgrade " + freshFile)
	m.state(balancerUnit, "failed") // and still restarted by the next upgrade
	for _, want := range []string{"kthwd: the controller was restarted and is ready", "/etc/kthwd/controller.yaml created as /etc/kthwd/controller.yaml.rpmnew"} {
		if !strings.Contains(out, want) {
			t.Errorf("the upgrade does not say %q:\n%s", want, out)
		}
	}
	m.state(controllerUnit, "active")
	m.shows("kthwd status", "kthwd v"+fresh, "\nready")
	m.shows(kubectl+"get configmap before", "before")
	if now := m.run("cat /etc/kthwd/controller.yaml"); now != mine {
		t.Errorf("the edited file is now:\n%s", now)
	}
	if text := m.run("cat /etc/kthwd/lb.yaml; ls /etc/kthwd"); !strings.Contains(text, changed) || strings.Contains(text, "lb.yaml.rpm") {
		t.Errorf("the file that nobody has edited is the old one:\n%s", text)
	}

	out = m.fails(rpm + "--upgrade --oldpackage " + oldFile)
	if !strings.Contains(out, "kthwd: error: /var/lib/kubernetes was last run with kthwd 0.10, and this package has 0.9") {
		t.Errorf("the refusal of a downgrade:\n%s", out)
	}
	m.shows("rpm --query kthwd && kthwd status", "kthwd-"+fresh+"-1.x86_64\n", "\nready")

	m.run(rpm + "--erase kthwd")
	if out := m.run("ps -C kthwd || true"); strings.Contains(out, "kthwd") {
		t.Errorf("it still runs:\n%s", out)
	}
	m.run("test -e /var/lib/kubernetes/ca-key.pem -a -d /var/lib/kubernetes/etcd/member && getent passwd kthwd")
	if got := m.run("cat /etc/kthwd/controller.yaml.rpmsave"); got != mine {
		t.Errorf("what is kept of the edited file:\n%s", got)
	}
	m.run("rm /etc/kthwd/controller.yaml.rpmsave /etc/kthwd/controller.yaml.rpmnew") // the directory stays for it
	if out := m.run("systemctl list-unit-files 'kthwd*' --no-legend || true"); out != "" {
		t.Errorf("units:\n%s", out)
	}
	if left := added(before, files(m)); left != "/etc/kthwd\n/var/lib/kthwd-lb\n/var/log/kthwd\n/var/log/kthwd-lb\n" {
		t.Errorf("left behind:\n%s", left)
	}
}

// changed is a line that the later package has in its settings.
const changed = "# changed in " + fresh

// later makes the package of the later version, with other settings than those of
// the one before.
func later(t *testing.T) string {
	t.Helper()
	dist, root, out := os.Getenv(packagesEnv), filepath.Join(t.TempDir(), "tree"), t.TempDir()
	host(t, "cp", "-a", filepath.Join(dist, "tree-rpm-amd64"), root)
	host(t, "cp", filepath.Join(dist, "bin-amd64/kthwd"), filepath.Join(root, "usr/bin/kthwd"))
	for _, name := range []string{"controller.yaml", "lb.yaml"} {
		host(t, "sh", "-c", `echo "$0" >> "$1"`, changed, filepath.Join(root, "etc/kthwd", name))
	}
	cmd := exec.Command(filepath.Join(dist, "tools/nfpm"), "-kind", "rpm", "-arch", "amd64", "-version", "v"+fresh, "-root", root, "-scripts", filepath.Join(dist, "scripts"), "-out", out)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return filepath.Join(out, "kthwd-"+fresh+"-1.x86_64.rpm")
}

// files are those of the system that have kthwd in their names.
func files(m *machine) string {
	m.t.Helper()
	return m.run("find / -xdev -path /var/lib/kubernetes -prune -o -path /root -prune -o -path /var/log/journal -prune -o -path '*kthwd*' -print | sort")
}

// added are the lines of after that before has not.
func added(before, after string) string {
	had := map[string]bool{}
	for line := range strings.Lines(before) {
		had[line] = true
	}
	var b strings.Builder
	for line := range strings.Lines(after) {
		if !had[line] {
			b.WriteString(line)
		}
	}
	return b.String()
}
