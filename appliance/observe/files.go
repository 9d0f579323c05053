package observe

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// A File is one that a program has read, and may read again.
type File struct {
	Path string
	Role Role
	Key  string // path of the key of a Certificate
}

// Role says what a file holds, and so what its change means.
type Role int

// The roles of a file.
const (
	Settings      Role = iota // anything else: policies, configuration
	Certificate               // with its key in File.Key
	Key                       // of a certificate
	CA                        // certificates that are trusted
	TokenKeys                 // public keys of service account tokens
	TokenKey                  // the key that signs them
	EncryptionKey             // how secrets are stored
	Kubeconfig
	Spare // read by no program that runs: its absence is no fault, and a change that fits says nothing
)

const (
	kindChanged = "file_changed" // the file fits, or says nothing about others
	kindMisfit  = "file_misfit"

	noteFor   = time.Hour // after which a changed file that fits counts as the one in use
	fileLimit = 4 << 20   // no file in use is nearly as large
	filesSaid = 3         // named in one finding
)

// content is what is kept of a file.
type content struct {
	absent absence
	sum    [sha256.Size]byte // salted
	keys   []string          // fingerprints of keys that others depend on
	stamp  stamp
	access access
}

// absence says why a file has no content that can be read. The zero value is that of a file
// that can be read.
type absence struct {
	is     string // what it is or does
	detail string // of the kernel; may be empty
}

// The kinds of absence that have a remedy of their own. Of all others the file in its place
// must go.
const (
	gone    = "is gone"
	dangles = "is a link to a file that is not there"
	refused = "cannot be read" // with a detail
)

// absenceOf returns the absence of a file that readFile has returned an error for.
func absenceOf(path string, err error) absence {
	var unfit *unfitError
	var errno syscall.Errno
	switch {
	case errors.As(err, &unfit):
		return absence{is: unfit.is}
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return absence{is: dangles}
		}
		return absence{is: gone}
	case errors.As(err, &errno):
		return absence{refused, errno.Error()}
	}
	return absence{refused, err.Error()}
}

// access says who may read and write a file.
type access struct{ mode, uid, gid uint32 }

// stamp changes with the content.
type stamp struct {
	inode        uint64
	size         int64
	mtime, ctime unix.Timespec
}

// change is a file whose content is not the one in use.
type change struct {
	File
	at      time.Time
	is      content
	finding status.Finding
}

// files compares files with their content at the start.
type files struct {
	all   []File
	check func() error
	log   *slog.Logger
	salt  []byte // of this process only

	inUse map[string]content // used by the goroutine of Run
	seen  map[string]content // of the last round; likewise

	mu      sync.Mutex
	changes map[string]*change // by path
	loaded  []string           // paths whose content a program has read anew
	proven  []string           // paths whose keys open all that is stored, see Proven
}

func newFiles(all []File, check func() error, log *slog.Logger) *files {
	f := &files{all: all, check: check, log: log, salt: make([]byte, 16), inUse: map[string]content{}, changes: map[string]*change{}}
	_, _ = rand.Read(f.salt) // never fails
	for _, file := range all {
		f.inUse[file.Path] = f.read(file)
	}
	f.seen = make(map[string]content, len(all))
	for path, c := range f.inUse {
		f.seen[path] = c
	}
	return f
}

// compare finds files that have changed, and assesses all changes anew after each further one.
func (f *files) compare(now time.Time) {
	news := f.takeLoaded()
	for _, file := range f.all {
		news = f.compareOne(file, now) || news
	}
	if news {
		f.assess()
	}
}

// Accept makes the content of a file that a program has read anew the one in use. It may be
// called from any goroutine, and takes effect with the next round.
func (w *Watch) Accept(path string) {
	w.files.mu.Lock()
	defer w.files.mu.Unlock()
	w.files.loaded = append(w.files.loaded, path)
}

// Proven makes known that the keys in a changed file open all that the keys before have
// encrypted, and are the ones in use now: the change remains, but nothing is lost by it. It may be
// called from any goroutine, and takes effect with the next round.
func (w *Watch) Proven(path string) {
	w.files.mu.Lock()
	defer w.files.mu.Unlock()
	w.files.proven = append(w.files.proven, path)
}

// takeLoaded accepts what Accept and Proven have named, and reports whether that ends or alters
// a change.
func (f *files) takeLoaded() (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.all {
		if slices.Contains(f.proven, file.Path) {
			in := f.inUse[file.Path]
			in.keys = f.read(file).keys
			f.inUse[file.Path], news = in, true
		}
	}
	f.proven = nil
	for _, file := range f.all {
		if !slices.Contains(f.loaded, file.Path) {
			continue
		}
		is := f.read(file)
		f.inUse[file.Path], f.seen[file.Path] = is, is
		news = news || f.changes[file.Path] != nil
		delete(f.changes, file.Path)
	}
	f.loaded = nil
	return news
}

