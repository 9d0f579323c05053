package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"filippo.io/age"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/text"
)

// Archive is an opened archive. Close it.
type Archive struct {
	Path      string
	Size      int64
	Cluster   string // from the last line
	Encrypted bool
	Manifest  Manifest
	Files     map[string][]byte // the content of all files but the database, by their names without FilesDir

	sum  string // from the last line
	file *os.File
	read *counted // what was read of the body
	tar  *tar.Reader
	sums sums // of the files that were read
}

var lastLine = text.Pattern(`^\nkthwd-backup-1 cluster ([0-9a-f]{16}) sha256 ([0-9a-f]{64})\n$`)

// ageIntro begins an encrypted file (age-encryption.org/v1).
const ageIntro = "age-encryption.org/v1\n"

// look opens an archive and reads its last line only.
func look(path string) (_ *Archive, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would keep it waiting
	if err != nil {
		return nil, err
	}
	a := &Archive{Path: path, file: f}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", path)
	}
	a.Size = info.Size()
	if a.Size < footerSize {
		return nil, a.damaged("its end", fmt.Errorf("%d bytes are too few for an archive", a.Size))
	}
	line := make([]byte, footerSize)
	if _, err := f.ReadAt(line, a.Size-footerSize); err != nil {
		return nil, err
	}
	intro := make([]byte, len(ageIntro))
	_, _ = f.ReadAt(intro, 0) // a file that is shorter has no last line
	a.Encrypted = string(intro) == ageIntro
	m := lastLine().FindSubmatch(line)
	if m == nil {
		if !a.Encrypted && !bytes.HasPrefix(intro, []byte(manifestName)) {
			return nil, advice.With(fmt.Errorf("%s: not an archive of kthwd", path), "kthwd backup list shows the archives; a snapshot of etcdctl is restored with etcdutl")
		}
		return nil, a.damaged("its end", errors.New("the last line is not that of an archive: the file was cut off, or bytes of it have changed"))
	}
	a.Cluster, a.sum = string(m[1]), string(m[2])
	return a, nil
}

// Open opens the archive at path and reads its manifest. An encrypted archive without an
// identity that fits is an error, ErrEncrypted.
func Open(path string, identities ...age.Identity) (*Archive, error) {
	a, err := look(path)
	if err != nil {
		return nil, err
	}
	if err := a.begin(identities); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close closes the archive.
func (a *Archive) Close() error { return a.file.Close() }

func (a *Archive) damaged(part string, err error) error { return &Damaged{a.Path, part, err} }

// counted is the body of an archive, with the sum of what was read.
type counted struct {
	io.Reader
	sum hash.Hash
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.sum.Write(p[:n])
	return n, err
}

// begin reads all before the database.
func (a *Archive) begin(identities []age.Identity) error {
	a.read = &counted{io.NewSectionReader(a.file, 0, a.Size-footerSize), sha256.New()}
	var body io.Reader = bufio.NewReaderSize(a.read, 1<<20)
	if a.Encrypted {
		if len(identities) == 0 {
			return advice.With(fmt.Errorf("%s: %w", a.Path, ErrEncrypted), "name the file with the age identity that belongs to its recipient: --identity FILE")
		}
		plain, err := age.Decrypt(body, identities...)
		if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
			return advice.With(fmt.Errorf("%s: %w for other recipients than this identity's", a.Path, ErrEncrypted), "name the identity that belongs to its recipient with --identity")
		}
		if err != nil {
			return a.damaged("the head of the encryption", err)
		}
		body = plain
	}
	a.tar = tar.NewReader(body)
	h, err := a.tar.Next()
	if err == nil && h.Name != manifestName {
		err = fmt.Errorf("%q stands in its place", h.Name)
	}
	var data []byte
	if err == nil {
		data, err = limited(a.tar, MaxFile)
		sum := sha256.New()
		sum.Write(data)
		a.sums.add(manifestName, sum)
	}
	if err == nil {
		a.Manifest, err = parseManifest(data)
	}
	if _, newer := advice.Of(err); newer {
		return fmt.Errorf("%s: %w", a.Path, err)
	}
	if err == nil && fmt.Sprintf("%016s", a.Manifest.Cluster) != a.Cluster {
		err = fmt.Errorf("it is of cluster %s, and the last line of cluster %s", a.Manifest.Cluster, a.Cluster)
	}
	if err == nil {
		err = a.Manifest.checkName(a.Path)
	}
	if err != nil {
		return a.damaged(manifestName, err)
	}
	return a.readFiles()
}

// readFiles reads the files before the database.
func (a *Archive) readFiles() error {
	a.Files = map[string][]byte{}
	for _, f := range a.Manifest.Files[:len(a.Manifest.Files)-1] {
		var b bytes.Buffer
		if err := a.next(&b, f, nil); err != nil {
			return err
		}
		a.Files[strings.TrimPrefix(f.Name, FilesDir)] = b.Bytes()
	}
	return nil
}

