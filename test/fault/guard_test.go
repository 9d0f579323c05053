package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// record is what a data directory remembers of its member.
type record map[string]any

func readRecord(t *testing.T, dir string) record {
	t.Helper()
	r := record{}
	data, err := os.ReadFile(filepath.Join(dir, "member.json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// with writes the record with one thing changed.
func (r record) with(t *testing.T, dir, key string, v any) {
	t.Helper()
	changed := record{}
	for k, v := range r {
		changed[k] = v
	}
	changed[key] = v
	data, err := json.Marshal(changed)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "member.json"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// moved is a directory with another name until put back is called.
func moved(t *testing.T, dir string) (putBack func()) {
	t.Helper()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".away", dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// A data directory remembers its member, and is not used for another one, nor by
// versions that do not follow those it was used by.
func TestGuard(t *testing.T) {
	kthwtest.Turn(t, 2)
	c := kthwtest.Start(t, kthwtest.Options{})
	other := kthwtest.Start(t, kthwtest.Options{})
	stop(t, other, syscall.SIGTERM, 0)
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, c.Client(t), "kept") })
	stop(t, c, syscall.SIGTERM, 0)
	etcd, file := filepath.Join(c.Dir, "etcd"), filepath.Join(c.Dir, "member.json")
	r := readRecord(t, c.Dir)
	if r["members"] != 1.0 || r["cluster"] == "" || r["member"] == "" || r["kubernetes"] == "" {
		t.Errorf("record: got %v", r)
	}
	is := func(program string) string { return fmt.Sprint(r[program]) }
	newer, newerEtcd := minorFrom(t, is("kubernetes"), 1), strings.TrimPrefix(minorFrom(t, is("etcd"), 1), "v")
	older := minorFrom(t, is("kubernetes"), -2)
	skipped := strings.TrimSuffix(strings.TrimPrefix(minorFrom(t, is("kubernetes"), -1), "v"), ".1")
	a := attempt{dir: c.Dir, ports: c.Ports}
	for _, tt := range []struct {
		name    string
		prepare func() (undo func())
		parts   []string
		hint    string
	}{
		{"Kubernetes was newer", func() func() { r.with(t, c.Dir, "kubernetes", newer); return func() {} },
			[]string{c.Dir, "Kubernetes " + newer, "no way back"}, "run kthwd"},
		{"etcd was newer", func() func() { r.with(t, c.Dir, "etcd", newerEtcd); return func() {} },
			[]string{c.Dir, "etcd " + newerEtcd, "no way back"}, "run kthwd"},
		{"Kubernetes was two minors older", func() func() { r.with(t, c.Dir, "kubernetes", older); return func() {} },
			[]string{c.Dir, "Kubernetes " + older, "must not be skipped"}, "with Kubernetes " + skipped + " first"},
		{"data of another cluster", func() func() {
			back := moved(t, etcd)
			if err := os.CopyFS(etcd, os.DirFS(filepath.Join(other.Dir, "etcd"))); err != nil {
				t.Fatal(err)
			}
			return back
		}, []string{etcd, "but this controller is member"}, "put back this controller's own data"},
		{"data gone", func() func() { return moved(t, etcd) }, []string{etcd, "holds no data"}, "mount it"},
		{"data gone, of several", func() func() { r.with(t, c.Dir, "members", 3); return moved(t, etcd) },
			[]string{etcd, "one of 3 members"}, "kthwd member add"},
		{"a damaged record", func() func() {
			if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, []string{file}, "move it away"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undo := tt.prepare()
			defer r.with(t, c.Dir, "members", 1)
			defer undo()
			before := contents(t, c.Dir)
			a.run(t).check(t, 1, tt.hint, tt.parts...)
			sameContents(t, c.Dir, before)
		})
	}
	t.Run("no record", func(t *testing.T) { // as of a directory that is older than records
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		c := again(t, c, kthwtest.Options{})
		kthwtest.WaitFor(t, "what was written", soon, func() error { return has(t, c.Client(t), "kept") })
		got := readRecord(t, c.Dir)
		for key := range r {
			if got[key] != r[key] {
				t.Errorf("%s: got %v, want %v as before", key, got[key], r[key])
			}
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode: got %v %v, want 0600", info.Mode(), err)
		}
	})
}
