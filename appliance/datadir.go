package appliance

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"kthwd/appliance/pki"
)

// lockDataDir takes the data directory for this process. The lock goes with the
// process, however it ends; the caller closes the file to give it back earlier.
func lockDataDir(l pki.Layout) (*os.File, error) {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return nil, WithHint(err, "make the directory for the user that runs kthwd, or choose another with --data-dir")
	}
	f, err := os.OpenFile(l.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, WithHint(err, "the data directory must belong to the user that runs kthwd; or choose another with --data-dir")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", l.Lock(), err)
		}
		return nil, WithHint(fmt.Errorf("%s is in use by another kthwd (process %s)", l.Dir, strings.TrimSpace(string(holder))),
			"stop that one first, or choose another --data-dir")
	}
	return f, errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintln(os.Getpid())))
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

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

// instanceIdentity is this controller's name in the leases: the same in every
// life of this data directory, so that a controller that was killed takes its
// own lease up again at once. The data directory's lock makes that safe: no two
// processes have it at a time.
func instanceIdentity(l pki.Layout, name string) (string, error) {
	data, err := os.ReadFile(l.InstanceID())
	if errors.Is(err, fs.ErrNotExist) {
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return "", err
		}
		data = []byte(hex.EncodeToString(id) + "\n")
		err = os.WriteFile(l.InstanceID(), data, 0o600)
	}
	if err != nil {
		return "", err
	}
	return name + "_" + strings.TrimSpace(string(data)), nil
}

// kubeletClientUser is the common name in the certificate that the API server
// shows to kubelets; "kubernetes", as in the guide, when it cannot be read.
func kubeletClientUser(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return pki.NameKubernetes
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return pki.NameKubernetes
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName == "" {
		return pki.NameKubernetes
	}
	return cert.Subject.CommonName
}

// portHint says what to do about a port that cannot be listened on.
func portHint(err error, address, flag string) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("another program listens on %s: find it with `ss -ltnp`, or choose another port with %s", address, flag)
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose another with %s", flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("%s is not an address of this machine", address)
	default:
		return "choose another address with " + flag
	}
}
