// Package etcdfiles works on etcd's files while no etcd runs on them.
//
// A Record is a data directory's memory of its member: the IDs of the cluster and the
// member, the number of voters, and the versions that last ran. Guard compares it with etcd's
// write-ahead log and with this binary, and refuses a start that would lose data:
// on a directory whose data are gone or belong to another cluster, or with versions
// that must not follow the last ones. Guard comes after datadir.Lock and before etcd opens
// anything. Versions returns the part of a Record that depends on the binary.
//
// Check searches the log and the backend for damage before etcd opens them, because
// etcd panics or logs a fatal line instead of returning an error. CommitAll marks the entries of
// a log as committed; only a recovery calls it, on a copy.
//
// No function here may be called on the data of a running etcd.
package etcdfiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"google.golang.org/protobuf/proto"
	utilversion "k8s.io/apimachinery/pkg/util/version"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/version"
)

// Record is what a data directory stores about its etcd member, from the first quorum
// on. A directory without one passes every comparison.
type Record struct {
	Cluster    string `json:"cluster"` // IDs in hexadecimal, as etcd writes them
	Member     string `json:"member"`
	Members    int    `json:"members"` // voters
	Kthwd      string `json:"kthwd"`
	Kubernetes string `json:"kubernetes"`
	Etcd       string `json:"etcd"`

	// While an upgrade is not finished, the three above are those that may run again.
	Emulated string `json:"kubernetesEmulated,omitempty"` // minor of Kubernetes
	Before   Ran    `json:"before,omitzero"`              // the versions from before the upgrade
	Last     Ran    `json:"last,omitzero"`                // the versions that ran last, if newer
}

// ReadRecord returns nil if the directory has no record.
func ReadRecord(l pki.Layout) (*Record, error) {
	data, err := os.ReadFile(l.Record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &Record{}
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err != nil {
		return nil, advice.With(fmt.Errorf("%s: %w", l.Record(), err), "the file names the cluster of this directory; if you are certain of the cluster, move it away, and kthwd writes a new one")
	}
	return r, nil
}

// Write replaces the record atomically.
func (r Record) Write(l pki.Layout) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(l.Record(), append(data, '\n'), 0o600)
}

// Guard refuses a directory that this binary or member must not use: its data belong to
// another cluster or member, they are gone, or now must not follow the versions that ran
// last. Without a record, the data themselves say which etcd wrote them. It only reads.
// etcdArgs are the user's.
func Guard(l pki.Layout, etcdArgs []program.Arg, now Record) error {
	r, err := ReadRecord(l)
	if err != nil {
		return err
	}
	if r == nil {
		return tooOld(l, etcdArgs, now)
	}
	back := fmt.Sprintf("to go back, put back a copy of etcd's data from before the upgrade and move %s away", l.Record())
	return errors.Join(r.Follows(now, l.Dir, back), r.checkData(l, walDir(l, etcdArgs)))
}

// walDir returns the directory of etcd's log.
func walDir(l pki.Layout, etcdArgs []program.Arg) string {
	if dir := program.Value(etcdArgs, "wal-dir"); dir != "" {
		return dir
	}
	return filepath.Join(l.Etcd(), "member", "wal")
}

// checkData compares the existing data with the member in the record.
func (r *Record) checkData(l pki.Layout, walDir string) error {
	ids, err := ReadIDs(walDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r.dataGone(l)
	case err != nil:
		return nil // Check reads more closely and reports the damage
	case ids.Cluster != r.Cluster || ids.Member != r.Member:
		return advice.With(fmt.Errorf("%s holds data of etcd cluster %s, member %s, but this controller is member %s of cluster %s",
			l.Etcd(), ids.Cluster, ids.Member, r.Member, r.Cluster),
			fmt.Sprintf("put back this controller's own data; or, if a snapshot was restored here, move %s away", l.Record()))
	}
	return nil
}

