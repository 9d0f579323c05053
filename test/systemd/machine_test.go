// Package systemd runs the packages on Debian machines that systemd boots
// (systemd-nspawn), and checks what a user may expect: start and stop of the units,
// watchdog, reboot, upgrade, downgrade, remove, purge, the messages for bad input, and
// the commands of docs/install.md.
//
// KTHWD_SYSTEMD names the directory with the packages; make test-systemd makes
// them. It needs root, systemd-container and debootstrap. The tree that debootstrap
// makes is kept in KTHWD_DEBIAN, or in the user's cache directory. KTHWD_SUITE=trixie
// takes another Debian than bookworm.
package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// packagesEnv names the directory with the packages.
const packagesEnv = "KTHWD_SYSTEMD"

// old and fresh are the versions of the packages, the same kthwd in both.
const old, fresh = "0.9.0", "0.10.0"

// included is what the machine has beside Debian's minimum.
const included = "systemd,systemd-sysv,dbus,iproute2,procps,ca-certificates,curl,logrotate,bash-completion,rpm"

func TestMain(m *testing.M) {
	if os.Getenv(packagesEnv) == "" {
		fmt.Println("skipped: needs the packages of make test-systemd")
		return
	}
	os.Exit(m.Run())
}

var making sync.Mutex

// debian is the tree that machines are copies of.
func debian(t *testing.T) string {
	t.Helper()
	making.Lock()
	defer making.Unlock()
	dir := os.Getenv("KTHWD_DEBIAN")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			cache = os.TempDir()
		}
		dir = filepath.Join(cache, "kthwd-test")
	}
	suite := "bookworm"
	if s := os.Getenv("KTHWD_SUITE"); s != "" {
		suite = s
	}
	tree, stamp := filepath.Join(dir, suite), filepath.Join(dir, suite+".has")
	if had, err := os.ReadFile(stamp); err == nil && string(had) == included {
		return tree
	}
	if err := errors.Join(os.RemoveAll(tree), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	out, err := exec.Command("debootstrap", "--variant=minbase", "--include="+included, suite, tree).CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, tail(string(out), 20))
	}
	t.Logf("debootstrap took %v", time.Since(begun).Round(time.Second))
	if err := os.WriteFile(stamp, []byte(included), 0o644); err != nil {
		t.Fatal(err)
	}
	return tree
}

// networks is how many this process has made.
var networks atomic.Int32

// network is a network namespace that machines share, so that they reach one
// another at the addresses of its loopback and nothing else reaches them.
func network(t *testing.T, addresses ...string) string {
	t.Helper()
	name := fmt.Sprintf("kthwd-systemd-%d-%d", os.Getpid(), networks.Add(1))
	host(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() })
	host(t, "ip", "-n", name, "link", "set", "lo", "up")
	for _, a := range addresses {
		host(t, "ip", "-n", name, "address", "add", a+"/32", "dev", "lo")
	}
	return "/run/netns/" + name
}

func host(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// machine is a Debian that systemd has booted.
type machine struct {
	t       *testing.T
	name    string
	root    string
	network string
	address string // where a test wants it
	nspawn  atomic.Pointer[exec.Cmd]
	gone    chan struct{} // closed when nspawn has ended
	end     error         // why, once gone is closed
	log     kthwtest.Log
}

// boot makes a machine, starts it and waits for it.
func boot(t *testing.T, name, network string) *machine {
	t.Helper()
	m := start(t, name, network)
	m.booted()
	return m
}

// start is boot that does not wait.
func start(t *testing.T, name, network string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, root: filepath.Join(t.TempDir(), "root"), gone: make(chan struct{})}
	clone(t, debian(t), m.root)
	for _, deb := range []string{old, fresh} {
		file := "kthwd_" + deb + "-1_amd64.deb"
		host(t, "cp", "--reflink=auto", filepath.Join(os.Getenv(packagesEnv), file), filepath.Join(m.root, "root", file))
	}
	host(t, "install", "-m", "0755", kthwtest.Kubectl(t), filepath.Join(m.root, "usr/local/bin/kubectl"))
	m.network = network
	m.plugIn()
	go m.power()
	t.Cleanup(m.off)
	return m
}

