package datadir

import (
	"fmt"
	"os"
	"path/filepath"

	"kthwd/appliance/advice"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
)

// maxSocketPath is the longest path in sockaddr_un.sun_path: 108 bytes with the final 0.
const maxSocketPath = 107

// Sockets are the paths of the unix sockets in <data-dir>/run. Only the owner can read
// that directory, because etcd's socket requires no certificate.
type Sockets struct {
	Etcd    string // in the form for etcd and its client
	Control string
	dir     *os.File // held open while a path goes through /proc/self/fd
}

// NewSockets makes the directory. A path that does not fit into a socket address, or that
// would mean something else in a URL or in a list with commas, is replaced by one through
// /proc/self/fd, which only this process can resolve: etcd and its client take the socket
// as a URL in a list, and etcd removes whatever it finds at the path.
func NewSockets(l pki.Layout) (*Sockets, error) {
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		return nil, err
	}
	info, err := os.Lstat(l.Run())
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, isLink(l.Run()) // MkdirAll accepts a link to a directory, and nothing else
	}
	if err := ownedBy(l.Run(), os.Geteuid()); err != nil {
		return nil, err
	}
	if err := os.Chmod(l.Run(), 0o700); err != nil {
		return nil, err
	}
	s := &Sockets{Etcd: l.EtcdSocket(), Control: l.ControlSocket()}
	if paths.Plain(s.Etcd) && len(s.Etcd) <= maxSocketPath && len(s.Control) <= maxSocketPath {
		return s, nil
	}
	dir, err := os.Open(l.Run())
	if err != nil {
		return nil, err
	}
	s.dir = dir
	short := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	if _, err := os.Stat(short); err != nil {
		dir.Close()
		return nil, advice.With(fmt.Errorf("the sockets in %s need /proc: %w", l.Run(), err),
			"mount /proc, or choose a --data-dir that is short and has letters, digits and /._- only")
	}
	s.Etcd = filepath.Join(short, filepath.Base(s.Etcd))
	s.Control = filepath.Join(short, filepath.Base(s.Control))
	return s, nil
}

// Close releases the shortened paths. No path may be used afterwards. s may be nil.
func (s *Sockets) Close() {
	if s != nil && s.dir != nil {
		s.dir.Close()
	}
}
