package fault

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// TestAllAddressesWithoutIPv6 binds :: on a machine whose IPv6 is off: kthwd's own clients
// use the family that is there. The machine is a namespace, so its ports are its own.
func TestAllAddressesWithoutIPv6(t *testing.T) {
	kthwtest.Turn(t, 1)
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	c := kthwtest.Start(t, kthwtest.Options{NoWait: true, Args: []string{"--bind-address=::"}, Wrap: []string{"unshare", "-n", "sh", "-c",
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
	stop(t, c, syscall.SIGTERM, 0)
}
