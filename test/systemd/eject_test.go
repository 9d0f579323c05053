package systemd

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

var ejectedUnits = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// TestEject follows the README.txt of kthwd eject to four units, and back, and adopts the units. The machine has no
// network, so the steps of nginx are left out; test/eject has them.
func TestEject(t *testing.T) {
	t.Parallel() // with TestInstall, when TestDebian, where times matter, is over
	m := boot(t, "kthwd-eject", network(t, controllerAddress))
	m.install(fresh)
	m.run("cat >> /etc/kthwd/controller.yaml <<'E'\n" + controllerYAML + "E")
	m.run("systemctl enable --now " + controllerUnit)
	m.run(kubectl + "create namespace shop && " + kubectl + "create --namespace=shop secret generic password --from-literal=is=swordfish")
	m.shows(kubectl+"get --namespace=shop serviceaccounts", "default")
	m.run(kubectl + "create token --namespace=shop default > token")
	uids := kubectl + "get namespaces,secrets,serviceaccounts,clusterroles --all-namespaces --output=jsonpath='{range .items[*]}{.metadata.uid}{\"\\n\"}{end}'"
	before := m.run(uids)

	m.run("kthwd eject --running --config=/etc/kthwd/controller.yaml --names=kthwd --out=ejected")
	steps, back := readmeCommands(t, m.run("cat ejected/README.txt"))
	began := time.Now()
	for _, c := range steps {
		if strings.HasSuffix(c, " get componentstatuses") {
			m.shows(c, "etcd-0", "scheduler", "controller-manager")
			continue
		}
		m.run(c)
	}
	t.Logf("the steps took %v", time.Since(began).Round(100*time.Millisecond))
	m.state(controllerUnit, "inactive")
	for _, unit := range ejectedUnits {
		m.state(unit+".service", "active")
		if got := strings.TrimSpace(m.run("ps -o user= -p " + m.property(unit+".service", "MainPID"))); got != "kthwd" {
			t.Errorf("%s runs as %s, want the owner of the data directory", unit, got)
		}
	}
	check := func(when string) {
		t.Helper()
		after := m.run(uids)
		for uid := range strings.FieldsSeq(before) {
			if !strings.Contains(after, uid) {
				t.Errorf("%s: the object with the UID %s is gone", when, uid)
			}
		}
		m.shows(kubectl+"get --namespace=shop secret password --output=jsonpath='{.data.is}' | base64 -d", "swordfish")
		m.shows("kubectl --server=https://"+controllerAddress+":6443 --certificate-authority=/var/lib/kubernetes/ca.pem --token=$(cat token) auth whoami", "system:serviceaccount:shop:default")
		m.run(kubectl + "create --namespace=shop deployment " + when + " --image=web")
		m.shows(kubectl+"get --namespace=shop pods", when+"-")
	}
	check("ejected")

	began = time.Now()
	for _, c := range back {
		began := time.Now()
		m.run(c)
		t.Logf("%v: %s", time.Since(began).Round(100*time.Millisecond), c)
	}
	for _, unit := range ejectedUnits {
		if got := m.property(unit+".service", "Result"); got != "success" {
			t.Errorf("the stop of %s ended with %s:\n%s", unit, got, m.run("journalctl --no-pager -o short-precise -n 40 -u "+unit))
		}
	}
	t.Logf("the way back took %v", time.Since(began).Round(100*time.Millisecond))
	m.shows("kthwd status", "\nready")
	check("returned")

	// Neither can run beside the other.
	m.run("systemctl start etcd")
	m.state(controllerUnit, "inactive")
	m.run("systemctl start " + controllerUnit)
	m.state("etcd.service", "inactive")
	m.shows("kthwd status", "\nready")

	began = time.Now()
	adoptsUnits(t, m)
	check("adopted")
	t.Logf("the adoption took %v", time.Since(began).Round(100*time.Millisecond))
}

// readmeCommands are the commands of README.txt, without those of nginx: the steps, and the
// way back.
func readmeCommands(t *testing.T, text string) (steps, back []string) {
	t.Helper()
	to := &steps
	nginx := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case regexp.MustCompile(`^\d+\. `).MatchString(line):
			nginx = strings.Contains(line, "nginx")
		case line == "The way back":
			to, nginx = &back, false
		case strings.HasPrefix(line, "    ") && !nginx && !strings.Contains(line, "nginx"):
			*to = append(*to, strings.TrimSpace(line))
		}
	}
	if len(steps) < 8 || len(back) != 2 {
		t.Fatalf("README.txt has %d commands and %d back:\n%s", len(steps), len(back), text)
	}
	return steps, back
}
