package preflight

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

func TestHolder(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		own := fmt.Sprintf("preflight.test (process %d)", os.Getpid())
		if got := Holder(port); got != own {
			t.Errorf("%s: got %q, want %q", address, got, own)
		}
		if hint := PortHint(tryListen("x", fmt.Sprintf("127.0.0.1:%d", port), "--x"), fmt.Sprintf("127.0.0.1:%d", port), "--x"); !strings.Contains(hint, own) {
			t.Errorf("%s: got the hint %q, want the process in it", address, hint)
		}
		l.Close()
		if got := Holder(port); got != "" {
			t.Errorf("%s, closed: got %q, want nothing", address, got)
		}
	}
}
