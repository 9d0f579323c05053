package ha

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kthwd/test/lbtest"
)

func TestMain(m *testing.M) {
	lbtest.Main(m, map[string]lbtest.Helper{"host": runHost})
}

// runHost gives the process the host name args[0], and becomes the program after it.
func runHost(args []string) error {
	if len(args) < 2 {
		return errors.New("want a host name and a program")
	}
	if err := unix.Sethostname([]byte(args[0])); err != nil {
		return err
	}
	return syscall.Exec(args[1], args[1:], os.Environ())
}
