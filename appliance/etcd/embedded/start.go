// Package embedded starts etcd in this process, and turns what etcd ends a process with, a fatal line
// or a panic, into an error with advice.
//
// OpenOffline and ForceAlone start a member without ports, on files that no other etcd uses.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/supervise"
)

// Prepare makes the data directory, readable by its owner only, checks existing data, and deletes what a
// defragmentation that was killed has left. The caller has the directory for itself.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := etcdfiles.RefuseForeign(dir); err != nil {
		return err
	}
	if err := etcdfiles.Check(dir); err != nil {
		return etcdfiles.Unusable(dir, err)
	}
	return removeDefragmented(dir)
}

// removeDefragmented deletes copies of the database that a defragmentation has not finished. etcd 3.6 did so
// itself at each start; since 3.7 nothing calls cleanupSnapdir
// (go.etcd.io/etcd/server/v3/etcdserver/api/snap/snapshotter.go).
func removeDefragmented(dir string) error {
	snap := filepath.Join(dir, "member", "snap")
	names, err := os.ReadDir(snap)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), "db.tmp") && n.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(snap, n.Name())))
		}
	}
	return err
}

// Start runs embed.StartEtcd, which may log a fatal line or panic on damaged data. Both
// become errors here; the logger sends its fatal line to fatal. It returns nil, nil if ctx ends
// first, and calls late with a server that has started after all.
func Start(ctx context.Context, cfg *embed.Config, fatal <-chan error, report supervise.Reporter, late func(*embed.Etcd)) (*embed.Etcd, error) {
	type result struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				started <- result{nil, fmt.Errorf("%v", v)}
			}
		}()
		server, err := embed.StartEtcd(cfg)
		started <- result{server, err}
	}()
	report.Starting("opening " + cfg.Dir)
	select {
	case r := <-started:
		return r.server, Explain(cfg.Dir, r.err)
	case err := <-fatal:
		return nil, Explain(cfg.Dir, err)
	case <-ctx.Done():
		// StartEtcd takes no context. If it still returns, its server must be closed.
		if r := <-started; r.server != nil {
			late(r.server)
		}
		return nil, nil
	}
}

// Explain adds advice to an error of StartEtcd, unless the network caused it.
func Explain(dir string, err error) error {
	var network *net.OpError
	if err == nil || errors.As(err, &network) {
		return err
	}
	if r := known(err, append(slices.Clip(refusals), fallenBehind...)); r != nil {
		return r
	}
	return etcdfiles.Unusable(dir, err)
}

// FallenBehind returns the fatal line of a member that hears what it lacks, with advice, and nil for
// any other error.
func FallenBehind(err error) error { return known(err, fallenBehind) }

// known returns err with advice if it is in the table, and nil for any other.
func known(err error, table []refusal) error {
	for _, r := range table {
		if strings.Contains(err.Error(), r.theirs) {
			return advice.With(fmt.Errorf("%s: %w", r.ours, err), r.hint)
		}
	}
	return nil
}

type refusal struct{ theirs, ours, hint string }

// refusals are the errors with which etcd refuses to start although its data are intact
// (etcdserver/bootstrap.go, storage/schema/schema.go), with advice.
var refusals = []refusal{
	{"has already been bootstrapped", "the cluster knows this member, but its data are not here",
		"if they are on a disk that is not mounted, mount it; if they are lost, run kthwd member remove and kthwd member add on another controller, then kthwd join here"},
	{"error validating peerURLs", "initial-cluster does not list the members that the cluster has",
		"kthwd member list on another controller shows them; kthwd member add there and kthwd join here make it right"},
	{"cannot fetch cluster info from peer urls", "no member of the cluster answers",
		"check that the other controllers run and that their peer ports (2380) can be reached from here"},
	{"is not supported", "a newer etcd has written these data, and they are good",
		"run the kthwd that wrote them, or a newer one; to come back to this one, run kthwd upgrade back there first"},
	{"incompatible with current running cluster", "the etcd in this kthwd does not fit the other members'",
		"kthwd version on every controller shows which ones run"},
}

// fallenBehind are the panics of a member that hears what it lacks, in StartEtcd or later: it is
// older than the cluster (version/downgrade.go), or its log is older than what it has acknowledged
// (go.etcd.io/raft/v3/log.go).
var fallenBehind = []refusal{
	{"invalid downgrade; server version is lower", "etcd's other members are of a newer minor, and this one cannot take part; its data are good",
		"run the kthwd of the other controllers here: kthwd upgrade status on one of them says which"},
	{"Was the raft log corrupted, truncated, or lost?", "etcd's data here are older than what this member has acknowledged to the others, such as a copy from before",
		"they cannot be used: kthwd member remove and kthwd member add on another controller, then kthwd join --replace-data here"},
}
