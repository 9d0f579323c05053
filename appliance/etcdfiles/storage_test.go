package etcdfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"kthwd/appliance/pki"
	"kthwd/test/harness"
)

// of36 returns a data directory with the data of a member of etcd 3.6.16, which ended by SIGKILL.
func of36(t *testing.T) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	harness.Untar(t, filepath.Join("testdata", "etcd-3.6.tar.gz"), l.Etcd())
	return l
}

// of35 returns a data directory with the data of a member of etcd 3.5.21, which ended by SIGKILL
// after it had added a learner and removed it.
func of35(t *testing.T) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	harness.Untar(t, filepath.Join("testdata", "etcd-3.5.tar.gz"), l.Etcd())
	return l
}

func TestFindUpgrade(t *testing.T) {
	now := Record{Kubernetes: "v1.36.3", Etcd: "3.6.16"}
	for _, tt := range []struct {
		name   string
		record *Record
		want   string // "" for no upgrade
	}{
		{"data without a record", nil, "etcd 3.5 to 3.6"},
		{"the same versions", &Record{Kubernetes: "v1.36.3", Etcd: "3.6.16"}, ""},
		{"older patches", &Record{Kubernetes: "v1.36.0", Etcd: "3.6.1"}, ""},
		{"an older Kubernetes", &Record{Kubernetes: "v1.35.9", Etcd: "3.6.16"}, "Kubernetes 1.35 to 1.36"},
		{"both older", &Record{Kubernetes: "v1.35.9", Etcd: "3.5.21"}, "Kubernetes 1.35 to 1.36, etcd 3.5 to 3.6"},
		{"newer ones, which Guard refuses", &Record{Kubernetes: "v1.37.0", Etcd: "3.7.0"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := of35(t)
			if tt.record != nil {
				if err := tt.record.Write(l); err != nil {
					t.Fatal(err)
				}
			}
			got := ""
			u, err := FindUpgrade(l, now)
			if u != nil {
				got = u.String()
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
	l := of35(t) // data of these very versions, which another program has made
	if u, err := FindUpgrade(l, Record{Kubernetes: "v1.36.3", Etcd: "3.5.30"}); err != nil || u == nil || u.String() != "adoption" {
		t.Errorf("without a trace of kthwd: got %v, %v, want the adoption", u, err)
	}
	if err := os.WriteFile(l.InstanceID(), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := FindUpgrade(l, Record{Kubernetes: "v1.36.3", Etcd: "3.5.30"}); u != nil || err != nil {
		t.Errorf("where kthwd has run: got %v, %v, want no upgrade", u, err)
	}
	if u, err := FindUpgrade(pki.Layout{Dir: t.TempDir()}, now); u != nil || err != nil {
		t.Errorf("an empty directory: got %v, %v", u, err)
	}
}

// Without a record, the data say which etcd wrote them, also when kthwd has run there.
func TestFindUpgradeOf36(t *testing.T) {
	l := of36(t)
	for _, id := range []string{"", "1\n"} {
		if id != "" {
			if err := os.WriteFile(l.InstanceID(), []byte(id), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := FindUpgrade(l, Record{Kubernetes: "v1.37.2", Etcd: "3.7.3"})
		if err != nil || u == nil || u.String() != "etcd 3.6 to 3.7" || u.Adoption != (id == "") {
			t.Errorf("with instance ID %q: got %+v, %v; want etcd 3.6 to 3.7", id, u, err)
		}
	}
	harness.CheckRefusal(t, Guard(l, nil, Versions("v0.1.0")), "", "")
}

// A directory of etcd 3.5 has no record, and its own etcd is two minors older.
func TestGuardRefuses35(t *testing.T) {
	l := of35(t)
	harness.CheckRefusal(t, Guard(l, nil, Record{Kubernetes: "v1.36.3", Etcd: "3.6.16"}), "", "")
	linked := Versions("v0.1.0")
	harness.CheckRefusal(t, Guard(l, nil, linked), "is of etcd 3.5.0, and this kthwd has "+linked.Etcd+": a minor must not be skipped", "run etcd 3.6 on every member first")
	dropOwnMember(t, l)
	all, joined := Guard(l, nil, linked).(interface{ Unwrap() []error })
	if !joined || len(all.Unwrap()) != 2 {
		t.Fatalf("got %v, want the minor and the members", all)
	}
	harness.CheckRefusal(t, all.Unwrap()[1], "is a member, and is not in the database", "etcd 3.5.26")
}

func dropOwnMember(t *testing.T, l pki.Layout) {
	t.Helper()
	spoil(t, l, func(members *bbolt.Bucket, own []byte) error { return members.Delete(own) })
}

// spoil changes the members in the database.
func spoil(t *testing.T, l pki.Layout, change func(members *bbolt.Bucket, own []byte) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(l.Etcd(), "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		members := tx.Bucket([]byte("members"))
		own, _ := members.Cursor().First()
		return change(members, append([]byte(nil), own...))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestCompareMembership spoils the members in the database as etcd's bugs did.
func TestCompareMembership(t *testing.T) {
	const learner = `{"id":81985529216486895,"peerURLs":["http://10.0.0.9:2380"],"isLearner":true}`
	for _, tt := range []struct {
		name, want string
		change     func(members *bbolt.Bucket, own []byte) error
	}{
		{"as etcd left them", "", func(*bbolt.Bucket, []byte) error { return nil }},
		{"one that was removed long ago", "123456789abcdef, c9 http://10.0.0.9:2380, was removed and is still in the database", func(members *bbolt.Bucket, _ []byte) error {
			return members.Put([]byte("123456789abcdef"), []byte(`{"id":81985529216486895,"peerURLs":["http://10.0.0.9:2380"],"name":"c9"}`))
		}},
		{"a learner that was removed", "was removed and is still in the database", func(members *bbolt.Bucket, _ []byte) error {
			return members.Put([]byte("123456789abcdef"), []byte(learner))
		}},
		{"a promotion that was lost", "is a learner in one place and votes in the other", func(members *bbolt.Bucket, own []byte) error {
			return members.Put(own, []byte(learner))
		}},
		{"one that is not there", "is a member, and is not in the database", func(members *bbolt.Bucket, own []byte) error {
			return members.Delete(own)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := of35(t)
			spoil(t, l, tt.change)
			err := CompareMembership(l, nil)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			harness.CheckRefusal(t, err, tt.want, "etcd 3.5.26")
		})
	}
}

// The log alone, without its snapshots, names the same members.
func TestCompareMembershipWithoutSnapshots(t *testing.T) {
	l := of35(t)
	all, err := filepath.Glob(filepath.Join(l.Etcd(), "member", "snap", "*.snap"))
	if err != nil || len(all) == 0 {
		t.Fatalf("got %v, %v; want snapshots", all, err)
	}
	for _, path := range all {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := CompareMembership(l, nil); err != nil {
		t.Error(err)
	}
	b, err := ReadBackend(filepath.Join(l.Etcd(), "member"))
	if err != nil || b.Storage != "" || !strings.HasPrefix(b.Cluster, "3.5.") || b.Consistent == 0 {
		t.Errorf("got %+v, %v", b, err)
	}
}
