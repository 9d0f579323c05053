package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/etcdrestore"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// RestoreOptions is the input of BeginRestore.
type RestoreOptions struct {
	File       string
	Identities []age.Identity
	Config     config.Controller // of this machine, resolved and valid
	Settings   []byte            // kthwd.yaml for the data directory; nil for none
	Replace    bool              // data of etcd and other files that are there move aside
	Kthwd      string
	Log        *slog.Logger
	Report     func(step.Event)
}

// Restore makes this machine the only controller of the cluster in an archive. Call
// BeginRestore, show the plan, call Run, then Close.
//
// Everything is made complete beside the files in use, in hidden directories. One file,
// restore.json, is the step between undone and done: before it is written nothing has
// changed, and the next restore removes what is left over; afterwards this process or the
// next start puts everything in place (datadir.FinishRestore).
type Restore struct {
	Manifest archive.Manifest
	Size     int64    // of the archive
	Old      string   // etcd's data that move aside; "" for none
	Aside    string   // where they are afterwards
	Given    []string // files of the data directory that the archive lacks, and that are used
	Made     []string // after Run: files made anew
	Revision int64    // after Run: of the restored store

	o      RestoreOptions
	layout pki.Layout
	lock   *os.File
	opened *archive.Archive
	stamp  string
	added  []string // after Run: files that had no predecessor here
}

// bump is added to the revision, so that every watcher begins anew: as many writes as no
// cluster makes between a backup and its loss (etcd.io/docs, restoring with revision bump).
const bump = 1_000_000_000

// BeginRestore reads the archive up to the database, and refuses what cannot be restored
// here. It writes nothing but the lock of an existing data directory.
func BeginRestore(o RestoreOptions) (_ *Restore, err error) {
	r := &Restore{o: o, layout: o.Config.Layout()}
	r.choose(time.Now())
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.opened, err = archive.Open(o.File, o.Identities...); err != nil {
		return nil, err
	}
	r.Manifest, r.Size = r.opened.Manifest, r.opened.Size
	if err := verify.Fits(r.opened, o.Kthwd); err != nil {
		return nil, err
	}
	if dir := program.Value(program.ParseUser(o.Config.EtcdArgs), "wal-dir"); dir != "" {
		return nil, advice.With(fmt.Errorf("--etcd-arg=wal-dir=%s: a restore puts etcd's log next to the database", dir), "leave the argument out")
	}
	if err := datadir.Usable(r.layout); err != nil {
		return nil, err
	}
	if datadir.Exists(r.layout.Lock()) {
		if err := r.takeLock(); err != nil {
			return nil, err
		}
	}
	return r, errors.Join(r.checkData(), r.checkFiles())
}

// choose sets the stamp of this restore's directories: one that no other restore has, whose old data
// would be taken for what this one has left over.
func (r *Restore) choose(now time.Time) {
	at := now.UTC().Format("20060102T150405Z")
	r.stamp = at
	taken := func() bool {
		return slices.ContainsFunc([]string{r.stage(), r.work(), r.newFiles(), filepath.Join(r.layout.Dir, restoreAside+r.stamp), filepath.Join(r.layout.Dir, restoreAdded+r.stamp)}, datadir.Exists)
	}
	for i := 2; taken(); i++ {
		r.stamp = fmt.Sprintf("%s-%d", at, i)
	}
}

// takeLock locks the data directory, and ends what an earlier restore has begun there.
func (r *Restore) takeLock() (err error) {
	if r.lock, err = datadir.Lock(r.layout); err != nil {
		return err
	}
	done, err := datadir.FinishRestore(r.layout)
	if done {
		r.o.Log.Warn("an earlier restore, which was interrupted, is finished first", "dir", r.layout.Dir)
	}
	return err
}

// Close releases the data directory and the archive.
func (r *Restore) Close() {
	if r.opened != nil {
		r.opened.Close()
	}
	if r.lock != nil {
		_ = r.lock.Truncate(0)
		r.lock.Close()
	}
}