// Extract writes the files of the archive to the directory dir, which exists, with mode 0600
// and without FilesDir before their names. It compares every sum and returns the first
// damage. It can be called once. progress gets the bytes of the database that were read;
// it may be nil.
func (a *Archive) Extract(dir string, progress func(n int64)) error {
	for name, data := range a.Files {
		if err := durable.Create(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return a.ExtractDatabase(filepath.Join(dir, Database), progress)
}

// ExtractDatabase is Extract for the database only, to the new file path.
func (a *Archive) ExtractDatabase(path string, progress func(n int64)) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	paced := NewPaced(out)
	defer func() { err = errors.Join(err, paced.Close()) }()
	return a.readDatabase(paced, progress)
}

// readDatabase reads the database and the rest of the archive, and compares every sum.
func (a *Archive) readDatabase(w io.Writer, progress func(n int64)) error {
	if err := a.next(w, a.Manifest.Database(), progress); err != nil {
		return err
	}
	if a.Manifest.Format > 1 {
		if err := a.compareSums(); err != nil {
			return err
		}
	}
	if _, err := a.tar.Next(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("more files than the manifest lists")
		}
		return a.damaged("its end", err)
	}
	return a.compareSum()
}

// compareSums reads sumsName, and compares it with what was read before.
func (a *Archive) compareSums() error {
	h, err := a.tar.Next()
	if err == nil && h.Name != sumsName {
		err = fmt.Errorf("%q stands in its place", h.Name)
	}
	var data []byte
	if err == nil {
		data, err = limited(a.tar, MaxFile)
	}
	if err != nil {
		return a.damaged(sumsName, err)
	}
	lines := slices.Collect(strings.Lines(string(data)))
	for i, f := range append([]File{{Name: manifestName}}, a.Manifest.Files...) {
		if i >= len(lines) || lines[i] != a.sums[i] {
			return a.damaged(f.Name, fmt.Errorf("its SHA-256 is %.12s…, and %s says another", a.sums[i], sumsName))
		}
	}
	if len(lines) > len(a.sums) {
		return a.damaged(sumsName, errors.New("it has more lines than the archive has files"))
	}
	return nil
}

// compareSum reads the rest of the body, and compares the sum of all.
func (a *Archive) compareSum() error {
	if _, err := io.Copy(io.Discard, a.read); err != nil {
		return err
	}
	_, _ = io.WriteString(a.read.sum, a.Cluster)
	if is := hex.EncodeToString(a.read.sum.Sum(nil)); is != a.sum {
		return a.damaged("a byte between the files, or the last line", fmt.Errorf("the sum is %.12s…, and the last line says %.12s…", is, a.sum))
	}
	return nil
}

// next copies the next file of the archive, which must be f, to w.
func (a *Archive) next(w io.Writer, f File, progress func(int64)) error {
	h, err := a.tar.Next()
	if err == nil && (h.Name != f.Name || h.Size != f.Size) {
		err = fmt.Errorf("the archive has %q of %d bytes in its place, and the manifest says %d bytes", h.Name, h.Size, f.Size)
	}
	if err != nil {
		return a.damaged(f.Name, err)
	}
	sum := sha256.New()
	if err := a.copy(io.MultiWriter(w, sum), f, progress); err != nil {
		return err
	}
	a.sums.add(f.Name, sum)
	if is := hex.EncodeToString(sum.Sum(nil)); is != f.SHA256 && f.SHA256 != "" {
		return a.damaged(f.Name, fmt.Errorf("its SHA-256 is %.12s…, and the manifest says %.12s…", is, f.SHA256))
	}
	return nil
}

// copy tells apart an archive that cannot be read and a disk that cannot be written.
func (a *Archive) copy(w io.Writer, f File, progress func(int64)) error {
	buf := make([]byte, min(256<<10, f.Size+1))
	for done := int64(0); ; {
		n, err := a.tar.Read(buf)
		if _, errWrite := w.Write(buf[:n]); errWrite != nil {
			return errWrite
		}
		if done += int64(n); progress != nil && n > 0 {
			progress(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF) && done == f.Size:
			return nil
		case errors.Is(err, io.EOF):
			return a.damaged(f.Name, fmt.Errorf("%d bytes, want %d", done, f.Size))
		case err != nil:
			return a.damaged(f.Name, err)
		}
	}
}

// Check compares the sum of the file at path with its last line, which needs no identity.
func Check(path string) error {
	a, err := look(path)
	if err != nil {
		return err
	}
	defer a.Close()
	a.read = &counted{io.NewSectionReader(a.file, 0, a.Size-footerSize), sha256.New()}
	if err := a.compareSum(); err != nil {
		if d, ok := errors.AsType[*Damaged](err); ok {
			d.Part = "its content, or the last line"
		}
		return err
	}
	return nil
}
