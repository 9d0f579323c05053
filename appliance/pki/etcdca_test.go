package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/durable"
)

// shared returns a directory as the guide and an older kthwd have made it: one CA.
func shared(t *testing.T) Layout {
	t.Helper()
	l := fresh(t)
	for _, path := range []string{l.EtcdCA(), l.EtcdCAKey(), l.Cert(NameEtcd), l.Key(NameEtcd)} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func mustLeaf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	leaf, err := leafOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// A new directory has a CA of etcd's own, which signs etcd.pem and nothing else, and which
// has signed nothing that the API accepts.
func TestNewDirectoryHasEtcdsCA(t *testing.T) {
	l := fresh(t)
	if got := StageOf(l); got != StageOwn {
		t.Errorf("stage of a new directory: got %v, want its own CA", got)
	}
	if both, err := SharesCA(l.EtcdCA(), l.CA()); err != nil || both {
		t.Errorf("etcd-ca.pem has a CA in common with ca.pem: %v, %v", both, err)
	}
	entries, err := List(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		of := filepath.Base(e.File)
		if own := e.Issuer == "CN=etcd-ca"; own != (of == "etcd.pem" || of == "etcd-ca.pem") {
			t.Errorf("%s: issued by %s", of, e.Issuer)
		}
	}
	kubernetes, etcd := mustLeaf(t, l.Cert(NameKubernetes)), mustLeaf(t, l.Cert(NameEtcd))
	if got, want := sans(etcd), sans(kubernetes); !slices.Equal(got, want) || etcd.Subject.String() != kubernetes.Subject.String() {
		t.Errorf("etcd.pem is for %v %v, want as kubernetes.pem %v %v", etcd.Subject, got, kubernetes.Subject, want)
	}
	want := EtcdFiles{CA: l.EtcdCA(), Cert: l.Cert(NameEtcd), Key: l.Key(NameEtcd)}
	if got := StageOf(l).Files(l); got != want {
		t.Errorf("etcd's files: got %v, want %v", got, want)
	}
}

// A directory with one CA stays as it is: no file comes by itself.
func TestDirectoryWithOneCAStays(t *testing.T) {
	l := shared(t)
	before := contents(t, l.Dir)
	if got := StageOf(l); got != StageShared {
		t.Errorf("stage: got %v, want the cluster's CA", got)
	}
	if want, got := (EtcdFiles{CA: l.CA(), Cert: l.Cert(NameKubernetes), Key: l.Key(NameKubernetes)}), StageOf(l).Files(l); got != want {
		t.Errorf("etcd's files: got %v, want %v", got, want)
	}
	if r := ensure(t, l, testSpec()); len(r.Created) > 0 {
		t.Errorf("made %q, want nothing", r.Created)
	}
	wantSame(t, l.Dir, before)
	if err := RecordNames(l); err != nil {
		t.Errorf("names: %v", err)
	}
	if made, err := IssueController(l, []string{"10.0.1.35"}, NameKubernetes, NameEtcd); err != nil || len(made.Files) != 2 {
		t.Errorf("files of a further controller: got %d, %v; want kubernetes.pem and its key", len(made.Files), err)
	}
	spec := testSpec()
	spec.NewSecrets = []string{SecretEtcdCA}
	if _, err := Ensure(l, spec); err == nil || !strings.Contains(err.Error(), "etcd uses the cluster's CA") {
		t.Errorf("--new-secrets=etcd-ca: got %v, want a refusal", err)
	}
}

// Each stage of the move is read from the files alone, and a start in it makes nothing and
// refuses nothing.
func TestStagesOfTheMove(t *testing.T) {
	l, done := shared(t), fresh(t)
	put := func(name string, parts ...string) {
		t.Helper()
		var data []byte
		for _, part := range parts {
			more, err := os.ReadFile(part)
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, more...)
		}
		if err := durable.Write(filepath.Join(l.Dir, name), data, modeSecret); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		want Stage
	}{
		{"nothing yet", func() {}, StageShared},
		{"the key of the new CA, interrupted", func() { put("etcd-ca-key.pem", done.EtcdCAKey()) }, StageShared},
		{"both CAs", func() { put("etcd-ca.pem", done.EtcdCA(), l.CA()) }, StageTrust},
		{"etcd's key, interrupted", func() { put("etcd-key.pem", done.Key(NameEtcd)) }, StageTrust},
		{"etcd's certificate", func() { put("etcd.pem", done.Cert(NameEtcd)) }, StageUse},
		{"its own CA alone", func() { put("etcd-ca.pem", done.EtcdCA()) }, StageOwn},
	} {
		step.do()
		if got := StageOf(l); got != step.want {
			t.Errorf("%s: got stage %v, want %v", step.what, got, step.want)
		}
		before := contents(t, l.Dir)
		if _, err := Ensure(l, testSpec()); err != nil {
			t.Errorf("%s: a start is refused: %v", step.what, err)
		}
		wantSame(t, l.Dir, before)
		if _, err := ClientTLS(l); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
	}
	if err := RecordNames(l); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.EtcdCA(), l.EtcdCAKey(), l.Cert(NameEtcd), l.Key(NameEtcd)} {
		os.Remove(path)
	}
	if got := StageOf(l); got != StageOwn {
		t.Errorf("all of etcd's files are lost: got stage %v, want no way back to the cluster's CA", got)
	}
}
