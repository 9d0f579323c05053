package cause

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var known = Names{Kubeconfig: "/d/admin.kubeconfig", Webhooks: map[string][]string{
	"all.example.com": {"validatingwebhookconfiguration/deny"}, "two.example.com": {"validatingwebhookconfiguration/b", "mutatingwebhookconfiguration/a"},
}}

func TestOf(t *testing.T) {
	for name, tt := range map[string]struct{ text, kind, says, do string }{
		"a webhook that refuses": {`admission webhook "all.example.com" denied the request: no writes on Sundays`, Webhook,
			`the admission webhook "all.example.com" refuses its requests (no writes on Sundays)`, "kubectl --kubeconfig=/d/admin.kubeconfig delete validatingwebhookconfiguration/deny"},
		"a webhook that is away, in a quoted line": {`Failed to update lease: Internal error occurred: failed calling webhook \"other.example.com\": failed to call webhook: Post \"https://127.0.0.1:9/?timeout=1s\": dial tcp 127.0.0.1:9: connect: connection refused`, Webhook,
			`the admission webhook "other.example.com" does not answer (Post `, "kubectl --kubeconfig=/d/admin.kubeconfig get validatingwebhookconfigurations,mutatingwebhookconfigurations"},
		"a name that two configurations have": {`admission webhook "two.example.com" denied the request without explanation`, Webhook,
			`"two.example.com" refuses its requests (without explanation)`, "kubectl --kubeconfig=/d/admin.kubeconfig get mutatingwebhookconfiguration/a validatingwebhookconfiguration/b -o yaml; delete the one at fault"},
		"a conversion webhook": {`Failed to watch: failed to list *v1.Foo: conversion webhook for example.com/v1, Kind=Foo failed: Post "https://x.y.svc:443/": service "x" not found`, Conversion,
			"the conversion webhook of example.com/v1, Kind=Foo does not answer", "get customresourcedefinitions"},
		"a validating policy": {`leases.coordination.k8s.io "kube-scheduler" is forbidden: ValidatingAdmissionPolicy 'no-leases' with binding 'no-leases.example.com' denied request: no more leases; discovery failed`, Policy,
			"the validating admission policy no-leases refuses the requests (no more leases)", "kubectl --kubeconfig=/d/admin.kubeconfig delete validatingadmissionpolicybinding no-leases.example.com"},
		"a validating policy without a binding": {`pods "a" is forbidden: ValidatingAdmissionPolicy 'broken' denied request: failed to configure policy: no matches for kind`, Policy,
			"the validating admission policy broken refuses the requests (failed to configure", "kubectl --kubeconfig=/d/admin.kubeconfig delete validatingadmissionpolicy broken"},
		"a mutating policy": {`Failed to update lease: policy 'sidecars' with binding 'all' denied request: expression 'object.x' resulted in error: no such key: x`, Policy,
			"the mutating admission policy sidecars refuses the requests (expression 'object.x'", "kubectl --kubeconfig=/d/admin.kubeconfig delete mutatingadmissionpolicybinding all"},
		"a mutating policy without a binding, in a quoted line": {`policy \"sidecars\" denied request: failed to configure policy: x`, Policy,
			"the mutating admission policy sidecars refuses", "kubectl --kubeconfig=/d/admin.kubeconfig delete mutatingadmissionpolicy sidecars"},
		"a policy with a shell in its name": {`ValidatingAdmissionPolicy 'a;reboot' with binding '$(reboot)' denied request: x`, "", "", ""},
		"another key": {`failed to list *core.Secret: unable to transform key "/registry/secrets/shop/pw": output array was not large enough for encryption`, Decryption,
			"cannot decrypt secret shop/pw: encryption-config.yaml has no key for it", "as the second key, under its old name"},
		"another key, of 1.37": {`cacher (secrets): unexpected ListAndWatch error: failed to list <unspecified>: failed to read one or more secrets from the storage: StorageError: corrupt object, Code: 7, Key: /registry/secrets/shop/pw, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: output array was not large enough for encryption; reinitializing...`, Decryption,
			"cannot decrypt secret shop/pw: encryption-config.yaml has no key for it", "as the second key, under its old name"},
		"another key, of 1.37, without an object": {`unable to update peer endpoint leases: data from the storage is not transformable revision=0: identity transformer tried to read encrypted data`, Decryption, "cannot decrypt an object", "second key"},
		"another key, of another group":           {`unable to transform key "/registry/example.com/things/ns/one": no matching prefix found`, Decryption, "cannot decrypt thing ns/one", "second key"},
		"another key, without an object":          {`Internal error occurred: identity transformer tried to read encrypted data`, Decryption, "cannot decrypt an object", "second key"},
		"a key server that is away, without its socket": {`unable to transform key "/registry/secrets/shop/pw": failed to decrypt DEK, error: rpc error: code = Unavailable desc = error reading from server: EOF`, KeyServer,
			"does not answer, so nothing that it has encrypted can be read (error reading from server: EOF)", "start the KMS plugin"},
		"a key server that is away, in a quoted line": {`failed to list *core.Secret: unable to transform key \"/registry/secrets/shop/pw\": failed to decrypt DEK, error: rpc error: code = DeadlineExceeded desc = latest balancer error: connection error: desc = \"transport: Error while dialing: dial unix /run/kms.sock: connect: connection refused\"`, KeyServer,
			"the key server (a KMS plugin) does not answer at /run/kms.sock, ", "ss -xlp src /run/kms.sock; "},
		"a key server with another key": {`data from the storage is not transformable revision=0: failed to decrypt DEK, error: rpc error: code = Unknown desc = cipher: message authentication failed`, KeyServer,
			"does not decrypt what it has encrypted (rpc error: code = Unknown", "give it its old key back"},
		"a key server with a shell in its socket": {`failed to decrypt DEK, error: rpc error: code = Unavailable desc = dial unix /run/$(reboot): connect: x`, KeyServer, "does not answer", startKeyServer},
		"an aggregated API":                       {`v1beta1.metrics.k8s.io failed with: failing or missing response from https://10.32.0.7:443/apis/metrics.k8s.io/v1beta1: dial tcp 10.32.0.7:443: connect: no route to host`, APIService, "nothing answers for the APIService v1beta1.metrics.k8s.io", "delete apiservice v1beta1.metrics.k8s.io"},
		"discovery":                               {`unable to retrieve the complete list of server APIs: metrics.k8s.io/v1beta1: stale GroupVersion discovery: metrics.k8s.io/v1beta1`, APIService, "APIService v1beta1.metrics.k8s.io (stale", "delete apiservice v1beta1.metrics.k8s.io"},
		"etcd is full":                            {`etcdserver: mvcc: database space exceeded`, EtcdSpace, "has reached its quota", "kthwd etcd space --fix"},
		"another CA":                              {`Get "https://127.0.0.1:6443/api?timeout=5s": tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of "crypto/rsa: verification error")`, Certificate, "not the one that has signed the certificate of the other side 127.0.0.1:6443", "kthwd pki show"},
		"a member's other CA":                     {`prober detected unhealthy status: x509: certificate signed by unknown authority`, Certificate, "the CA here is not the one", "kthwd pki show"},
		"RBAC":                                    {`leases.coordination.k8s.io "kube-scheduler" is forbidden: User "system:kube-scheduler" cannot update resource "leases" in API group "coordination.k8s.io" in the namespace "kube-system"`, Forbidden, "RBAC does not let system:kube-scheduler update leases", "auth can-i update leases --as=system:kube-scheduler"},
		"a quota":                                 {`pods "a" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1`, Quota, "the resource quota small is used up", "describe resourcequotas"},
		"the clock of another":                    {`prober found high clock drift clock-drift=3h0m0s`, Clock, "differs from the one here: 3h0m0s", "timedatectl"},
		"a file system that is read-only":         {`open /d/kthwd.lock: read-only file system`, DiskReadOnly, "a file system is read-only: /d/kthwd.lock", "journalctl -k"},
		"a disk that fails, without a name":       {`wal: input/output error`, DiskError, "a disk does not do what it is told", "journalctl -k"},
		"a fence":                                 {`pods "a" is forbidden: this controller does not hold the lease of the component that asks`, "", "", ""},
		"a name with a shell in it":               {`v1.$(reboot) failed with: failing or missing response from https://1.2.3.4/x: y`, "", "", ""},
		"a user with a shell in it":               {`x is forbidden: User "a;reboot" cannot get resource "pods"`, "", "", ""},
		"unknown":                                 {`context deadline exceeded`, "", "", ""},
		"nothing":                                 {"", "", "", ""},
	} {
		c, ok := Of(tt.text, known)
		if ok != (tt.kind != "") || c.Kind != tt.kind || !strings.Contains(c.Text, tt.says) || !strings.Contains(c.Do, tt.do) {
			t.Errorf("%s: got %+v, want %s, %q, %q", name, c, tt.kind, tt.says, tt.do)
		}
	}
}