// dataGone is the error for a member without its data. Started anew with the same name,
// it would break promises that it made to the others; a lone member would become an
// empty cluster.
func (r *Record) dataGone(l pki.Layout) error {
	if err := RefuseForeign(l.Etcd()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Members > 1 {
		return advice.With(fmt.Errorf("%s holds no data of etcd, but this controller was one of %d members, and must not begin anew as the same one", l.Etcd(), r.Members),
			"if they are on a disk that is not mounted, mount it; if they are lost, run kthwd member remove and kthwd member add on another controller, then kthwd join here")
	}
	return advice.With(fmt.Errorf("%s holds no data of etcd, but it did: a start would make an empty cluster", l.Etcd()),
		fmt.Sprintf("if they are on a disk that is not mounted, mount it; or restore a snapshot; for an empty cluster, move %s away", l.Record()))
}

// ReadIDs returns the cluster and the member that own the log in dir. Each file of the log
// begins with them.
func ReadIDs(dir string) (Record, error) {
	names, err := Logs(dir)
	if err == nil && len(names) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Record{}, err
	}
	f, err := os.Open(slices.Max(names))
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	for rec := (&walpb.Record{}); ; {
		if err := d.Decode(rec); err != nil {
			return Record{}, err
		}
		switch rec.GetType() {
		case wal.CrcType:
			d.UpdateCRC(rec.GetCrc())
		case wal.MetadataType:
			var m etcdserverpb.Metadata
			err := proto.Unmarshal(rec.GetData(), &m)
			return RecordOf(types.ID(m.GetClusterID()), types.ID(m.GetNodeID())), err
		}
	}
}

// RecordOf returns a record with the two IDs only.
func RecordOf(cluster, member types.ID) Record {
	return Record{Cluster: cluster.String(), Member: member.String()}
}

// Follows refuses versions that must not follow those of r: now is this binary's, place is
// what r belongs to, and back is advice for an older binary.
func (r *Record) Follows(now Record, place, back string) error {
	if err := r.refuseSkip(now, place); err != nil {
		return err
	}
	var errs []error
	for _, p := range []struct {
		program, was, is string
		skips            bool // may skip a minor version
	}{
		{"kthwd", releaseOf(r.Kthwd), releaseOf(now.Kthwd), true},
		{"Kubernetes", r.Kubernetes, now.Kubernetes, false},
		{"etcd", r.Etcd, now.Etcd, false},
	} {
		steps, known := Steps(p.was, p.is)
		switch {
		case !known:
		case steps < 0:
			errs = append(errs, advice.With(fmt.Errorf("%s was last run with %s %s, and this kthwd has %s: there is no way back to an older minor", place, p.program, p.was, p.is),
				fmt.Sprintf("run kthwd %s again, or a newer one; %s", r.Kthwd, back)))
		case steps > 1 && !p.skips:
			errs = append(errs, advice.With(fmt.Errorf("%s was last run with %s %s, and this kthwd has %s: a minor must not be skipped", place, p.program, p.was, p.is),
				fmt.Sprintf("run a kthwd with %s %s first, on every controller", p.program, NextMinor(p.was))))
		}
	}
	return errors.Join(errs...)
}

// Steps returns how many minors lie between two versions, less than 0 for an older one. A next
// major version is many steps away. known is false if one of the two is no version.
func Steps(was, is string) (steps int, known bool) {
	a, err := utilversion.ParseGeneric(was)
	b, err2 := utilversion.ParseGeneric(is)
	if err != nil || err2 != nil {
		return 0, false
	}
	return minor(b) - minor(a), true
}

// NextMinor returns the minor after that of a version, such as 1.37 for v1.36.3.
func NextMinor(was string) string {
	v, err := utilversion.ParseGeneric(was)
	if err != nil {
		return "of the next minor"
	}
	return fmt.Sprintf("%d.%d", v.Major(), v.Minor()+1)
}

// minor numbers the minor versions in order. The next major version is many steps away.
func minor(v *utilversion.Version) int { return int(v.Major())*1000 + int(v.Minor()) }

// older reports whether was has an older minor than is. What is no version is not.
func older(was, is string) bool {
	steps, known := Steps(was, is)
	return known && steps > 0
}

// MinorOf returns the first two numbers of a version.
func MinorOf(v string) string {
	parsed, err := utilversion.ParseGeneric(v)
	if err != nil {
		return v
	}
	return fmt.Sprintf("%d.%d", parsed.Major(), parsed.Minor())
}

// releaseOf returns v if it is a release's version, and "" for a developer's build, which has no
// place in the order of versions.
func releaseOf(v string) string {
	if strings.ContainsAny(v, "-+") {
		return ""
	}
	return v
}

// Versions returns the fields of a record that depend on the binary.
func Versions(kthwd string) Record {
	v := version.Linked()
	return Record{Kthwd: kthwd, Kubernetes: v.Kubernetes, Etcd: v.Etcd}
}
