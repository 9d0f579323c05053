// Package recovery makes a cluster of one from one member's data, after the others
// are lost for good.
//
// Begin takes the data directory's lock, reads the log and the store, and refuses a
// member that is alone already, had no vote, or has a lost member that still answers.
// The caller shows the result, asks the user, and calls Run. Close releases the lock.
//
//	r, err := recovery.Begin(ctx, cfg, version, log)
//	defer r.Close()
//	revision, err := r.Run(ctx)
//
// Run works on a copy and exchanges the two directories in one system call, so
// either the old data or the complete new data are in place whenever the process
// dies. The next Run removes an unfinished copy. The old data stay beside the new.
//
// No kthwd may run on the directory meanwhile, which the lock enforces. The package
// does not inform the lost members: if one of them starts again,
// there are two clusters.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// Recovery makes one member the only member of its cluster, after the others are lost
// for good. Call Begin, show the plan, call Run, then Close.
//
// It works on a copy inside etcd's data directory, never on the data themselves:
//
//	etcd/member                           the data
//	etcd/.before-recover-TIME/member      the copy, on which etcd forces a new cluster
//	etcd/.before-recover-TIME/unfinished  which of the two is the older one
//
// When the copy is complete and on the disk, one system call swaps the two directories.
// So etcd/member holds either the old data or the complete new data, whenever the process
// or the machine dies; the old data stay beside it.
type Recovery struct {
	Name    string   // of the member
	Member  string   // ids as etcd writes them, in hexadecimal
	Cluster string   //
	Lost    []Lost   // the members that are given up
	Rev     int64    // the store's revision; the log may hold later ones
	Data    string   // the directory that is copied
	Size    int64    // of the data, in bytes
	Backup  string   // where the old data are afterwards
	Cleared []string // leftovers of interrupted recoveries; removed by Run

	layout  pki.Layout
	version string
	log     *slog.Logger
	lock    *os.File
	self    etcdfiles.StoredMember
}

// Lost is a member that is given up.
type Lost struct {
	Name    string
	Peers   []string
	Learner bool
	Answers string // the one of Peers that accepts a connection; "" means none
}

// backupPrefix begins the name of the directory for the copy, then for the old data.
const backupPrefix = ".before-recover-"

// unfinished is the name of the mark, see mark.
const unfinished = "unfinished"

const recoverMargin = 128 << 20 // etcd allocates two log files of 64 MB

const peerTimeout = 2 * time.Second // to connect to a lost member

// Begin locks the data directory, which no kthwd may use, and reads its member. It
// changes nothing else. version is kthwd's own.
func Begin(ctx context.Context, c config.Controller, version string, log *slog.Logger) (_ *Recovery, err error) {
	r := &Recovery{layout: c.Layout(), version: version, log: log}
	r.Data = filepath.Join(r.layout.Etcd(), "member")
	userArgs := program.ParseUser(c.EtcdArgs)
	if dir := program.Value(userArgs, "wal-dir"); dir != "" {
		return nil, advice.With(fmt.Errorf("etcd's log is in %s (--etcd-arg=wal-dir): kthwd etcd recover requires it next to the database", dir),
			fmt.Sprintf("move its files into %s and leave the argument out", filepath.Join(r.Data, "wal")))
	}
	if _, err := os.Stat(filepath.Join(r.Data, "wal")); err != nil {
		return nil, advice.With(fmt.Errorf("no data of etcd in %s: %w", r.layout.Etcd(), err), "name the directory with --data-dir, or the configuration file with --config")
	}
	if r.lock, err = datadir.Lock(r.layout); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if _, err := datadir.FinishRestore(r.layout); err != nil {
		return nil, err
	}
	if err := etcdfiles.Guard(r.layout, userArgs, etcdfiles.Versions(version)); err != nil {
		return nil, err
	}
	if err := etcdfiles.Check(r.layout.Etcd()); err != nil {
		return nil, etcdfiles.Unusable(r.layout.Etcd(), err)
	}
	if err := errors.Join(r.readLog(), r.readStore(), r.measure(), r.findLeftovers()); err != nil {
		return nil, err
	}
	r.Backup = newName(filepath.Join(r.layout.Etcd(), backupPrefix+time.Now().UTC().Format("20060102T150405Z")))
	r.probeLost(ctx)
	return r, r.refuse()
}