// compareOne reports whether a file has changed since the last round.
func (f *files) compareOne(file File, now time.Time) bool {
	before := f.seen[file.Path]
	if is, _ := stampOf(file.Path); is == before.stamp && before.absent == (absence{}) {
		f.accept(file.Path, now)
		return false
	}
	is := f.read(file)
	f.seen[file.Path] = is
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.changes[file.Path]
	switch {
	case is.same(f.inUse[file.Path]):
		delete(f.changes, file.Path)
		if known != nil {
			f.log.Info("a file is again the one in use", "file", file.Path)
		}
		return known != nil
	case known != nil && is.same(known.is):
		return false
	}
	f.changes[file.Path] = &change{File: file, at: now, is: is}
	return true
}

// accept lets a changed file that fits count as the one in use after a while.
func (f *files) accept(path string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.changes[path]; c != nil && c.finding.Health == status.Healthy && now.Sub(c.at) >= noteFor {
		f.inUse[path] = c.is
		delete(f.changes, path)
	}
}

// assess words a finding for each change.
func (f *files) assess() {
	misfits := f.misfits()
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, c := range f.changes {
		before := c.finding.Text
		c.finding = f.assessChange(c, misfits)
		c.finding.Since = c.at
		if c.finding.Health == status.Healthy && (c.Role == Spare || c.is.sameText(f.inUse[path])) {
			f.inUse[path] = c.is
			delete(f.changes, path)
			continue
		}
		switch {
		case c.finding.Text == before:
		case c.finding.Health == status.Healthy:
			f.log.Info("a file in use has changed", "file", c.Path)
		default:
			f.log.Warn(c.finding.Text)
		}
	}
}

// misfits returns what the next start would refuse.
func (f *files) misfits() (all []*pki.Misfit) {
	if f.check == nil {
		return nil
	}
	for _, err := range advice.Lines(f.check()) {
		if m, ok := errors.AsType[*pki.Misfit](err); ok {
			all = append(all, m)
		}
	}
	return all
}

func (f *files) assessChange(c *change, misfits []*pki.Misfit) status.Finding {
	name := filepath.Base(c.Path)
	changed := fmt.Sprintf("%s changed at %s", name, clock(c.at))
	bad := func(format string, args ...any) status.Finding {
		return status.Finding{Health: status.Degraded, Kind: kindMisfit, Text: fmt.Sprintf(format, args...), Do: "put the old " + name + " back in " + filepath.Dir(c.Path)}
	}
	fine := status.Finding{Health: status.Healthy, Kind: kindChanged, Text: changed + ", and fits the other files"}
	switch {
	case c.is.absent.is == gone && c.Role == Spare:
		return fine
	case c.is.absent != absence{}:
		return c.unreadable()
	case c.is.sameText(f.inUse[c.Path]):
		if m := misfitOf(c.Path, misfits); m != nil {
			return status.Finding{Health: status.Degraded, Kind: kindMisfit, Do: m.Hint,
				Text: fmt.Sprintf("the owner or the permissions of %s changed at %s, and the next start refuses it: %s", c.Path, clock(c.at), m.Problem)}
		}
		return fine
	}
	strangers := depend(c, misfits)
	effect, lost := f.lostKeys(c)
	switch {
	case lost && (c.Role != CA || len(strangers) == 0):
		return bad("%s and %s", changed, effect)
	case len(strangers) > 0:
		return bad("%s and %s %s", changed, fits[c.Role], some(strangers))
	}
	if c.Role == Certificate {
		if _, err := tls.LoadX509KeyPair(c.Path, c.Key); err != nil {
			return bad("%s and does not fit its key %s: %v", changed, filepath.Base(c.Key), err)
		}
	}
	if m := misfitOf(c.Path, misfits); m != nil {
		return bad("%s: %s", changed, strings.TrimSpace(m.Problem+" "+baseOf(m.Other)))
	}
	return fine
}

// unreadable is the finding of a file without content, with the remedy of its kind.
func (c *change) unreadable() status.Finding {
	f := status.Finding{Health: status.Degraded, Kind: kindMisfit}
	f.Text = fmt.Sprintf("%s %s since %s", c.Path, c.is.absent.is, clock(c.at))
	if c.is.absent.detail != "" {
		f.Text += " (" + c.is.absent.detail + ")"
	}
	f.Text += ": what runs has read it, the next start cannot"
	if c.Role == Spare {
		f.Text = strings.Replace(f.Text, "what runs has read it, the next start cannot", "the next start cannot read it", 1)
	}
	name, dir := filepath.Base(c.Path), filepath.Dir(c.Path)
	switch {
	case c.is.absent.is == gone, c.is.absent.is == dangles:
		f.Do = "put the old " + name + " back in " + dir
	case c.is.absent.is == refused && isDenied(c.is.absent.detail):
		f.Do = "namei -l " + text.ShellWord(c.Path) // whose, and with which mode, each directory and the file are
	case c.is.absent.is == refused:
		f.Do = "look for errors of the disk with journalctl --dmesg --priority=warning, and put the old " + name + " back in " + dir
	default:
		f.Do = "move " + name + " away, and put the old one back in " + dir
	}
	return f
}

