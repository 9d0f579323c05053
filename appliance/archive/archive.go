// Package archive reads and writes the files in which kthwd keeps a backup.
//
// A file is a tar, or a tar encrypted for age recipients, and a last line:
//
//	manifest.json   which cluster, which versions, and the SHA-256 of files/NAME
//	files/NAME      the files of the data directory
//	etcd.db         the database, as etcdctl snapshot save writes it
//	SHA256SUMS      the SHA-256 of all before, as sha256sum writes it
//	(the last line) kthwd-backup-1 cluster ID sha256 SUM
//
// In format 1, which this package reads and no longer writes by itself, manifest.json has the sum
// of the database too, which must then be known before the first byte, and SHA256SUMS is missing.
//
// The sum in the last line covers everything before it, so that damage shows without an
// identity; Check compares it. Open reads all but the database, Archive.Extract the rest, and both
// name what is damaged, as a *Damaged error. Write makes a file; the caller gives it its
// final name, which Name returns, only after a verification.
//
// List and Prune work on the names in a directory. Prune never deletes the newest whole
// archive of a cluster.
//
// The package knows nothing of etcd and Kubernetes: package backup does the work.
package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"

	"kthwd/appliance/advice"
)

// Format is the version of the manifest and of the archive that this package writes, and the
// newest one that it reads.
const Format = 2

// The names in an archive.
const (
	manifestName = "manifest.json"
	Database     = "etcd.db" // the last of Manifest.Files, after names below FilesDir
	FilesDir     = "files/"
	sumsName     = "SHA256SUMS" // from format 2 on
)

// ConfigFile is the name, below FilesDir, of the settings of the controller.
const ConfigFile = "kthwd.yaml"

// Manifest says what an archive holds.
type Manifest struct {
	Format     int       `json:"format"`
	Created    time.Time `json:"created"`
	Kthwd      string    `json:"kthwd"` // versions of the software that made it
	Kubernetes string    `json:"kubernetes"`
	Etcd       string    `json:"etcd"`

	Name    string   `json:"name"`    // of the controller that made it
	Address string   `json:"address"` // at which other machines reached it
	Server  string   `json:"server"`  // URL of its API server for clients on the same machine
	Cluster string   `json:"cluster"` // IDs of etcd, in hexadecimal
	Member  string   `json:"member"`
	Members []string `json:"members"` // NAME=PEER-URL of each member of the cluster
	Prefix  string   `json:"prefix"`  // of kube-apiserver's keys in etcd

	Revision        int64    `json:"revision"` // of the store in the database
	CompactRevision int64    `json:"compactRevision"`
	Keys            int64    `json:"keys"`              // at that revision
	Hash            uint32   `json:"hash,omitempty"`    // etcd's HashKV at that revision, from the running member; 0 if it was not asked
	Applied         uint64   `json:"raftApplied"`       // raft index that the member had applied
	Behind          uint64   `json:"behind,omitempty"`  // raft entries that were committed but not applied
	Secrets         bool     `json:"secrets"`           // private keys and the encryption configuration are in it
	LeftOut         []string `json:"leftOut,omitempty"` // files of the data directory that are not in it because they hold secrets
	Outside         []string `json:"outside,omitempty"` // files that the programs' flags name elsewhere, which are not in it
	KMS             []string `json:"kms,omitempty"`     // key management services without which encrypted objects cannot be read

	// Problems are what was wrong with certificates and kubeconfigs when they were archived, by
	// file name: a verification expects them.
	Problems map[string]string `json:"problems,omitempty"`

	Files []File `json:"files"` // in the order of the archive
}

// File is one file in an archive.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of the database only in format 1
	Mode   uint32 `json:"mode"`
	Secret bool   `json:"secret,omitempty"` // holds a private key, or the key of the encryption
}

// Database is the database among the files.
func (m *Manifest) Database() File { return m.Files[len(m.Files)-1] }

// Find returns the file of that name, or nil.
func (m *Manifest) Find(name string) *File {
	for i := range m.Files {
		if m.Files[i].Name == name {
			return &m.Files[i]
		}
	}
	return nil
}

// Damaged is an archive whose content is not what was written.
type Damaged struct {
	Path string // of the archive
	Part string // of it: a name in the archive, or what else is damaged
	Err  error
}

func (d *Damaged) Error() string { return fmt.Sprintf("%s: damaged: %s: %v", d.Path, d.Part, d.Err) }

// Unwrap gives errors.Is and errors.As the cause.
func (d *Damaged) Unwrap() error { return d.Err }

// Hint is the advice for a damaged archive.
func (d *Damaged) Hint() string {
	return "take another archive; kthwd backup list shows them"
}

// ErrEncrypted means that an archive cannot be read without an identity.
var ErrEncrypted = errors.New("encrypted")

const (
	timeFormat = "20060102T150405Z"
	suffix     = ".kthwd"
)

// Name is the final name of an archive with that manifest.
func Name(m Manifest) string {
	return fmt.Sprintf("%s-%s-r%d%s", m.Name, m.Created.UTC().Format(timeFormat), m.Revision, suffix)
}

var named = regexp.MustCompile(`^(.+)-(\d{8}T\d{6}Z)-r(\d+)` + regexp.QuoteMeta(suffix) + `$`)

// checkName refuses an archive that has the name of another one.
func (m Manifest) checkName(file string) error {
	if base := path.Base(file); named.MatchString(base) && base != Name(m) {
		return fmt.Errorf("its content is that of %s: two archives were exchanged, or one was renamed", Name(m))
	}
	return nil
}

// fileName is a name that may stand below FilesDir.
var fileName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// IsFileName reports whether a file of that name can be put into an archive.
func IsFileName(name string) bool { return fileName.MatchString(name) && len(name) < 200 }

// parseManifest reads and checks a manifest.
func parseManifest(data []byte) (m Manifest, err error) {
	if err := json.Unmarshal(data, &m); err != nil {
		return m, err
	}
	if m.Format > Format {
		return m, advice.With(fmt.Errorf("made by a newer kthwd (%s): its format is %d, and this kthwd reads formats up to %d", m.Kthwd, m.Format, Format), "use kthwd "+m.Kthwd+" or a newer one")
	}
	last := len(m.Files) - 1
	if m.Format < 1 || last < 0 || m.Files[last].Name != Database || m.Files[last].Size < 0 || m.Format == 1 && m.Files[last].SHA256 == "" {
		return m, errors.New("not a manifest of a backup")
	}
	all := int64(0)
	for i, f := range m.Files[:last] {
		base, below := strings.CutPrefix(f.Name, FilesDir)
		if !below || !IsFileName(base) || m.Find(f.Name) != &m.Files[i] {
			return m, fmt.Errorf("%q is no name in an archive, or is there twice", f.Name)
		}
		if f.SHA256 == "" {
			return m, fmt.Errorf("%s: no sum", f.Name)
		}
		if all += f.Size; f.Size < 0 || f.Size > MaxFile || all > maxFiles {
			return m, fmt.Errorf("%s: %d bytes are too many", f.Name, f.Size)
		}
	}
	return m, nil
}

// MaxFile is the largest size of a file other than the database.
const MaxFile = 1 << 20

const maxFiles = 64 * MaxFile // of all of them

// limited reads at most max bytes.
func limited(r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("more than %d bytes", max)
	}
	return data, err
}