// newName returns path, with a number appended if path exists.
func newName(path string) string {
	name := path
	for i := 2; ; i++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name
		}
		name = fmt.Sprintf("%s-%d", path, i)
	}
}

// Close releases the data directory.
func (r *Recovery) Close() {
	if r.lock != nil {
		_ = r.lock.Truncate(0)
		r.lock.Close()
	}
}

func (r *Recovery) readLog() error {
	ids, err := etcdfiles.ReadIDs(filepath.Join(r.Data, "wal"))
	r.Member, r.Cluster = ids.Member, ids.Cluster
	return err
}

// readStore reads the members and the revision from etcd's database.
func (r *Recovery) readStore() error {
	members, revision, err := etcdfiles.ReadStore(r.Data)
	r.Rev = revision
	for _, m := range members {
		if m.ID == r.Member {
			r.self, r.Name = m, m.Name
		} else {
			r.Lost = append(r.Lost, Lost{Name: m.Name, Peers: m.PeerURLs, Learner: m.IsLearner})
		}
	}
	return err
}

// measure adds up the size of the data. Only plain files and directories are copied.
func (r *Recovery) measure() error {
	return filepath.WalkDir(r.Data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && !info.Mode().IsRegular() {
			err = advice.With(fmt.Errorf("%s is neither a file nor a directory", path), "put what it stands for in its place")
		}
		if err == nil {
			r.Size += info.Size()
		}
		return err
	})
}

// probeLost checks whether the members that would be given up answer.
func (r *Recovery) probeLost(ctx context.Context) {
	var all sync.WaitGroup
	for i := range r.Lost {
		all.Go(func() {
			for _, peer := range r.Lost[i].Peers {
				if u, err := url.Parse(peer); err == nil && listens(ctx, u.Host) {
					r.Lost[i].Answers = peer
				}
			}
		})
	}
	all.Wait()
	slices.SortFunc(r.Lost, func(a, b Lost) int { return strings.Compare(a.Name, b.Name) })
}

