package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// TestInstall runs the commands of docs/install.md, in order, each block on the
// machines that the comment above it names; the packages are then upgraded.
func TestInstall(t *testing.T) {
	t.Parallel() // with TestRPM, when TestDebian, where times matter, is over
	text, err := os.ReadFile(filepath.Join(kthwtest.Root(), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	machines := installed(t)
	for _, b := range installBlocks(t, string(text)) {
		for _, name := range b.on {
			for _, c := range b.commands {
				command := strings.ReplaceAll(c.text, "cluster/c0", "cluster/"+name)
				t.Logf("%s: $ %s", name, command)
				machines[name].prints(command, c.want)
			}
		}
		share(t, machines)
	}
	upgradesInTurn(t, machines)
}

const upgradePackage = "apt-get install -y -q ./upgrade/kthwd_" + fresh + "-1_amd64.deb"

// upgradesInTurn: a controller that the others cannot do without keeps the old
// version, and the package says so. When all are there, each is restarted in its
// turn, and requests through the load balancer are always answered.
func upgradesInTurn(t *testing.T, machines map[string]*machine) {
	c0, c1, c2, lb := machines["c0"], machines["c1"], machines["c2"], machines["lb"]
	begun := time.Now()
	lb.write("/root/ask", `n=0
while sleep 0.5 && [ ! -e enough ]; do
	n=$((n + 1))
	kubectl --kubeconfig cluster/c0/admin.kubeconfig create configmap asked-$n >>answered 2>>refused
done
exit 0
`)
	lb.run("systemd-run --unit=ask --working-directory=/root bash ask")
	lb.shows("cat answered", "asked-1 created")

	c2.run("systemctl stop " + controllerUnit)
	c0.shows("kthwd status", "2 of 3 members active")
	process := c0.property(controllerUnit, "MainPID")
	out := c0.run(upgradePackage)
	const advice = "systemctl restart " + controllerUnit
	if want := "kthwd: the controller goes on with the old version, for without it there is no quorum (2 of 3 active); once the others are back: " + advice; !strings.Contains(out, want) {
		t.Errorf("with one of three down it does not say %q:\n%s", want, out)
	}
	if now := c0.property(controllerUnit, "MainPID"); now != process {
		t.Errorf("with one of three down it was restarted: process %s, before %s", now, process)
	}
	c0.shows("kthwd status", "kthwd v"+old)
	c0.run(kubectl + "create configmap two-of-three")

	// One that is stopped stays so.
	if out := c2.run(upgradePackage); strings.Contains(out, "restarted") {
		t.Errorf("a stopped one:\n%s", out)
	}
	c2.state(controllerUnit, "inactive")
	c2.run("systemctl start " + controllerUnit)
	c0.shows("kthwd status", "3 of 3 members active", "\nready")
	c0.run(advice)
	c0.shows("kthwd status", "kthwd v"+fresh, "3 of 3 members active", "\nready")

	if out := c1.run(upgradePackage); !strings.Contains(out, "kthwd: the controller was restarted and is ready") {
		t.Errorf("with all there it does not say what it did:\n%s", out)
	}
	c1.shows("kthwd status", "kthwd v"+fresh, "3 of 3 members active", "\nready")
	if out := lb.run(upgradePackage); !strings.Contains(out, "has handed its connections over") {
		t.Errorf("the load balancer:\n%s", out)
	}
	lb.run("touch enough") // a kubectl that is killed may have created its configmap, and says nothing
	lb.state("ask", "inactive")
	refused, asked := lb.run("cat refused"), strings.Count(lb.run("cat answered"), "created")
	t.Logf("upgrade in turn: %v, %d configmaps created through the load balancer meanwhile", time.Since(begun).Round(time.Second), asked)
	if refused != "" {
		t.Errorf("not answered:\n%s", refused)
	}
	if got := len(strings.Fields(c2.run(kubectl + "get configmaps --output=name | grep asked-"))); got != asked {
		t.Errorf("there are %d configmaps, %d were created", got, asked)
	}
}

// installed are the machines of the page, each with the package and, where there is
// none to be installed, with what make install puts there.
func installed(t *testing.T) map[string]*machine {
	t.Helper()
	nets := bridged(t, map[string]string{"one": "10.0.1.10", "c0": "10.0.1.73", "c1": "10.0.1.35", "c2": "10.0.1.36", "lb": "10.0.1.48", "bare": "10.0.1.11"})
	machines := map[string]*machine{}
	for name, ns := range nets {
		machines[name] = start(t, name, ns)
	}
	for name, m := range machines {
		m.booted()
		m.run("mkdir upgrade && mv kthwd_" + fresh + "-1_amd64.deb upgrade")
		if name == "bare" {
			host(t, "make", "-s", "-C", kthwtest.Root(), "install", "DESTDIR="+m.root, "VERSION=v"+fresh)
		}
	}
	return machines
}

// share copies cluster, once it is there, to the machines that lack it, as a person
// does by scp.
func share(t *testing.T, machines map[string]*machine) {
	t.Helper()
	from := filepath.Join(machines["c0"].root, "root", "cluster")
	if _, err := os.Stat(from); err != nil {
		return
	}
	for _, name := range []string{"c1", "c2", "lb"} {
		if _, err := os.Stat(filepath.Join(machines[name].root, "root", "cluster")); err != nil {
			host(t, "cp", "-a", from, filepath.Join(machines[name].root, "root"))
		}
	}
}

// bridged makes a network namespace with an address for each machine, and a bridge
// between them.
func bridged(t *testing.T, addresses map[string]string) map[string]string {
	t.Helper()
	hub := fmt.Sprintf("kthwd-hub-%d-%d", os.Getpid(), networks.Add(1))
	names := map[string]string{}
	netns := func(name string) {
		host(t, "ip", "netns", "add", name)
		t.Cleanup(func() { host(t, "ip", "netns", "delete", name) })
		host(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	netns(hub)
	host(t, "ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
	host(t, "ip", "-n", hub, "link", "set", "bridge", "up")
	for machine, address := range addresses {
		name := fmt.Sprintf("kthwd-%s-%d", machine, os.Getpid())
		netns(name)
		host(t, "ip", "-n", hub, "link", "add", "to-"+machine, "type", "veth", "peer", "name", "host0", "netns", name)
		host(t, "ip", "-n", hub, "link", "set", "to-"+machine, "master", "bridge", "up")
		host(t, "ip", "-n", name, "address", "add", address+"/24", "dev", "host0")
		host(t, "ip", "-n", name, "link", "set", "host0", "up")
		host(t, "ip", "-n", name, "route", "add", "default", "via", "10.0.1.1")
		names[machine] = "/run/netns/" + name
	}
	return names
}

type installBlock struct {
	on       []string
	commands []installCommand
}

type installCommand struct {
	text string
	want []string
}

var onMachines = regexp.MustCompile(`^<!-- on: ([a-z0-9 ]+) -->$`)

func installBlocks(t *testing.T, text string) (all []installBlock) {
	t.Helper()
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] != "```console" {
			continue
		}
		m := onMachines.FindStringSubmatch(lines[i-1])
		if m == nil {
			t.Fatalf("docs/install.md:%d: no comment says on which machines", i+1)
		}
		b := installBlock{on: strings.Fields(m[1])}
		for i++; lines[i] != "```"; i++ {
			if command, is := strings.CutPrefix(lines[i], "$ "); is {
				b.commands = append(b.commands, installCommand{text: command})
			} else if last := &b.commands[len(b.commands)-1]; strings.Trim(lines[i], " …") != "" {
				last.want = append(last.want, lines[i])
			}
		}
		all = append(all, b)
	}
	if len(all) < 7 {
		t.Fatalf("docs/install.md: got %d blocks", len(all))
	}
	return all
}

// prints runs a command, again where it looks at something that is on its way, until
// it prints the wanted lines in order; "…" stands for anything.
func (m *machine) prints(command string, want []string) {
	m.t.Helper()
	if len(want) == 0 {
		m.run(command)
		return
	}
	kthwtest.WaitFor(m.t, m.name+": "+command, kthwtest.Soon, func() error {
		out, err := m.try(command)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		rest := out
		for _, line := range want {
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.Join(strings.Fields(line), " ")), "…", ".*")
			at := regexp.MustCompile(`(?m)^\s*` + strings.ReplaceAll(pattern, " ", `\s+`)).FindStringIndex(rest)
			if at == nil {
				return fmt.Errorf("it lacks %q:\n%s", line, out)
			}
			rest = rest[at[1]:]
		}
		return nil
	})
}