// clone gives a machine a tree of its own: a layer over the common one, or a copy
// where the file system cannot have layers.
func clone(t *testing.T, tree, root string) {
	t.Helper()
	upper, work := root+"-upper", root+"-work"
	for _, dir := range []string{root, upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", tree, upper, work)
	if exec.Command("mount", "-t", "overlay", "overlay", "-o", options, root).Run() != nil {
		host(t, "cp", "-a", "--reflink=auto", tree+"/.", root)
		return
	}
	t.Cleanup(func() { host(t, "umount", "--lazy", root) })
}

// ownGroups are the trees of control groups, of both versions, where there are any.
var ownGroups = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/memory"}

// ownGroup runs a command in control groups of its own: two machines must not find
// each other's units in theirs.
var ownGroup = `
for top in ` + strings.Join(ownGroups, " ") + `; do
	[ -e $top/cgroup.procs ] || continue
	mkdir -p $top/$0 && echo $$ > $top/$0/cgroup.procs
done
exec "$@"`

// group is the name of the machine's control groups and of the machine in nspawn, where
// a name is unique among all users.
func (m *machine) group() string { return fmt.Sprintf("%s-%d", m.name, os.Getpid()) }

// limitMemory is memory that is taken out of the machine while it runs. It returns
// what puts it back.
func (m *machine) limitMemory(bytes uint64) (undo func()) {
	m.t.Helper()
	for file, none := range map[string]string{
		"/sys/fs/cgroup/memory/" + m.group() + "/memory.limit_in_bytes": "-1",
		"/sys/fs/cgroup/" + m.group() + "/memory.max":                   "max",
	} {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		set := func(limit string) {
			if err := os.WriteFile(file, []byte(limit), 0o644); err != nil {
				m.t.Error(err)
			}
		}
		set(strconv.FormatUint(bytes, 10))
		return func() { set(none) }
	}
	m.t.Fatal("this machine has no control groups for memory")
	return nil
}

// plugIn starts nspawn.
func (m *machine) plugIn() {
	cmd := exec.Command("sh", "-c", ownGroup, m.group(), "systemd-nspawn", "--quiet", "--boot", "--directory="+m.root, "--machine="+m.group(), "--register=no",
		"--keep-unit", "--network-namespace-path="+m.network, "--console=pipe", "--link-journal=no", "systemd.unit=multi-user.target")
	cmd.Stdout, cmd.Stderr = &m.log, &m.log
	if err := cmd.Start(); err != nil {
		m.t.Error(err)
	}
	m.nspawn.Store(cmd)
}

// power waits for nspawn, and starts it again when its machine wants a reboot.
func (m *machine) power() {
	defer close(m.gone)
	const reboot = 133
	for {
		var exit *exec.ExitError
		if err := m.nspawn.Load().Wait(); !errors.As(err, &exit) || exit.ExitCode() != reboot {
			m.end = err
			return
		}
		m.plugIn()
	}
}

// off cuts the machine's power.
func (m *machine) off() {
	if m.t.Failed() {
		for _, unit := range []string{"kthwd-controller", "kthwd-lb"} {
			out, _ := m.try("journalctl --no-pager -o short-precise -n 60 -u " + unit)
			m.t.Logf("%s: %s\n%s", m.name, unit, out)
		}
	}
	_ = m.nspawn.Load().Process.Signal(syscall.SIGTERM) // nspawn then ends its machine at once
	select {
	case <-m.gone:
	case <-time.After(20 * time.Second):
		_ = m.nspawn.Load().Process.Kill()
		<-m.gone
	}
	for _, top := range ownGroups {
		_ = exec.Command("find", top+"/"+m.group(), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run() // what is in use stays
	}
}

// init is the process number of the machine's systemd, 0 when there is none.
func (m *machine) init() int {
	pid := m.nspawn.Load().Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for _, field := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(field); err == nil {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n)); err == nil && strings.HasSuffix(exe, "/systemd") {
				return n
			}
		}
	}
	return 0
}

func (m *machine) booted() {
	m.t.Helper()
	kthwtest.WaitFor(m.t, m.name+" to boot", kthwtest.Soon, func() error {
		select {
		case <-m.gone:
			m.t.Fatalf("%s: nspawn has ended: %v\n%s", m.name, m.end, m.log.Tail(10))
		default:
		}
		out, _ := m.try("systemctl is-system-running")
		if s := strings.TrimSpace(out); s != "running" && s != "degraded" {
			return fmt.Errorf("%s\n%s", s, m.log.Tail(10))
		}
		return nil
	})
}

// try runs a command line on the machine.
func (m *machine) try(command string) (string, error) {
	pid := m.init()
	if pid == 0 {
		return "", errors.New("it is off")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd",
		"env", "-i", "-C", "/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"bash", "-c", command)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	return b.String(), err
}

// run is try that must succeed.
func (m *machine) run(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, command, err, out)
	}
	return out
}

// fails is try that must not succeed.
func (m *machine) fails(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	if err == nil {
		m.t.Fatalf("%s: %s: it succeeded\n%s", m.name, command, out)
	}
	return out
}

// shows runs a command until its output has all of want.
func (m *machine) shows(command string, want ...string) string {
	m.t.Helper()
	var out string
	kthwtest.WaitFor(m.t, m.name+": "+command, kthwtest.Soon, func() error {
		var err error
		out, err = m.try(command)
		for _, w := range want {
			if !strings.Contains(out, w) {
				return errors.Join(fmt.Errorf("it lacks %q:\n%s", w, out), err)
			}
		}
		return nil
	})
	return out
}

// write puts a file onto the machine.
func (m *machine) write(path, text string) {
	m.t.Helper()
	file := filepath.Join(m.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

// property is one of a unit's.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl show --property=" + name + " --value " + unit))
}

// state waits until a unit is in a state, such as active or failed.
func (m *machine) state(unit, want string) {
	m.t.Helper()
	kthwtest.WaitFor(m.t, m.name+": "+unit+" to be "+want, kthwtest.Soon, func() error {
		out, err := m.try("systemctl show --property=ActiveState --value " + unit)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(out); got != want {
			status, _ := m.try("systemctl status --no-pager " + unit)
			return fmt.Errorf("it is %s\n%s", got, status)
		}
		return nil
	})
}

func (m *machine) install(version string) string {
	m.t.Helper()
	return m.run("apt-get install -y -q --allow-downgrades ./kthwd_" + version + "-1_amd64.deb")
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
