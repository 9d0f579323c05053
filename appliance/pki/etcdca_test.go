package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
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

// The files of two controllers move step by step: one has the keys of the CAs, the other
// has its certificate issued there. What does not fit is refused and changes nothing.
func TestMoveOfTheFiles(t *testing.T) {
	c0, c1 := sharing(t), Layout{Dir: t.TempDir()}
	for _, path := range []string{c0.EtcdCA(), c0.EtcdCAKey(), c0.Cert(NameEtcd), c0.Key(NameEtcd)} {
		os.Remove(path)
	}
	files, err := Share(c0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := IssueController(c0, []string{"10.0.1.35"}, NameKubernetes, NameEtcd)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Shared{files, issued} {
		if _, err := s.Adopt(c1, joinerSpec().Server); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, err error, l Layout, before map[string]string) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: got no error", what)
		}
		wantSame(t, l.Dir, before)
	}

	first, err := NewEtcdCA(c0)
	must(err)
	ca, err := NewEtcdCA(c0) // an interrupted one is repeated
	must(err)
	if !fits(mustKey(t, c0.EtcdCAKey()), first.PublicKey) || !fits(mustKey(t, c0.EtcdCAKey()), ca.PublicKey) {
		t.Error("the second attempt has another key")
	}
	must(TrustEtcdCA(c0, ca))
	must(TrustEtcdCA(c1, ca))
	_, err = NewEtcdCA(c1)
	must(err)
	refused("a CA of which the directory has another key", TrustEtcdCA(c1, ca), c1, contents(t, c1.Dir))
	os.Remove(c1.EtcdCAKey())
	refused("a leaf as CA", TrustEtcdCA(c1, mustLeaf(t, c1.Cert(NameKubernetes))), c1, contents(t, c1.Dir))
	for i, l := range []Layout{c0, c1} {
		if got := StageOf(l); got != StageTrust {
			t.Errorf("c%d: got stage %v", i, got)
		}
		refused("the end of trust before the certificate", TrustEtcdCAOnly(l), l, contents(t, l.Dir))
	}

	request, err := EtcdRequest(c1)
	must(err)
	if again, err := EtcdRequest(c1); err != nil || len(again) == 0 {
		t.Errorf("the request once more: %v", err)
	}
	if _, err := SignEtcdRequest(c1, request); !errors.Is(err, ErrNoCAKey) {
		t.Errorf("without the key: got %v, want ErrNoCAKey", err)
	}
	if _, err := SignEtcdRequest(c0, request[:len(request)-1]); err == nil {
		t.Error("a damaged request: got no error")
	}
	cert, err := SignEtcdRequest(c0, request)
	must(err)
	refused("a certificate for another key", UseEtcdCertificate(c0, cert), c0, contents(t, c0.Dir))
	refused("a certificate of another CA", UseEtcdCertificate(c1, mustLeaf(t, c1.Cert(NameKubernetes)).Raw), c1, contents(t, c1.Dir))
	must(UseEtcdCertificate(c1, cert))
	own, err := EtcdRequest(c0)
	must(err)
	cert, err = SignEtcdRequest(c0, own)
	must(err)
	must(UseEtcdCertificate(c0, cert))
	for i, l := range []Layout{c0, c1} {
		kubernetes, etcd := mustLeaf(t, l.Cert(NameKubernetes)), mustLeaf(t, l.Cert(NameEtcd))
		if !slices.Equal(sans(etcd), sans(kubernetes)) || etcd.Subject.String() != kubernetes.Subject.String() || etcd.NotAfter.After(ca.NotAfter) {
			t.Errorf("c%d: etcd.pem is for %v %v until %v, want as kubernetes.pem %v %v", i, etcd.Subject, sans(etcd), etcd.NotAfter, kubernetes.Subject, sans(kubernetes))
		}
		must(TrustEtcdCAOnly(l))
		if both, err := SharesCA(l.EtcdCA(), l.CA()); err != nil || both || StageOf(l) != StageOwn {
			t.Errorf("c%d: got stage %v, the cluster's CA trusted: %v (%v)", i, StageOf(l), both, err)
		}
	}
	if report, err := Check(c1, joinerSpec()); err != nil || len(report.Missing) > 0 {
		t.Errorf("a start after the move: got %v, missing %v", err, report.Missing)
	}
}

func mustKey(t *testing.T, path string) crypto.Signer {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
