package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"filippo.io/age"
)

// footerFormat is the last line of an archive: the cluster, and the sum of all before it.
const footerFormat = "\nkthwd-backup-1 cluster %016s sha256 %s\n"

const footerSize = int64(len("\nkthwd-backup-1 cluster  sha256 \n") + 16 + 2*sha256.Size)

// Write writes an archive to the new file path, with mode 0600, and returns when it is on
// the disk. open returns the content of each of m.Files. The sum of the database may be
// missing in a manifest of format 2. Without recipients the archive is not encrypted. After an
// error the file is incomplete.
func Write(path string, m Manifest, open func(name string) (io.ReadCloser, error), recipients []age.Recipient) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	paced := NewPaced(out)
	defer func() { err = errors.Join(err, paced.Close()) }()
	if err := writeBody(io.MultiWriter(paced, sum), m, open, recipients); err != nil {
		return err
	}
	_, err = io.WriteString(paced, footer(m.Cluster, sum))
	return err
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
	data = append(data, '\n')
	t := tarWriter{tar.NewWriter(w), m.Created, nil}
	if err := t.write(NewFile(manifestName, data, 0o600, false), bytes.NewReader(data)); err != nil {
		return err
	}
	for _, f := range m.Files {
		in, err := open(f.Name)
		if err == nil {
			err = errors.Join(t.write(f, in), in.Close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if m.Format > 1 {
		text := []byte(t.sums.text())
		if err := t.write(NewFile(sumsName, text, 0o600, false), bytes.NewReader(text)); err != nil {
			return err
		}
	}
	return t.Close()
}

// tarWriter writes files, and remembers their sums.
type tarWriter struct {
	*tar.Writer
	at   time.Time
	sums sums
}

func (t *tarWriter) write(f File, in io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Name: f.Name, Mode: int64(f.Mode), Size: f.Size, ModTime: t.at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(t, sum), onlyReader{in}, make([]byte, 256<<10))
	if err == nil && n != f.Size {
		err = fmt.Errorf("%d bytes, want %d", n, f.Size)
	}
	t.sums.add(f.Name, sum)
	return err
}

// onlyReader hides that a reader can write itself, so that the size of the buffer counts.
type onlyReader struct{ io.Reader }

// sums are the lines of sumsName.
type sums []string

func (s *sums) add(name string, sum hash.Hash) {
	*s = append(*s, fmt.Sprintf("%x  %s\n", sum.Sum(nil), name))
}

func (s sums) text() string { return strings.Join(s, "") }

// NewFile describes a file for a manifest.
func NewFile(name string, data []byte, mode fs.FileMode, secret bool) File {
	sum := sha256.Sum256(data)
	return File{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Mode: uint32(mode.Perm()), Secret: secret}
}
