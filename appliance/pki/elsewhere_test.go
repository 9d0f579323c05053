package pki

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A file that the configuration has elsewhere is used there, under any name, and never made.
func TestElsewhere(t *testing.T) {
	theirs := Layout{Dir: filepath.Join(t.TempDir(), "theirs")}
	spec := Spec{Local: []string{"127.0.0.1"}, Server: "https://127.0.0.1:6443"}
	if _, err := Ensure(theirs, spec); err != nil {
		t.Fatal(err)
	}
	l := Layout{Dir: filepath.Join(t.TempDir(), "data"), Elsewhere: map[string]string{}}
	place := filepath.Join(t.TempDir(), "pki")
	if err := os.Mkdir(place, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"ca.pem", "ca-key.pem", "service-account.pem", "service-account-key.pem", "kube-scheduler.kubeconfig", "encryption-config.yaml"} {
		path := filepath.Join(place, string(rune('a'+i))+".crt")
		if err := os.Rename(filepath.Join(theirs.Dir, name), path); err != nil {
			t.Fatal(err)
		}
		l.Elsewhere[name] = path
	}
	before, err := os.ReadDir(place)
	if err != nil {
		t.Fatal(err)
	}
	report, err := Ensure(l, spec)
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range l.Elsewhere {
		if !slices.Contains(report.Kept, path) {
			t.Errorf("%s: got kept %v, want %s among them", name, report.Kept, path)
		}
		if _, err := os.Stat(filepath.Join(l.Dir, name)); err == nil {
			t.Errorf("%s was made in the data directory", name)
		}
	}
	if after, _ := os.ReadDir(place); len(after) != len(before) {
		t.Errorf("got %d files elsewhere, want %d", len(after), len(before))
	}
	if os.Geteuid() == 0 { // to give a file away
		key := l.Elsewhere["ca-key.pem"]
		if err := os.Chown(key, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		warned := func(r Report) bool {
			return slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.HasPrefix(w, key+": belongs to another user") })
		}
		if theirs, err := Check(l, spec); err != nil || warned(report) || !warned(theirs) {
			t.Errorf("a key of another user: got %v, %v, before %v; want a warning", theirs.Warnings, err, report.Warnings)
		}
	}
	shared, err := Share(l, nil, true)
	if err != nil || shared.Files["ca.pem"] == nil || shared.Files["encryption-config.yaml"] == nil {
		t.Errorf("shared files: %v, %v", len(shared.Files), err)
	}
	entries, err := List(l)
	if err != nil || !slices.ContainsFunc(entries, func(e Entry) bool { return e.File == l.CA() && e.Problem == "" }) {
		t.Errorf("list: got %v, %v, want %s", entries, err, l.CA())
	}
	if err := os.Remove(l.Elsewhere["encryption-config.yaml"]); err != nil {
		t.Fatal(err)
	}
	var misfit *Misfit
	if _, err := Ensure(l, spec); !errors.As(err, &misfit) || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a missing file elsewhere: got %v, want a misfit", err)
	}
}