func isDenied(detail string) bool {
	return detail == syscall.EACCES.Error() || detail == syscall.EPERM.Error()
}

// misfitOf returns the first misfit of a file, or nil.
func misfitOf(path string, misfits []*pki.Misfit) *pki.Misfit {
	if i := slices.IndexFunc(misfits, func(m *pki.Misfit) bool { return m.File == path }); i >= 0 {
		return misfits[i]
	}
	return nil
}

// fits says how a file does not fit those that follow.
var fits = map[Role]string{
	Settings: "does not fit", Certificate: "does not fit", Key: "is not the key of", CA: "is not the CA of",
	TokenKeys: "does not fit", TokenKey: "is not the key of", EncryptionKey: "does not fit", Kubeconfig: "does not fit", Spare: "does not fit",
}

// depend lists the files that no longer fit a changed one, certificates in use first. The
// key of a CA is used by nobody but the signer.
func depend(c *change, misfits []*pki.Misfit) (names []string) {
	for _, m := range misfits {
		var more []string
		switch {
		case slices.Contains(strings.Split(m.Other, ", "), c.Path):
			more = []string{filepath.Base(m.File)}
		case m.File == c.Path && m.Other != "" && c.Role != Certificate:
			more = strings.Split(baseOf(m.Other), ", ")
		}
		for _, name := range more {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if without := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.HasSuffix(n, "-key.pem") }); c.Role == CA && len(without) > 0 {
		return without
	}
	return names
}

// lostKeys reports whether a file lacks every key that it had, and what follows.
func (f *files) lostKeys(c *change) (effect string, lost bool) {
	effect, counts := map[Role]string{
		CA:            "holds another CA: certificates of the one before are refused",
		TokenKeys:     "lacks the key in use: after the next start, tokens from before are refused",
		EncryptionKey: "lacks the key in use: after the next start, what it has encrypted cannot be read",
	}[c.Role]
	before := f.inUse[c.Path].keys
	return effect, counts && len(before) > 0 && !slices.ContainsFunc(before, func(k string) bool { return slices.Contains(c.is.keys, k) })
}

func (f *files) findings() (all []status.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.all { // in a stable order
		if c := f.changes[file.Path]; c != nil && c.finding.Text != "" && !slices.Contains(all, c.finding) {
			all = append(all, c.finding)
		}
	}
	return all
}

var changedFiles = prometheus.NewDesc("kthwd_changed_files", "Files in use that are not as the programs read them at the start, by whether they fit the others.", []string{"fits"}, nil)

func (f *files) collect(ch chan<- prometheus.Metric) {
	count := map[status.Health]int{}
	for _, finding := range f.findings() {
		count[finding.Health]++
	}
	ch <- prometheus.MustNewConstMetric(changedFiles, prometheus.GaugeValue, float64(count[status.Healthy]), "true")
	ch <- prometheus.MustNewConstMetric(changedFiles, prometheus.GaugeValue, float64(count[status.Degraded]), "false")
}

// read reads a file that may be missing.
func (f *files) read(file File) (c content) {
	c.stamp, c.access = stampOf(file.Path)
	data, err := readFile(file.Path)
	if err != nil {
		c.absent = absenceOf(file.Path, err)
		return c
	}
	c.sum = sha256.Sum256(slices.Concat(f.salt, data))
	switch file.Role {
	case CA, TokenKeys, EncryptionKey:
		c.keys = pki.Prints(data, f.salt)
	}
	return c
}

func (c content) same(other content) bool { return c.sameText(other) && c.access == other.access }

func (c content) sameText(other content) bool { return c.absent == other.absent && c.sum == other.sum }

// unfitError is about something that is no file of a configuration.
type unfitError struct{ path, is string }

func (e *unfitError) Error() string { return e.path + " " + e.is }

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, &unfitError{path, "is a directory"}
	case !info.Mode().IsRegular():
		return nil, &unfitError{path, "is no regular file"}
	case info.Size() > fileLimit:
		return nil, &unfitError{path, "is too large for what it should hold"}
	}
	return os.ReadFile(path)
}

// stampOf returns zero values for a file that cannot be examined.
func stampOf(path string) (stamp, access) {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return stamp{}, access{}
	}
	return stamp{s.Ino, s.Size, s.Mtim, s.Ctim}, access{s.Mode, s.Uid, s.Gid}
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func baseOf(paths string) string {
	var names []string
	for path := range strings.SplitSeq(paths, ", ") {
		if path != "" {
			names = append(names, filepath.Base(path))
		}
	}
	return strings.Join(names, ", ")
}

// some names the first few of all.
func some(all []string) string {
	if len(all) <= filesSaid {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:filesSaid], ", "), len(all)-filesSaid)
}