func listens(ctx context.Context, address string) bool {
	d := net.Dialer{Timeout: peerTimeout}
	c, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// refuse returns the reason to refuse the recovery, or nil.
func (r *Recovery) refuse() error {
	for _, l := range r.Lost {
		if l.Answers != "" {
			return advice.With(fmt.Errorf("%s is not lost: somebody listens at %s; with it there would be two clusters of the same name", l.Name, l.Answers),
				"start kthwd here, and they find each other; or stop it there, for good")
		}
	}
	switch {
	case len(r.Lost) == 0:
		return advice.With(fmt.Errorf("%s is the only member of its cluster: there is nothing to recover from", r.Name), "start kthwd")
	case r.self.IsLearner || r.Name == "":
		return advice.With(errors.New("this member had no vote yet, so it may lack what the others have acknowledged"),
			"recover on a controller that was a full member, or restore a snapshot")
	}
	return r.checkFreeSpace()
}

// checkFreeSpace checks that the copy fits on the disk.
func (r *Recovery) checkFreeSpace() error {
	var disk unix.Statfs_t
	if err := unix.Statfs(r.layout.Etcd(), &disk); err != nil {
		return fmt.Errorf("free space of %s: %w", r.layout.Etcd(), err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < r.Size+recoverMargin {
		return advice.With(fmt.Errorf("%s has %d MB free, and the copy of etcd's data needs %d MB", r.layout.Etcd(), free>>20, (r.Size+recoverMargin)>>20),
			"make room; or copy etcd's directory to a larger disk and name it with --etcd-data-dir")
	}
	return nil
}

// Run recovers the member and returns the revision of the store. If ctx ends before the
// directories are swapped, nothing has changed; afterwards it does not count.
func (r *Recovery) Run(ctx context.Context) (revision int64, err error) {
	steps := r.steps(ctx, &revision)
	for _, s := range steps {
		var err error
		if !s.changed {
			err = ctx.Err()
		}
		if err == nil {
			err = s.do()
		}
		if err != nil {
			if s.changed {
				return revision, fmt.Errorf("%s, after the new data took their place: %w", s.what, err)
			}
			return 0, fmt.Errorf("%s, nothing has changed: %w", s.what, errors.Join(err, os.RemoveAll(r.Backup)))
		}
	}
	return revision, nil
}

// WayBack are the shell commands that put the data as they were in place again, after Run and while
// kthwd is stopped. They delete nothing: the recovered data go to Backup. Repeated, they fail.
func (r *Recovery) WayBack() []string {
	data, backup := absolute(r.Data), absolute(r.Backup)
	return []string{
		"mv -T " + text.ShellWord(data) + " " + text.ShellWord(filepath.Join(backup, "recovered")),
		"mv -T " + text.ShellWord(filepath.Join(backup, "member")) + " " + text.ShellWord(data),
	}
}

// absolute is a path that counts in any working directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// step is one part of a recovery. The process may die during it or after it.
type step struct {
	what    string
	changed bool // the new data are in place when the step begins
	do      func() error
}

func (r *Recovery) steps(ctx context.Context, revision *int64) []step {
	copied := filepath.Join(r.Backup, "member")
	mark := filepath.Join(r.Backup, unfinished)
	return []step{
		{"remove what was not finished", false, r.clear},
		{"mark the copy", false, func() error { return r.mark(mark) }},
		{"copy etcd's data", false, func() error { return copyTree(ctx, r.Data, copied) }},
		{"force a new cluster", false, func() (err error) {
			*revision, err = embedded.ForceAlone(ctx, r.Name, r.Backup, r.self.ClientURLs, r.log)
			return err
		}},
		{"write the new data to the disk", false, func() error {
			return errors.Join(syncTree(copied), durable.Sync(r.Backup), durable.Sync(r.layout.Etcd()))
		}},
		{"put the new data in place", false, func() error { return datadir.Exchange(r.Data, copied) }},
		{"write the change to the disk", true, func() error { return errors.Join(durable.Sync(r.layout.Etcd()), durable.Sync(r.Backup)) }},
		{"remember the new cluster", true, r.remember},
		{"take the mark away", true, func() error { return errors.Join(os.Remove(mark), durable.Sync(r.Backup)) }},
	}
}

// mark records the inode of the directory that holds the data now. While etcd/member has
// that inode, the marked directory holds an unfinished copy.
func (r *Recovery) mark(path string) error {
	inode, err := datadir.Inode(r.Data)
	if err == nil {
		err = os.Mkdir(r.Backup, 0o700)
	}
	if err != nil {
		return err
	}
	return errors.Join(durable.Write(path, fmt.Appendln(nil, inode), 0o600), durable.Sync(r.Backup), durable.Sync(r.layout.Etcd()))
}

// findLeftovers finds copies that never replaced the data.
func (r *Recovery) findLeftovers() error {
	marks, err := fs.Glob(os.DirFS(r.layout.Etcd()), backupPrefix+"*/"+unfinished)
	if err != nil || len(marks) == 0 {
		return err
	}
	inode, err := datadir.Inode(r.Data)
	if err != nil {
		return err
	}
	for _, name := range marks {
		m := filepath.Join(r.layout.Etcd(), name)
		data, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		// An empty mark was not fully written, so no copy was begun.
		if was := strings.TrimSpace(string(data)); was == "" || datadir.SameInode(was, inode) {
			r.Cleared = append(r.Cleared, filepath.Dir(m))
		}
	}
	return nil
}

func (r *Recovery) clear() error {
	for _, dir := range r.Cleared {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// remember writes the record of a member that is alone now.
func (r *Recovery) remember() error {
	now := etcdfiles.Versions(r.version)
	record := now
	before, err := etcdfiles.ReadRecord(r.layout)
	if err != nil {
		return err
	}
	if before.Emulates(now) != "" { // an upgrade goes on where it was
		base, _ := before.Base(now)
		record = record.Emulating(base, now)
	}
	record.Cluster, record.Member, record.Members = r.Cluster, r.Member, 1
	return record.Write(r.layout)
}
