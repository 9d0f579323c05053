package lb

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzFrame: whatever a process on the upgrade socket sends, receiving ends with a frame of
// a wanted kind or an error, and keeps no descriptor of a frame that is refused.
func FuzzFrame(f *testing.F) {
	framed := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(len(text))), 0), text...)
	}
	f.Add(framed(frame{Kind: "hello", Version: upgradeVersion}), false)
	f.Add(framed(frame{Kind: "listeners", Addresses: []string{"127.0.0.1:1"}}), true)
	f.Add(framed(frame{Kind: "pairs", Pairs: []handed{{Listener: "a", Backend: "b"}}}), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, false)
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, '{', '}'}, true)
	f.Add([]byte{0, 0}, true)
	f.Fuzz(func(t *testing.T, data []byte, withDescriptor bool) {
		ours, theirs := socketPair(t)
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		var rights []byte
		if withDescriptor {
			rights = unix.UnixRights(int(null.Fd()))
		}
		if len(data) > 0 {
			if _, _, err := theirs.WriteMsgUnix(data, rights, nil); err != nil {
				t.Skip(err) // longer than the socket's buffer
			}
		}
		theirs.Close()
		got, fds, err := wire{ours}.receive(time.Minute, "hello", "pairs")
		if err != nil && len(fds) > 0 {
			t.Errorf("%d descriptors are kept with %v", len(fds), err)
		}
		if err == nil && got.Kind != "hello" && got.Kind != "pairs" {
			t.Errorf("a frame of kind %q", got.Kind)
		}
		closeAll(fds)
	})
}

func socketPair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		file := os.NewFile(uintptr(fd), "pair")
		defer file.Close()
		c, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}
