package attack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/lbtest"
)

// networkEnv is set in a process whose network is the tests' own.
const networkEnv = "KTHWD_ATTACK_NETWORK"

// machine is a place from which a test connects: a network with an address of its own, or, without
// root, loopback.
type machine struct {
	address string
	*lbtest.Namespace
}

// The machines of all tests. The controllers are in the network of the test itself.
var (
	here     = "127.0.0.1"                     // a controller's address
	second   = machine{address: "127.0.81.2"}  // of a controller that joins
	attacker = machine{address: "127.0.81.99"} // of the attacker, over the network
)

func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch {
	case os.Geteuid() != 0: // all is on loopback
	case os.Getenv(networkEnv) == "":
		code, err = runOnOwnNetwork()
		if err == nil {
			os.Exit(code)
		}
	default:
		err = connect()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the attacks do not come over a network:", err)
		if os.Getenv("KTHWD_NO_SKIP") != "" {
			os.Exit(1)
		}
	}
	os.Exit(shared.Run(m))
}

// runOnOwnNetwork runs these tests in a new network, which ends with them.
func runOnOwnNetwork() (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), networkEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal belongs to the thread
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil // a signal has no code
	}
	return 0, err
}

// connect puts the controllers, the one that joins and the attacker on one bridge.
func connect() error {
	const own = "10.77.0.1"
	joins, attacks := machine{address: "10.77.0.2"}, machine{address: workersAddress}
	err := errors.Join(ip("link set lo up"), ip("link add br0 type bridge mcast_snooping 0"), ip("address add "+own+"/24 dev br0"), ip("link set br0 up"),
		ip("route add default via 10.77.0.254")) // verbs find this machine's address by it; nobody is there
	for port, m := range map[string]*machine{"v0": &joins, "v1": &attacks} {
		n, failed := lbtest.OpenNamespace()
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		m.Namespace = n
		err = errors.Join(ip("link add "+port+" type veth peer name eth0 netns "+n.Path()), ip("link set "+port+" master br0 up"))
		n.Do(func() { err = errors.Join(err, ip("address add "+m.address+"/24 dev eth0"), ip("link set eth0 up")) })
	}
	if err == nil {
		here, second, attacker = own, joins, attacks
	}
	return err
}

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// apart reports whether the machine has a network of its own.
func (m machine) apart() bool { return m.Namespace != nil }

// source is the address that a controller sees.
func (m machine) source() string {
	if !m.apart() {
		return "127.0.0.1"
	}
	return m.address
}

// dial is for http.Transport: connections are the machine's.
func (m machine) dial(ctx context.Context, _, address string) (net.Conn, error) {
	return m.Dial(ctx, address)
}

// wrap is put before a command line that runs on the machine.
func (m machine) wrap() []string {
	if !m.apart() {
		return nil
	}
	return []string{"nsenter", "--net=" + m.Path()}
}

// The attacker is not where the controllers are: one listens on loopback, and the attacker does
// not reach it. Without this the other tests would show nothing about a network.
func TestAttackerIsElsewhere(t *testing.T) {
	if !attacker.apart() {
		t.Skip("needs root, for a network of its own")
	}
	for address, want := range map[string]bool{"127.0.0.1:0": false, net.JoinHostPort(here, "0"): true} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := attacker.Dial(t.Context(), l.Addr().String())
		if (err == nil) != want {
			t.Errorf("%s: got %v, want it reached: %t", l.Addr(), err, want)
		}
		if err != nil {
			continue
		}
		defer conn.Close()
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if host, _, _ := net.SplitHostPort(peer.RemoteAddr().String()); host != attacker.address {
			t.Errorf("the attacker comes from %s, want %s", host, attacker.address)
		}
	}
}
