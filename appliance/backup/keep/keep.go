// Package keep copies the data of a controller that is stopped, before a newer minor opens them. There
// is no other way back.
package keep

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/child"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/durable"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
)

// keptCopies is how many copies of stopped controllers stay.
const keptCopies = 2

// keptPrefix begins the name of a copy below pki.Layout.Kept.
const keptPrefix = "before-upgrade-"

// readMe is the file in a copy that tells a person what it is.
const readMe = "README"

// Options is the input of Keep.
type Options struct {
	Layout  pki.Layout
	WAL     string // directory of etcd's log; "" for the one beside the database
	Upgrade etcdfiles.Upgrade
	Opener  func(ctx context.Context, dir string) *exec.Cmd // a child that calls RunOpener
	Working func()                                          // called from time to time while Keep works; may be nil
	Log     *slog.Logger
}

// Kept is a copy that Keep has made.
type Kept struct {
	Dir      string    `json:"dir"`
	To       string    `json:"to"` // versions for which it was made
	Made     time.Time `json:"made"`
	Size     int64     `json:"size"`
	Revision int64     `json:"revision"` // of the store; 0 for a member that cannot be opened alone, a learner
	Again    bool      `json:"-"`        // made by an earlier start, which has not come to a quorum
}

// Keep copies etcd's data and every file of a controller that is stopped to a directory
// below pki.Layout.Kept, before a newer minor opens them: the only way back. It compares the
// copy with the data byte by byte, and opens a second one in a child process. The caller holds the lock.
//
// A start that fails and is repeated keeps the first copy, whose data no newer version has
// touched. ForgetUpgrade ends that. The two newest copies stay.
func Keep(ctx context.Context, o Options) (k Kept, err error) {
	if k, found := o.earlier(); found {
		k.Again = true
		return k, nil
	}
	if err := os.MkdirAll(o.Layout.Kept(), 0o700); err != nil {
		return k, err
	}
	stage, err := workdir.New(o.Layout.Kept())
	if err != nil {
		return k, err
	}
	defer stage.Remove()
	if k.Size, err = o.size(); err != nil {
		return k, err
	}
	if err := workdir.EnoughRoom(o.Layout.Kept(), need(k.Size)); err != nil {
		return k, advice.With(fmt.Errorf("a copy of the data from before the upgrade (%s): %w", o.Upgrade, err), "make room; or, with a copy elsewhere, start once with --copy-before-upgrade=false")
	}
	copied := filepath.Join(stage.Path, "copy")
	if err := o.copyAll(ctx, copied); err != nil {
		return k, err
	}
	if k.Revision, err = o.open(ctx, copied, filepath.Join(stage.Path, "opened")); err != nil {
		return k, err
	}
	k.To, k.Made = o.to(), time.Now().UTC().Truncate(time.Second)
	k.Dir = filepath.Join(o.Layout.Kept(), nameOf(o.Upgrade)+k.Made.Format("20060102T150405Z"))
	return k, o.finish(copied, k)
}

// need is the room for a copy of size bytes, and for a second one that is opened.
func need(size int64) int64 { return 2 * size }

// Room returns the size of the copy that Keep would make, and an error with the figures if there
// is no room for it. It only looks at sizes, so that kthwd may run.
func (o Options) Room() (size int64, err error) {
	if size, err = o.size(); err != nil {
		return 0, err
	}
	dir := o.Layout.Kept()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = o.Layout.Dir
	}
	return size, workdir.EnoughRoom(dir, need(size))
}

// finish gives the copy its name, and records it.
func (o Options) finish(copied string, k Kept) error {
	if err := durable.Create(filepath.Join(copied, readMe), o.explain(k), 0o600); err != nil {
		return err
	}
	if err := workdir.SyncTree(copied); err != nil {
		return err
	}
	if err := os.Rename(copied, k.Dir); err != nil {
		return err
	}
	if err := durable.Sync(o.Layout.Kept()); err != nil {
		return err
	}
	data, err := json.MarshalIndent(k, "", "  ")
	if err == nil {
		err = durable.Write(upgradeRecord(o.Layout), append(data, '\n'), 0o600)
	}
	if err == nil {
		err = pruneKept(o.Layout)
	}
	return err
}

func upgradeRecord(l pki.Layout) string { return filepath.Join(l.Kept(), "upgrade.json") }

func (o Options) to() string {
	return o.Upgrade.To.Kubernetes + " " + o.Upgrade.To.Etcd
}

// earlier returns the copy that an earlier start of the same upgrade has made.
func (o Options) earlier() (k Kept, found bool) {
	data, err := os.ReadFile(upgradeRecord(o.Layout))
	if err != nil || json.Unmarshal(data, &k) != nil || k.To != o.to() {
		return Kept{}, false
	}
	_, err = os.Stat(filepath.Join(k.Dir, "etcd", "member"))
	return k, err == nil && filepath.Dir(k.Dir) == o.Layout.Kept()
}

