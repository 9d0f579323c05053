package archive

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// footerFormat is the last line of an archive: the cluster, and the sum of all before it.
const footerFormat = "\nkthwd-backup-1 cluster %016s sha256 %s\n"

const footerSize = int64(len("\nkthwd-backup-1 cluster  sha256 \n") + 16 + 2*sha256.Size)

// Write writes an archive to the new file path, with mode 0600, and returns when it is on
// the disk. open returns the content of each of m.Files. Without recipients the archive is
// not encrypted. After an error the file is incomplete.
func Write(path string, m Manifest, open func(name string) (io.ReadCloser, error), recipients []age.Recipient) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	paced := NewPaced(out)
	if err := writeBody(io.MultiWriter(paced, sum), m, open, recipients); err != nil {
		return err
	}
	if _, err := io.WriteString(paced, footer(m.Cluster, sum)); err != nil {
		return err
	}
	return out.Sync()
}

// footer completes the sum with the cluster, so that no part of the line can change alone.
func footer(cluster string, body hash.Hash) string {
	id := fmt.Sprintf("%016s", cluster)
	_, _ = io.WriteString(body, id) // a hash returns no error
	return fmt.Sprintf(footerFormat, id, hex.EncodeToString(body.Sum(nil)))
}

func writeBody(w io.Writer, m Manifest, open func(name string) (io.ReadCloser, error), recipients []age.Recipient) error {
	if len(recipients) == 0 {
		return writeTar(w, m, open)
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return err
	}
	return errors.Join(writeTar(sealed, m, open), sealed.Close())
}

func writeTar(w io.Writer, m Manifest, open func(name string) (io.ReadCloser, error)) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	h := tar.Header{Name: manifestName, Mode: 0o600, Size: int64(len(data)) + 1, ModTime: m.Created, Format: tar.FormatPAX}
	if err := t.WriteHeader(&h); err != nil {
		return err
	}
	if _, err := t.Write(append(data, '\n')); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := writeFile(t, m, f, open); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return t.Close()
}

func writeFile(t *tar.Writer, m Manifest, f File, open func(name string) (io.ReadCloser, error)) error {
	in, err := open(f.Name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := t.WriteHeader(&tar.Header{Name: f.Name, Mode: int64(f.Mode), Size: f.Size, ModTime: m.Created, Format: tar.FormatPAX}); err != nil {
		return err
	}
	n, err := io.Copy(t, in)
	if err == nil && n != f.Size {
		err = fmt.Errorf("%d bytes, want %d", n, f.Size)
	}
	return err
}

// NewFile describes a file for a manifest.
func NewFile(name string, data []byte, mode fs.FileMode, secret bool) File {
	sum := sha256.Sum256(data)
	return File{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Mode: uint32(mode.Perm()), Secret: secret}
}

const (
	// pace is how many bytes may be written before they go to the disk. Writes that gather in
	// memory are flushed together with the next fsync of etcd's log, which then takes seconds.
	pace = 1 << 20
	// rest is the longest pause after a flush, which is otherwise as long as the flush was.
	// Without one, the file system commits etcd's log together with the next piece.
	rest = 2 * time.Millisecond
)

// Paced is a writer to a file that flushes each piece to the disk, so that a process which
// waits for the same disk never waits for long, drops it from the page cache, and rests.
type Paced struct {
	f     *os.File
	dirty int64 // bytes since the last flush
	at    int64 // bytes before these
}

// NewPaced returns a writer to f, which the caller closes.
func NewPaced(f *os.File) *Paced { return &Paced{f: f} }

func (p *Paced) Write(data []byte) (n int, err error) {
	for len(data) > 0 && err == nil {
		part := data[:min(int64(len(data)), pace-p.dirty)]
		k, errWrite := p.f.Write(part)
		n, p.dirty, data, err = n+k, p.dirty+int64(k), data[k:], errWrite
		if err == nil && p.dirty >= pace {
			err = p.flush()
		}
	}
	return n, err
}

func (p *Paced) flush() error {
	begun := time.Now()
	if err := unix.Fdatasync(int(p.f.Fd())); err != nil {
		return err
	}
	_ = unix.Fadvise(int(p.f.Fd()), p.at, p.dirty, unix.FADV_DONTNEED) // advice only
	p.at, p.dirty = p.at+p.dirty, 0
	time.Sleep(min(time.Since(begun), rest))
	return nil
}