// The health bridge answers everybody: neither the explanation of a webhook nor the name of
// a secret goes there.
func TestPublic(t *testing.T) {
	for text, want := range map[string]string{
		`admission webhook "all.example.com" denied the request: password is hunter2`:                                                                                                                    `the admission webhook "all.example.com" refuses its requests`,
		`StorageError: corrupt object, Code: 7, Key: /registry/secrets/shop/pw, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: no matching prefix found`: `cannot decrypt an object: encryption-config.yaml has no key for it`,
		`unable to transform key "/registry/secrets/shop/pw": no matching prefix found`:                                                                                                                  `cannot decrypt an object: encryption-config.yaml has no key for it`,
	} {
		if c, _ := Of(text, Names{}); c.Public != want {
			t.Errorf("got %q, want %q", c.Public, want)
		}
	}
}

// A file that is read every minute, because nothing can watch it, keeps nothing from working; one that cannot be
// read may.
func TestIsRoutine(t *testing.T) {
	for text, want := range map[string]bool{
		"error creating fsnotify watcher: too many open files":           true,
		"error adding watch for file /d/ca.pem: no space left on device": true,
		"error adding watch for file /d/ca.pem: permission denied":       false,
		"accept tcp 127.0.0.1:6443: accept4: too many open files":        false,
		"write /var/lib/etcd/member/wal/0.tmp: no space left on device":  false,
	} {
		if got := IsRoutine(text); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// Errors of Go's standard library match as it makes them.
func TestRealErrors(t *testing.T) {
	_, refused := net.Dial("tcp", closedPort(t))
	for kind, errs := range map[string][]error{
		Certificate:  certificateErrors(t),
		Refused:      {refused},
		DiskFull:     {&os.PathError{Op: "write", Path: "/var/lib/etcd/wal", Err: syscall.ENOSPC}, &os.PathError{Op: "write", Path: "/var/lib/etcd/wal", Err: syscall.EDQUOT}},
		DiskReadOnly: {&os.PathError{Op: "open", Path: "/var/lib/etcd/wal", Err: syscall.EROFS}},
		DiskError:    {&os.PathError{Op: "read", Path: "/var/lib/etcd/wal", Err: syscall.EIO}, syscall.EIO},
		Descriptors:  {&net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}},
		"otherwise":  {context.DeadlineExceeded, errors.New("x")},
	} {
		for _, err := range errs {
			if got := Kind(err, "otherwise"); got != kind {
				t.Errorf("%v: got %s, want %s", err, got, kind)
			}
		}
	}
}

func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// certificateErrors are the reasons for which a client refuses a server.
func certificateErrors(t *testing.T) (all []error) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"a.example.com"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	own := x509.NewCertPool()
	own.AddCert(c)
	for _, o := range []x509.VerifyOptions{
		{Roots: x509.NewCertPool()},
		{Roots: own, CurrentTime: now.Add(2 * time.Hour)},
		{Roots: own, CurrentTime: now.Add(-2 * time.Hour)},
		{Roots: own, DNSName: "b.example.com"},
		{Roots: own, DNSName: "10.0.0.1"},
	} {
		_, err := c.Verify(o)
		if err == nil {
			t.Fatalf("%+v is accepted", o)
		}
		all = append(all, fmt.Errorf("Get %q: %w", "https://127.0.0.1:6443/", err))
	}
	return all
}