// ForgetUpgrade is for a start that is no upgrade: the next one that is makes a copy of its own.
func ForgetUpgrade(l pki.Layout) error {
	if err := os.Remove(upgradeRecord(l)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Newest returns the newest copy from before that upgrade; "" if there is none that can be seen.
func Newest(l pki.Layout, u etcdfiles.Upgrade) string {
	for _, dir := range keptIn(l) {
		if strings.HasPrefix(filepath.Base(dir), nameOf(u)) {
			return dir
		}
	}
	return ""
}

// nameOf is the name of a copy without its time.
func nameOf(u etcdfiles.Upgrade) string {
	return keptPrefix + strings.ToLower(strings.NewReplacer(", ", "-", " ", "-").Replace(u.String())) + "-"
}

// keptIn lists the copies, the newest first.
func keptIn(l pki.Layout) []string {
	all, _ := filepath.Glob(filepath.Join(workdir.GlobEscape(l.Kept()), keptPrefix+"*")) // fails on a bad pattern only
	stamp := func(path string) string { return path[strings.LastIndexByte(path, '-')+1:] }
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(stamp(b), stamp(a)) })
	return all
}

// pruneKept deletes all copies but the newest, and what an earlier call has begun to delete.
func pruneKept(l pki.Layout) error {
	begun, _ := filepath.Glob(filepath.Join(workdir.GlobEscape(l.Kept()), workdir.Prefix+keptPrefix+"*")) // fails on a bad pattern only
	for _, path := range begun {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	all := keptIn(l)
	for _, path := range all[min(keptCopies, len(all)):] {
		// A copy that is deleted in part must not look like one.
		gone := filepath.Join(l.Kept(), workdir.Prefix+filepath.Base(path))
		if err := errors.Join(os.Rename(path, gone), os.RemoveAll(gone)); err != nil {
			return err
		}
	}
	return durable.Sync(l.Kept())
}

// sources are the directories and files to copy, with their names in the copy.
func (o Options) sources() (all map[string]string, err error) {
	all = map[string]string{}
	member := filepath.Join(o.Layout.Etcd(), "member")
	add := func(from, to string) error {
		return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(from, path)
			all[filepath.Join(to, name)] = path
			return err
		})
	}
	if err := add(member, filepath.Join("etcd", "member")); err != nil {
		return nil, err
	}
	if o.WAL != "" && o.WAL != filepath.Join(member, "wal") {
		if err := add(o.WAL, filepath.Join("etcd", "member", "wal")); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(o.Layout.Dir)
	for _, e := range entries {
		if path := filepath.Join(o.Layout.Dir, e.Name()); e.Type().IsRegular() && (archive.Wanted(o.Layout, e.Name()) || e.Name() == archive.ConfigFile) {
			all[e.Name()] = path
		}
	}
	maps.Copy(all, o.Layout.Elsewhere)
	if errors.Is(err, fs.ErrNotExist) { // of a controller that has not run yet
		err = nil
	}
	return all, err
}

func (o Options) size() (n int64, err error) {
	all, err := o.sources()
	for _, path := range all {
		info, errStat := os.Stat(path)
		if errStat != nil {
			return 0, errStat
		}
		n += info.Size()
	}
	return n, err
}

// copyAll copies everything to the new directory to, and compares each copy on the disk with
// its source.
func (o Options) copyAll(ctx context.Context, to string) error {
	all, err := o.sources()
	if err != nil {
		return err
	}
	for name, from := range all {
		if err := o.copyFile(ctx, from, filepath.Join(to, name)); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
	}
	return nil
}

func (o Options) copyFile(ctx context.Context, from, to string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	read, written := sha256.New(), sha256.New()
	worked := adder(func(int64) { o.working() })
	paced := archive.NewPaced(out)
	_, err = io.CopyBuffer(io.MultiWriter(paced, read, worked), workdir.OnlyReader{Reader: stopped{ctx, in}}, make([]byte, 1<<20))
	if err = errors.Join(err, paced.Close()); err != nil {
		return err
	}
	_ = unix.Fadvise(int(out.Fd()), 0, 0, unix.FADV_DONTNEED) // so that the comparison reads the disk
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(io.MultiWriter(written, worked), workdir.OnlyReader{Reader: stopped{ctx, out}}, make([]byte, 1<<20)); err != nil {
		return err
	}
	if !bytes.Equal(read.Sum(nil), written.Sum(nil)) {
		return errors.New("the copy differs from its source: look at the disk")
	}
	return nil
}

func (o Options) working() {
	if o.Working != nil {
		o.Working()
	}
}

// stopped ends a copy with its context.
type stopped struct {
	ctx context.Context
	io.Reader
}

func (s stopped) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p)
}

// opened is the answer of a child that opens data.
type opened struct {
	Revision int64  `json:"revision"`
	Error    string `json:"error,omitempty"`
}

// open copies the copy once more, and opens that one: what opens it writes to it.
func (o Options) open(ctx context.Context, copied, to string) (revision int64, err error) {
	member := Options{Layout: pki.Layout{Dir: filepath.Join(copied, "none"), EtcdDir: filepath.Join(copied, "etcd")}, Working: o.Working}
	from := filepath.Join(copied, "etcd")
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return member.copyFile(ctx, path, filepath.Join(to, name))
	})
	if err != nil {
		return 0, err
	}
	return openChild(ctx, o.Opener, to, o.Layout.Etcd(), o.working)
}