func (r *Restore) checkData() error {
	if !r.layout.HasData() {
		return nil
	}
	r.Old = filepath.Join(r.layout.Etcd(), "member")
	r.Aside = r.stage()
	if !r.o.Replace {
		return advice.With(fmt.Errorf("%s holds data of etcd", r.layout.Etcd()), "with --replace-data they move aside, and nothing is deleted; or name another --data-dir")
	}
	return nil
}

// The directories of a restore. The first one keeps the old data of etcd.
func (r *Restore) stage() string {
	return filepath.Join(r.layout.Etcd(), restoreEtcd+r.stamp)
}

func (r *Restore) work() string { return filepath.Join(r.layout.Etcd(), restoreWork+r.stamp) }

func (r *Restore) newFiles() string { return filepath.Join(r.layout.Dir, restoreFiles+r.stamp) }

const (
	restoreEtcd  = ".before-restore-"
	restoreWork  = ".restoring-" // the archive, and the lock of nothing: it is removed before the end
	restoreFiles = ".restored-files-"
	restoreAside = ".before-restore-files-"
	restoreAdded = ".after-restore-files-" // of WayBack
)

// checkFiles refuses an archive without the secrets that its data depend on, unless this machine has
// them, and files on this machine that are not those of the archive.
func (r *Restore) checkFiles() error {
	var missing, other []string
	for _, name := range r.Manifest.LeftOut {
		switch {
		case datadir.Exists(r.layout.Path(name)):
			r.Given = append(r.Given, name)
		case !replaceable(name):
			missing = append(missing, name)
		}
	}
	for name, data := range r.opened.Files {
		is, err := os.ReadFile(filepath.Join(r.layout.Dir, name))
		if err == nil && string(is) != string(data) && !replaceable(name) && name != archive.ConfigFile {
			other = append(other, name)
		}
	}
	errs := r.checkElsewhere()
	if len(missing) > 0 {
		errs = append(errs, advice.With(fmt.Errorf("%s was made without secrets, and the restored cluster needs %s", r.o.File, strings.Join(missing, ", ")),
			"put copies of these files into "+r.layout.Dir+" first"))
	}
	if len(other) > 0 && !r.o.Replace {
		slices.Sort(other)
		errs = append(errs, advice.With(fmt.Errorf("%s has other files than the archive: %s", r.layout.Dir, strings.Join(other, ", ")),
			"with --replace-data they move aside; or name another --data-dir"))
	}
	return errors.Join(errs...)
}

// checkElsewhere refuses files outside the data directory, which a restore does not touch, that are not
// those of the archive: a start would read them in place of the restored ones.
func (r *Restore) checkElsewhere() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(r.layout.Elsewhere)) {
		data, archived := r.opened.Files[name]
		if !archived || replaceable(name) {
			continue
		}
		at := r.layout.Path(name)
		if is, err := os.ReadFile(at); err != nil || !bytes.Equal(is, data) {
			errs = append(errs, advice.With(fmt.Errorf("files of the configuration has %s for %s, and that is not the one of the archive", at, name),
				"bring "+at+" back as it was; or take "+name+" out of files, and the restored one in "+r.layout.Dir+" counts"))
		}
	}
	return errs
}

// replaceable reports whether a file can be made anew from the others: the CA signs it.
func replaceable(name string) bool {
	l := pki.Layout{}
	for _, path := range []string{l.CA(), l.CAKey(), l.Cert(pki.NameServiceAccount), l.Key(pki.NameServiceAccount), l.Cert(pki.NameFrontProxyCA), l.Key(pki.NameFrontProxyCA),
		l.EtcdCA(), l.EtcdCAKey(), l.EncryptionConfig()} {
		if name == path {
			return false
		}
	}
	return slices.Contains(l.Files(), name)
}

