package appliance

import (
	"fmt"
	"os"
	"path/filepath"

	"kthwd/appliance/pki"
)

// maxSocketPath is what fits into sockaddr_un.sun_path (108 bytes, with its end).
const maxSocketPath = 107

// socketDir is where the unix sockets are: <data-dir>/run, readable by its
// owner only, because whoever can open etcd's socket needs no certificate.
type socketDir struct {
	etcd    string // as etcd and its client name it
	control string
	dir     *os.File // held open while a path goes through /proc/self/fd
}

// newSocketDir makes the directory. A path that does not fit into a socket
// address is shortened through /proc/self/fd, which this process and only this
// process can follow.
func newSocketDir(l pki.Layout) (*socketDir, error) {
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(l.Run(), 0o700); err != nil {
		return nil, err
	}
	s := &socketDir{etcd: l.EtcdSocket(), control: l.ControlSocket()}
	if len(s.etcd) <= maxSocketPath && len(s.control) <= maxSocketPath {
		return s, nil
	}
	dir, err := os.Open(l.Run())
	if err != nil {
		return nil, err
	}
	s.dir = dir
	short := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	s.etcd = filepath.Join(short, filepath.Base(s.etcd))
	s.control = filepath.Join(short, filepath.Base(s.control))
	return s, nil
}

func (s *socketDir) close() {
	if s != nil && s.dir != nil {
		s.dir.Close()
	}
}