// Each row has a kind that is documented, and groups for all that its texts name.
func TestRows(t *testing.T) {
	for _, r := range rows() {
		if !slices.ContainsFunc(Kinds, func(k struct{ Kind, Means string }) bool { return k.Kind == r.kind }) {
			t.Errorf("%q: kind %q is not in Kinds", r.words, r.kind)
		}
		for n := 1; n < 9; n++ {
			if group := fmt.Sprintf("$%d", n); strings.Contains(r.text+r.do+r.public, group) && r.pattern.NumSubexp() < n {
				t.Errorf("%q has no group for %s", r.words, group)
			}
		}
		if r.do == "" || r.text == "" {
			t.Errorf("%q says nothing", r.words)
		}
	}
}

// A command works as it stands: with the directory of the process that it is about, and with
// a unit that is shipped.
func TestCommands(t *testing.T) {
	verb, unit := 0, 0
	for _, r := range rows() {
		for name, n := range map[string]Names{
			"kthwd-controller": {Dir: "/srv/my data"}, "kthwd-lb": {Dir: "/srv/my data", Unit: "kthwd-lb"},
		} {
			do := n.command(r.do)
			if strings.HasPrefix(do, "kthwd ") {
				verb++
				if !strings.HasSuffix(do, " --data-dir='/srv/my data'") {
					t.Errorf("%q: got %q, want the directory", r.words, do)
				}
			}
			if words := strings.Fields(do); words[0] == "systemctl" || words[0] == "journalctl" {
				unit++
				if !slices.Contains(words, name) {
					t.Errorf("%q: got %q, want %s", r.words, do, name)
				}
				if _, err := os.Stat("../../packaging/systemd/" + name + ".service"); err != nil {
					t.Errorf("%q: %v", do, err)
				}
			}
		}
	}
	if verb == 0 || unit == 0 {
		t.Errorf("got %d verbs, %d units: nothing is tested", verb, unit)
	}
	if got := (Names{}).Kthwd("pki show"); got != "kthwd pki show" {
		t.Errorf("got %q", got)
	}
}

func FuzzOf(f *testing.F) {
	for _, r := range knownCauses {
		f.Add(r.words)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := Of(text, known)
		if ok && (c.Kind == "" || c.Text == "" || len(c.Text) > 2*maxText) {
			t.Errorf("%q: got %+v", text, c)
		}
	})
}
