package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// minorBefore is the version of the package that test/previous.sh makes of the last commit with the
// minors of Kubernetes and etcd before this one's.
const minorBefore = "0.8.0"

// What belongs to the step from Kubernetes 1.36 to 1.37 and etcd 3.6 to 3.7: a setting that the first
// takes and the second refuses, and the new minor of etcd.
const (
	goneSetting = `kube-apiserver-arg: ["feature-gates=GangScheduling=false"]`
	newEtcd     = "3.7"
)

// TestMinor takes three controllers to another minor of Kubernetes and etcd, and one of them back, with
// apt alone: one after the other, and not against the new version's check.
func TestMinor(t *testing.T) {
	if os.Getenv("KTHWD_MINOR") == "" {
		t.Skip("minutes on three machines: make test-upgrade; TestRollingUpgrade has the same without packages")
	}
	deb := filepath.Join(os.Getenv(packagesEnv), "kthwd_"+minorBefore+"-1_amd64.deb")
	if _, err := os.Stat(deb); err != nil {
		t.Fatalf("%v: make test-upgrade makes it", err)
	}
	all := minorMachines(t, deb)
	m0, m1, m2 := all[0], all[1], all[2]
	process := m1.property(controllerUnit, "MainPID")
	if out := m0.upgradeTo(fresh); !strings.Contains(out, restarted) {
		t.Errorf("the first one does not say what it did:\n%s", out)
	}
	m0.shows("kthwd status", "kthwd v"+fresh, "3 of 3 members active", "\nready")
	m0.shows("kthwd upgrade status", "not all controllers are new yet", "to go on: upgrade c1, then c2")

	out := m1.upgradeTo(fresh)
	for _, want := range []string{"kthwd: the controller goes on with the old version: the upgrade must wait: configuration: ", "GangScheduling", "; then: systemctl restart " + controllerUnit} {
		if !strings.Contains(out, want) {
			t.Errorf("against the check: it does not say %q:\n%s", want, out)
		}
	}
	if now := m1.property(controllerUnit, "MainPID"); now != process {
		t.Errorf("against the check: the controller was process %s and is %s", process, now)
	}
	m1.shows("kthwd status", "kthwd v"+minorBefore, "3 of 3 members active", "\nready")
	m1.run("sed -i '/GangScheduling/d' /etc/kthwd/controller.yaml && systemctl restart " + controllerUnit)
	m1.shows("kthwd status", "kthwd v"+fresh, "3 of 3 members active", "\nready")
	if out := m2.upgradeTo(fresh); !strings.Contains(out, restarted) {
		t.Errorf("the last one does not say what it did:\n%s", out)
	}
	m2.shows("kthwd upgrade status", "all controllers are new, and it is not finished")
	oneMinorBack(m0)
	finishMinor(all)
}

const restarted = "kthwd: the controller was restarted and is ready"

// upgradeTo installs a version as an administrator does who has edited the settings.
func (m *machine) upgradeTo(version string) string {
	m.t.Helper()
	return m.run("apt-get install -y -q --allow-downgrades -o Dpkg::Options::=--force-confold ./kthwd_" + version + "-1_amd64.deb")
}

// oneMinorBack: the package of before is refused until kthwd upgrade back, and then serves.
func oneMinorBack(m *machine) {
	m.t.Helper()
	const again = "apt-get install -y -q --allow-downgrades -o Dpkg::Options::=--force-confold ./kthwd_" + minorBefore + "-1_amd64.deb"
	kthwtest.WaitFor(m.t, "the record to refuse the older minor", kthwtest.Soon, func() error {
		_, err := m.try("grep -q '^  \"etcd\": \"" + newEtcd + "' /var/lib/kubernetes/member.json")
		return err
	})
	if out := m.fails(again); !strings.Contains(out, "there is no way back to an older minor") {
		m.t.Errorf("the older package:\n%s", out)
	} else if !strings.Contains(out, "run kthwd upgrade back") {
		m.t.Errorf("the older package does not say what to do:\n%s", out)
	}
	m.run("kthwd upgrade back")
	if out := m.run(again); !strings.Contains(out, restarted) {
		m.t.Errorf("after kthwd upgrade back:\n%s", out)
	}
	m.shows("kthwd status", "kthwd v"+minorBefore, "3 of 3 members active", "\nready")
	m.run(m.kubectl() + "get configmap by-old")
	m.upgradeTo(fresh)
	m.shows("kthwd status", "kthwd v"+fresh, "3 of 3 members active", "\nready")
	m.run("kthwd upgrade back --cancel")
}

// finishMinor ends the upgrade, and restarts each controller.
func finishMinor(all []*machine) {
	m := all[0]
	m.t.Helper()
	kthwtest.WaitFor(m.t, "kthwd upgrade finish", kthwtest.Soon, func() error {
		_, err := m.try("kthwd upgrade finish")
		return err
	})
	for _, m := range all {
		m.run("systemctl restart " + controllerUnit)
		m.shows("kthwd status", "3 of 3 members active", "\nready")
	}
	m.shows("kthwd upgrade status", "none is under way")
	for _, m := range all {
		m.run(m.kubectl() + "get configmap by-old")
	}
}

// kubectl asks the API server of this machine; there is no load balancer here.
func (m *machine) kubectl() string { return kubectl + "--server=https://" + m.address + ":6443 " }

// minorMachines are three controllers of the version before, the second of which has a setting that
// the next one refuses.
func minorMachines(t *testing.T, deb string) (all []*machine) {
	t.Helper()
	names := []string{"minor0", "minor1", "minor2"}
	addresses := map[string]string{names[0]: "10.0.1.73", names[1]: "10.0.1.35", names[2]: "10.0.1.36"}
	nets := bridged(t, addresses)
	for _, name := range names {
		m := start(t, name, nets[name])
		m.address = addresses[name]
		host(t, "cp", "--reflink=auto", deb, filepath.Join(m.root, "root"))
		all = append(all, m)
	}
	for i, m := range all {
		m.booted()
		m.run("apt-get install -y -q ./kthwd_" + minorBefore + "-1_amd64.deb")
		if i == 0 {
			m.run("kthwd pki init --controllers=c0=10.0.1.73,c1=10.0.1.35,c2=10.0.1.36 --lb=10.0.1.48 --out=cluster")
		} else {
			host(t, "cp", "-a", filepath.Join(all[0].root, "root/cluster"), filepath.Join(m.root, "root"))
		}
		from := "cluster/c" + string(rune('0'+i))
		m.run("cp " + from + "/*.pem " + from + "/*.yaml " + from + "/*.kubeconfig /var/lib/kubernetes/ && chown --recursive kthwd: /var/lib/kubernetes && " +
			"sed 's,^data-dir: .*,data-dir: /var/lib/kubernetes,' " + from + "/kthwd.yaml > /etc/kthwd/controller.yaml")
		if i == 1 {
			m.run("echo '" + goneSetting + "' >> /etc/kthwd/controller.yaml")
		}
		m.run("systemctl enable --now --no-block kthwd-controller")
	}
	for _, m := range all {
		m.shows("kthwd status", "kthwd v"+minorBefore, "3 of 3 members active", "\nready")
	}
	all[0].shows(all[0].kubectl()+"create configmap by-old", "by-old")
	return all
}