// Run restores. If ctx ends, or the process dies, before all is complete on the disk, nothing
// has changed; otherwise the restore is done, at the next start at the latest.
func (r *Restore) Run(ctx context.Context) error {
	if r.lock == nil {
		if err := r.takeLock(); err != nil {
			return err
		}
		if err := r.checkData(); err != nil { // another process may have been here before the lock
			return err
		}
	}
	if err := os.MkdirAll(r.layout.Etcd(), 0o700); err != nil {
		return err
	}
	if err := etcdfiles.RefuseForeign(r.layout.Etcd()); err != nil {
		return err
	}
	r.removeLeftovers()
	if err := workdir.EnoughRoom(r.layout.Etcd(), 2*r.Manifest.Database().Size); err != nil {
		return err
	}
	for _, s := range r.steps(ctx) {
		var err error
		if !s.committed {
			err = ctx.Err()
		}
		if err == nil {
			err = s.do()
		}
		if err != nil && !s.committed {
			r.removeLeftovers()
			return fmt.Errorf("%s, nothing has changed: %w", s.what, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// part is one part of a restore. The process may die during it or after it.
type part struct {
	what      string
	committed bool // the restore can no longer be undone when the part begins
	do        func() error
}

func (r *Restore) steps(ctx context.Context) []part {
	database := filepath.Join(r.work(), archive.Database)
	t := etcdrestore.Target{Name: r.o.Config.Name, PeerURL: "https://" + net.JoinHostPort(r.o.Config.AdvertiseAddress, strconv.Itoa(r.o.Config.EtcdPeerPort)), Bump: bump}
	journal := datadir.Restore{
		Files: r.newFiles(), Aside: filepath.Join(r.layout.Dir, restoreAside+r.stamp), Member: filepath.Join(r.stage(), "member"),
	}
	return []part{
		{"see whether directories can be exchanged", false, r.tryExchange},
		{"read the archive", false, func() error {
			return step.Run(r.o.Report, step.Extract, r.Manifest.Database().Size, func(add func(int64)) error { return r.opened.ExtractDatabase(database, add) })
		}},
		{"restore the database", false, func() (err error) {
			if t.Token, err = newToken(); err != nil {
				return err
			}
			return step.Run(r.o.Report, step.Restore, 0, func(func(int64)) error { return etcdrestore.Run(ctx, database, r.stage(), t) })
		}},
		{"forget what is not of the new cluster", false, func() error {
			return step.Run(r.o.Report, step.Read, 0, func(func(int64)) error { return r.forget(ctx) })
		}},
		{"make the files", false, func() error {
			return step.Run(r.o.Report, step.Files, 0, func(func(int64)) error { return r.makeFiles() })
		}},
		{"write all to the disk", false, func() error {
			return errors.Join(os.RemoveAll(r.work()), workdir.SyncTree(r.stage()), workdir.SyncTree(r.newFiles()), durable.Sync(r.layout.Etcd()), durable.Sync(r.layout.Dir))
		}},
		{"begin the exchange", false, func() error {
			journal.Remove, r.added = r.stale(), r.without()
			return journal.Commit(r.layout)
		}},
		{"put all in place", true, func() error { _, err := datadir.FinishRestore(r.layout); return err }},
	}
}

// newToken distinguishes the new cluster from the old one, so that no old member is taken
// for one of the new cluster.
func newToken() (string, error) {
	b := make([]byte, 8)
	_, err := rand.Read(b)
	return "restored-" + hex.EncodeToString(b), err
}

// tryExchange finds out now what would fail only after the commit, and makes the directory
// for the archive.
func (r *Restore) tryExchange() error {
	a, b := r.work(), r.stage()
	if err := errors.Join(os.Mkdir(a, 0o700), os.Mkdir(b, 0o700)); err != nil {
		return err
	}
	if r.Old != "" {
		if err := datadir.Exchange(a, b); err != nil {
			return err
		}
	}
	return nil
}

// forget deletes from the restored store what belongs to the controllers and the joins of
// back then.
func (r *Restore) forget(ctx context.Context) (err error) {
	e, err := embedded.OpenOffline(ctx, r.o.Config.Name, r.stage(), false, r.o.Log)
	if err != nil {
		return err
	}
	defer func() {
		if died := e.Close(); died != nil {
			err = died
		}
	}()
	prefix := strings.TrimRight(r.Manifest.Prefix, "/")
	for _, gone := range []string{
		"/kthwd/joins/",           // tokens of joins that are over
		"/kthwd/handover",         // between members that are gone
		RecordKey,                 // archives of the cluster before
		prefix + "/masterleases/", // API servers that are gone would stay among the endpoints
	} {
		del := &pb.DeleteRangeRequest{Key: []byte(gone)}
		if strings.HasSuffix(gone, "/") {
			del.RangeEnd = []byte(clientv3.GetPrefixRangeEnd(gone))
		}
		if _, err := e.Server.DeleteRange(ctx, del); err != nil {
			return fmt.Errorf("delete %s: %w", gone, err)
		}
	}
	r.Revision = e.Server.KV().Rev()
	return nil
}

// makeFiles makes the complete set of files for this machine: those of the archive, what the
// data directory has in place of secrets that the archive lacks, and new certificates where
// the archived ones do not fit this machine.
func (r *Restore) makeFiles() error {
	dir := r.newFiles()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, data := range r.opened.Files {
		if name == archive.ConfigFile || name == filepath.Base(r.layout.Record()) {
			continue
		}
		if strings.HasSuffix(name, ".kubeconfig") {
			data = r.moved(data)
		}
		if err := durable.Create(filepath.Join(dir, name), data, fs.FileMode(r.Manifest.Find(archive.FilesDir+name).Mode)); err != nil {
			return err
		}
	}
	for _, name := range r.Given {
		data, err := os.ReadFile(r.layout.Path(name))
		if err != nil {
			return err
		}
		if err := durable.Create(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := r.issue(dir); err != nil {
		return err
	}
	if r.o.Settings != nil {
		if err := durable.Create(filepath.Join(dir, archive.ConfigFile), r.o.Settings, 0o600); err != nil {
			return err
		}
	}
	return r.writeRecord(dir)
}

// moved lets a kubeconfig for the API server on its own machine follow that one's address.
func (r *Restore) moved(kubeconfig []byte) []byte {
	const key = "server: "
	return bytes.ReplaceAll(kubeconfig, []byte(key+r.Manifest.Server+"\n"), []byte(key+r.o.Config.LocalServer()+"\n"))
}

// issue makes certificates and kubeconfigs anew that do not fit this machine. The names of
// an old kubernetes.pem stay in the new one.
func (r *Restore) issue(dir string) error {
	l := pki.Layout{Dir: dir, EtcdDir: filepath.Join(dir, "none")}
	for _, name := range []string{pki.NameKubernetes, pki.NameAdmin, pki.NameControllerManager, pki.NameScheduler, pki.NameHealth, pki.NameFrontProxyClient, pki.NameEtcd} {
		if datadir.Exists(l.Cert(name)) && !datadir.Exists(l.Key(name)) {
			if err := os.Remove(l.Cert(name)); err != nil { // its key was left out of the archive
				return err
			}
		}
	}
	spec := r.o.Config.PKISpec()
	for {
		_, err := pki.Check(l, spec)
		removed, errRemove := removeMisfits(dir, err)
		if errRemove != nil {
			return errRemove
		}
		if removed == 0 {
			break
		}
	}
	report, err := pki.Ensure(l, spec)
	if err != nil {
		return err
	}
	for _, path := range report.Created {
		r.Made = append(r.Made, filepath.Base(path))
	}
	return nil
}

// removeMisfits removes the files that do not fit and can be made anew, with their keys.
func removeMisfits(dir string, err error) (removed int, _ error) {
	for _, e := range advice.Lines(err) {
		m, ok := errors.AsType[*pki.Misfit](e)
		if !ok || filepath.Dir(m.File) != dir || !replaceable(filepath.Base(m.File)) {
			continue
		}
		name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(m.File), ".pem"), "-key")
		for _, path := range []string{m.File, filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")} {
			switch err := os.Remove(path); {
			case err == nil:
				removed++
			case !errors.Is(err, fs.ErrNotExist):
				return removed, err
			}
		}
	}
	return removed, nil
}

// writeRecord writes the record of the member that the restored data have.
func (r *Restore) writeRecord(dir string) error {
	ids, err := etcdfiles.ReadIDs(filepath.Join(r.stage(), "member", "wal"))
	if err != nil {
		return err
	}
	record := etcdfiles.Versions(r.o.Kthwd)
	record.Cluster, record.Member, record.Members = ids.Cluster, ids.Member, 1
	return record.Write(pki.Layout{Dir: dir})
}

// stale are the files of the data directory that have no place in the restored cluster:
// those that an archive would have and this one has not, and a pending join.
func (r *Restore) stale() (names []string) {
	entries, _ := os.ReadDir(r.layout.Dir)
	for _, e := range entries {
		path := filepath.Join(r.layout.Dir, e.Name())
		kept := datadir.Exists(filepath.Join(r.newFiles(), e.Name()))
		if e.Type().IsRegular() && !kept && (archive.Wanted(r.layout, e.Name()) || path == r.layout.JoinRecord()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// without are the new files that have no predecessor in the data directory.
func (r *Restore) without() (names []string) {
	entries, _ := os.ReadDir(r.newFiles())
	for _, e := range entries {
		if !datadir.Exists(filepath.Join(r.layout.Dir, e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names
}

// WayBack are the shell commands that put back what was here before Run, while kthwd is stopped;
// none if nothing was. They delete no data of etcd, which go to Aside; restored files that were
// others before are overwritten, and are in the archive. Nothing has verified the old data.
func (r *Restore) WayBack() (commands []string) {
	word := func(path ...string) string { return text.ShellWord(filepath.Join(path...)) }
	dir, err := filepath.Abs(r.layout.Dir)
	etcdDir, err2 := filepath.Abs(r.layout.Etcd())
	if err != nil || err2 != nil {
		dir, etcdDir = r.layout.Dir, r.layout.Etcd()
	}
	stage, files := filepath.Join(etcdDir, restoreEtcd+r.stamp), filepath.Join(dir, restoreAside+r.stamp)
	replaced := datadir.Exists(files)
	if r.Old == "" && !replaced {
		return nil
	}
	if r.Old != "" {
		commands = append(commands, "mv -T "+word(etcdDir, "member")+" "+word(stage, "restored"), "mv -T "+word(stage, "member")+" "+word(etcdDir, "member"))
	}
	if replaced {
		commands = append(commands, "cp -a "+text.ShellWord(files+"/.")+" "+text.ShellWord(dir+"/"))
	}
	if len(r.added) > 0 {
		added := filepath.Join(dir, restoreAdded+r.stamp)
		move := "mv -t " + text.ShellWord(added)
		for _, name := range r.added {
			move += " " + word(dir, name)
		}
		commands = append(commands, "mkdir -m 700 "+text.ShellWord(added), move)
	}
	return commands
}

// removeLeftovers removes the directories of restores that have not been committed. The
// caller holds the lock, and no restore is committed.
func (r *Restore) removeLeftovers() {
	for _, pattern := range []string{filepath.Join(workdir.GlobEscape(r.layout.Etcd()), restoreWork+"*"), filepath.Join(workdir.GlobEscape(r.layout.Dir), restoreFiles+"*")} {
		all, _ := filepath.Glob(pattern)
		for _, path := range all {
			stamp := strings.TrimPrefix(strings.TrimPrefix(filepath.Base(path), restoreWork), restoreFiles)
			// This one has no old data: they go there with the exchange, after these two are gone.
			_ = os.RemoveAll(filepath.Join(r.layout.Etcd(), restoreEtcd+stamp))
			_ = os.RemoveAll(path)
		}
	}
}
