package upgrade

import (
	"log/slog"
	"testing"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// startOn makes the watch of a start of after's versions on a directory with a record.
func startOn(t *testing.T, r *etcdfiles.Record, emulated string) *Watch {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	if r != nil {
		if err := r.Write(l); err != nil {
			t.Fatal(err)
		}
	}
	now := etcdfiles.Record{Kthwd: after.Kthwd, Kubernetes: after.Kubernetes, Etcd: after.Etcd}
	if emulated == "own" {
		emulated = r.Emulates(now)
	}
	return New(Config{Name: "c0", Layout: l, APIServer: program.WithEmulation(nil, emulated), Now: now, Log: slog.New(slog.DiscardHandler)})
}

func TestRemember(t *testing.T) {
	old := etcdfiles.Record{Kthwd: before.Kthwd, Kubernetes: before.Kubernetes, Etcd: before.Etcd}
	is := etcdfiles.Record{Kthwd: after.Kthwd, Kubernetes: after.Kubernetes, Etcd: after.Etcd}
	ended := open
	ended.Finished = true
	for _, tt := range []struct {
		name     string
		record   *etcdfiles.Record
		emulated string
		oldest   string
		state    State
		mayBack  bool // the old kthwd may run again
		next     string
	}{
		{"a new directory", nil, "own", after.Etcd, State{}, false, ""},
		{"no upgrade", &is, "own", after.Etcd, State{}, false, ""},
		{"before the first look", &old, "own", "", State{}, false, "1.36"},
		{"others are old", &old, "own", "3.6.0", open, true, "1.36"},
		{"all are new", &old, "own", after.Etcd, open, false, "1.36"},
		{"finished", &old, "own", after.Etcd, ended, false, ""},
		{"finished, and etcd lags", &old, "own", "3.6.0", ended, false, ""},
		{"the user emulates nothing", &old, "1.37", "3.6.0", open, false, ""},
		{"the user emulates an older one", &old, "1.35", "3.6.0", open, true, "1.35"},
		{"the user emulates without an upgrade", &is, "1.36", after.Etcd, State{}, false, "1.36"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := startOn(t, tt.record, tt.emulated)
			w.state, w.oldest = tt.state, tt.oldest
			r := w.Remember()
			w.Wrote(r)
			if err := r.Follows(old, "here", ""); (err == nil) != tt.mayBack {
				t.Errorf("the old kthwd after %+v: %v", r, err)
			}
			if err := r.Follows(is, "here", ""); err != nil {
				t.Errorf("this kthwd after %+v: %v", r, err)
			}
			if got := w.Report().Next; got != tt.next {
				t.Errorf("the next start emulates %q, want %q", got, tt.next)
			}
			if again := startOn(t, &r, "own"); tt.emulated == "own" && tt.record == &old && again.base != before && !tt.state.Finished {
				t.Errorf("the next start's base: %+v", again.base)
			}
		})
	}
}
