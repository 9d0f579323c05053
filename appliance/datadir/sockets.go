package datadir

import (
	"fmt"
	"os"
	"path/filepath"

	"kthwd/appliance/pki"
)

// maxSocketPath is what fits into sockaddr_un.sun_path (108 bytes, with its end).
const maxSocketPath = 107

// Sockets is where the unix sockets are: <data-dir>/run, readable by its
// owner only, because whoever can open etcd's socket needs no certificate.
type Sockets struct {
	Etcd    string // as etcd and its client name it
	Control string
	dir     *os.File // held open while a path goes through /proc/self/fd
}

// NewSockets makes the directory. A path that does not fit into a socket
// address is shortened through /proc/self/fd, which this process and only this
// process can follow.
func NewSockets(l pki.Layout) (*Sockets, error) {
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(l.Run(), 0o700); err != nil {
		return nil, err
	}
	s := &Sockets{Etcd: l.EtcdSocket(), Control: l.ControlSocket()}
	if len(s.Etcd) <= maxSocketPath && len(s.Control) <= maxSocketPath {
		return s, nil
	}
	dir, err := os.Open(l.Run())
	if err != nil {
		return nil, err
	}
	s.dir = dir
	short := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	s.Etcd = filepath.Join(short, filepath.Base(s.Etcd))
	s.Control = filepath.Join(short, filepath.Base(s.Control))
	return s, nil
}

func (s *Sockets) Close() {
	if s != nil && s.dir != nil {
		s.dir.Close()
	}
}