// CopyMember copies etcd's data in the directory from, on which no etcd runs, to the new directory
// to, and compares each file on the disk with its source. wal is the directory of its log;
// "" means the one beside the database.
func CopyMember(ctx context.Context, from, wal, to string) (err error) {
	o := Options{Layout: pki.Layout{Dir: filepath.Join(to, "none"), EtcdDir: from}, WAL: wal}
	size, err := o.size()
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(to))
		}
	}()
	if err := workdir.EnoughRoom(to, size); err != nil {
		return err
	}
	all, err := o.sources()
	if err != nil {
		return err
	}
	for name, path := range all {
		at := filepath.Join(to, strings.TrimPrefix(name, "etcd"+string(filepath.Separator)))
		if err := o.copyFile(ctx, path, at); err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
	}
	return workdir.SyncTree(to)
}

// openChild opens the copy of the data of etcd in dir in a child process; data is where the data are.
func openChild(ctx context.Context, opener func(context.Context, string) *exec.Cmd, dir, data string, working func()) (revision int64, err error) {
	cmd := opener(ctx, dir)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() { done <- child.Run(cmd) }()
	for waiting := true; waiting; {
		select {
		case err = <-done:
			waiting = false
		case <-time.After(time.Second):
			working()
		}
	}
	var a opened
	switch errAnswer := json.Unmarshal(out.Bytes(), &a); {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errAnswer != nil:
		err = child.Ended(err, &said)
	case a.Error != "":
		err = errors.New(a.Error)
	default:
		return a.Revision, nil
	}
	return 0, advice.With(fmt.Errorf("a copy of the data in %s cannot be opened, and they are as they were: %w", data, err), "run the version of before; or restore a backup: kthwd backup restore")
}

// RunOpener is the child's part of Keep: it opens the data of etcd in dir, a copy, as those of
// a cluster of one, and writes what it finds to out.
func RunOpener(ctx context.Context, dir string, out io.Writer, log *slog.Logger) error {
	revision, err := openCopy(ctx, dir, log)
	a := opened{Revision: revision}
	if err != nil {
		a.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(a)
}

func openCopy(ctx context.Context, dir string, log *slog.Logger) (revision int64, err error) {
	if err := etcdfiles.Check(dir); err != nil {
		return 0, err
	}
	ids, err := etcdfiles.ReadIDs(filepath.Join(dir, "member", "wal"))
	if err != nil {
		return 0, err
	}
	members, revision, err := etcdfiles.ReadStore(filepath.Join(dir, "member"))
	if err != nil {
		return 0, err
	}
	for _, m := range members {
		if m.ID == ids.Member && !m.IsLearner && m.Name != "" {
			return embedded.ForceAlone(ctx, m.Name, dir, m.ClientURLs, log)
		}
	}
	return revision, nil // a learner cannot lead itself, so its database was read only
}

// explain is the text beside a copy.
func (o Options) explain(k Kept) []byte {
	var b strings.Builder
	before, first, last := "the first start of "+o.Upgrade.String(), "install the version of before", "start it"
	if o.Upgrade.Adoption {
		before, first, last = "the first start of kthwd on them ("+o.Upgrade.String()+")", "stop kthwd and keep it from starting", "start the programs of before"
	}
	fmt.Fprintf(&b, "Copy of etcd's data and of the files of a controller, made by kthwd on %s,\nbefore %s. It holds private keys.\n\n", k.Made.Format("2006-01-02 15:04 UTC"), before)
	fmt.Fprintf(&b, "It was compared with the data byte by byte; a second copy was opened, at revision %d.\n\n", k.Revision)
	fmt.Fprintf(&b, "To go back, on every controller, with all of them stopped (what was written since is lost):\n\n")
	fmt.Fprintf(&b, "  1. %s\n  2. mv %s/member %s/.upgraded-member\n", first, o.Layout.Etcd(), o.Layout.Etcd())
	fmt.Fprintf(&b, "  3. cp -a %s/etcd/member %s/\n", k.Dir, o.Layout.Etcd())
	if o.WAL != "" {
		fmt.Fprintf(&b, "     etcd's log was in %s: move what is there away, and copy etcd/member/wal there\n", o.WAL)
	}
	if _, err := os.Stat(o.Layout.Record()); err == nil {
		fmt.Fprintf(&b, "  4. cp -a %s/member.json %s\n", k.Dir, o.Layout.Record())
	} else {
		fmt.Fprintf(&b, "  4. rm -f %s\n", o.Layout.Record())
	}
	fmt.Fprintf(&b, "  5. give the files the owner of %s: chown -R --reference=%s …\n  6. %s\n", o.Layout.Dir, o.Layout.Dir, last)
	return []byte(b.String())
}

// adder counts what is written to it.
type adder func(int64)

func (a adder) Write(p []byte) (int, error) {
	a(int64(len(p)))
	return len(p), nil
}
