package kthwtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The ports that FreePorts returns: below those that the kernel uses for outgoing
// connections (32768 and up), so that no connection takes one before its server
// listens.
const firstPort, lastPort = 20000, 32000

// FreePorts returns ports on which nothing listens. No other test of this user gets one
// of them until all other ports have been used: a file, which parallel test binaries
// lock, stores the last port returned.
func FreePorts(t testing.TB, address string) Ports {
	t.Helper()
	var p Ports
	wanted := []*int{&p.Secure, &p.EtcdClient, &p.EtcdPeer, &p.ControllerManager, &p.Scheduler, &p.Health, &p.Metrics, &p.Join}
	found, err := freePorts(address, len(wanted))
	if err != nil {
		t.Fatalf("free ports of %s: %v", address, err)
	}
	for i, port := range wanted {
		*port = found[i]
	}
	return p
}

// FreePort is FreePorts for one port on all addresses.
func FreePort() (int, error) {
	found, err := freePorts("", 1)
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

func freePorts(address string, n int) ([]int, error) {
	file := filepath.Join(os.TempDir(), fmt.Sprintf("kthwd-test-ports-%d", os.Getuid()))
	return takePorts(file, n, func(port int) bool {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		return err == nil && l.Close() == nil
	})
}

// takePorts returns the next n free ports after the number stored in a file, and stores
// the last of them there. It holds a lock on the file meanwhile.
func takePorts(file string, n int, free func(port int) bool) (found []int, err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // releases the lock
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || last < firstPort || last > lastPort {
		last = lastPort // the file is new, or not written by this program
	}
	for range lastPort - firstPort + 1 {
		if last++; last > lastPort {
			last = firstPort
		}
		if free(last) {
			found = append(found, last)
		}
		if len(found) == n {
			// Always the same number of digits: no reader sees half a number.
			_, err := f.WriteAt([]byte(strconv.Itoa(last)+"\n"), 0)
			return found, err
		}
	}
	return nil, fmt.Errorf("%d of %d in %d–%d", len(found), n, firstPort, lastPort)
}
