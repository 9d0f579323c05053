package preflight

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestHolder(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		own := fmt.Sprintf("preflight.test (process %d, started ", os.Getpid())
		got := Holder(port)
		text, ok := strings.CutPrefix(got, own)
		begun, err := time.ParseInLocation("2006-01-02 15:04:05)", text, time.Local)
		if age := time.Since(begun); !ok || err != nil || age < -2*time.Second || age > time.Hour {
			t.Errorf("%s: got %q (%v), want %q and when this test began", address, got, err, own)
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
