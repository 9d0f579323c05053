package fault

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kthwd/test/kthwtest"
)

// TestAllAddressesWithoutIPv6 binds :: on a machine whose IPv6 is off: kthwd's own clients
// use the family that is there, and others reach every port. The machine is a namespace, so its
// ports are its own.
func TestAllAddressesWithoutIPv6(t *testing.T) {
	kthwtest.Turn(t, 1)
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	status, health := fmt.Sprintf("--metrics-address=[::]:%d", ports.Metrics), fmt.Sprintf("--health-address=[::]:%d", ports.Health)
	c := kthwtest.Start(t, kthwtest.Options{NoWait: true, Ports: &ports, Args: []string{"--bind-address=::", status, health}, Wrap: []string{"unshare", "-n", "sh", "-c",
		`ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && exec "$@"`, "sh"}})
	kthwtest.WaitFor(t, "all components", soon, func() error {
		if c.Exited() {
			t.Fatalf("ended:\n%s", c.Log.Tail(20))
		}
		if log := c.Log.String(); !strings.Contains(log, "all ready") {
			return errors.New("not ready")
		}
		return nil
	})
	if server := c.RESTConfig(t).Host; !strings.HasPrefix(server, "https://127.0.0.1:") {
		t.Errorf("admin.kubeconfig: got the server %s, want one of IPv4", server)
	}
	within(t, c.Cmd.Process.Pid, func() error {
		page := fmt.Sprintf("http://localhost:%d", ports.Metrics) // as the log has it
		out, err := exec.Command(kthwtest.Binary(t), "status", "--config=", "--server="+page).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "kube-apiserver") || !strings.Contains(c.Log.String(), page) {
			return fmt.Errorf("kthwd status --server=%s: got %v, %s", page, err, out)
		}
		for _, port := range []int{ports.Health, ports.Metrics} {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return err
			}
			defer conn.Close()
			fmt.Fprint(conn, "GET /healthz HTTP/1.0\r\n\r\n")
			if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 ") {
				return fmt.Errorf("port %d: got %v, %q", port, err, answer)
			}
		}
		return nil
	})
	stop(t, c, syscall.SIGTERM, 0)
}

// within calls do in the network namespace of a process.
func within(t *testing.T, pid int, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			defer namespace.Close()
			err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
