package fault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const etcdCAKey = "/kthwd/etcd-ca/rotation"

func etcdCA(verb string, args ...string) []string {
	return append([]string{"pki", "ca", verb, "--ca=etcd"}, args...)
}

// etcdCAOf reads etcd's CA of a controller, with its key.
func etcdCAOf(t *testing.T, c *kthwtest.Controller) pki.CA {
	t.Helper()
	return caOf(t, c, pki.NameEtcdCA)
}

// etcdPorts are the ports of a controller's etcd.
func etcdPorts(c *kthwtest.Controller) []string {
	return []string{
		net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.EtcdPeer)),
		net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.EtcdClient)),
	}
}

// meets connects to a port of etcd with a certificate. It returns the one that etcd shows, and an error if etcd
// refuses the other.
func meets(t *testing.T, port string, pair tls.Certificate) (shows *x509.Certificate, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	config := &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	shows = conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	_, _ = fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", port) // the answer tells
	_, err = io.ReadFull(conn, make([]byte, 1))
	return shows, err
}

// wantEtcd wants both ports of etcd to show a certificate of that CA, and to accept another certificate or refuse
// it.
func wantEtcd(t *testing.T, c *kthwtest.Controller, shows string, pair tls.Certificate, accepts bool, cas ...*x509.Certificate) {
	t.Helper()
	for _, port := range etcdPorts(c) {
		cert, err := meets(t, port, pair)
		switch {
		case cert == nil:
			t.Errorf("etcd at %s: %v", port, err)
			continue
		case accepts && err != nil:
			t.Errorf("etcd at %s refuses a certificate: %v", port, err)
		case !accepts && (err == nil || !strings.Contains(err.Error(), "remote error: tls: ")):
			t.Errorf("etcd at %s and a certificate of the old CA: got %v, want a refusal", port, err)
		}
		if got := issuerOf(t, cert, cas...); got != shows {
			t.Errorf("etcd at %s shows a certificate of %q, want %q", port, got, shows)
		}
	}
}

// ofEtcd is a certificate as a controller has it, of that CA of etcd.
func ofEtcd(t *testing.T, c *kthwtest.Controller, ca *x509.Certificate, key []byte) tls.Certificate {
	t.Helper()
	pair, err := pki.Probe(pki.Layout{Dir: c.Dir}, pki.NameEtcdCA, ca, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// etcdAnswers wants etcd to answer a client that reads the files as they are.
func etcdAnswers(t *testing.T, c *kthwtest.Controller, when string) {
	t.Helper()
	if _, err := c.Etcd(t).Get(t.Context(), etcdCAKey); err != nil {
		t.Errorf("%s: etcd and its own files: %v", when, err)
	}
}

// etcd's CA is replaced with a restart of the controller before the new one signs, and another one after the old
// one was dropped. Each step that would come too early is refused, with the controller that is late.
func TestEtcdCARotate(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	was := etcdCAOf(t, c)
	old := was.Signs()
	late := ofEtcd(t, c, was.Signer, was.Key)
	wantEtcd(t, c, old, late, true, was.Signer)
	etcdCATakenBack(t, c, old)

	mustVerb(t, c, etcdCA("rotate"), "backup", "etcd-ca.pem has both CAs: restart kthwd on every controller", "then kthwd pki ca sign --ca=etcd")
	both := etcdCAOf(t, c)
	now := slices.DeleteFunc(both.IDs(), func(id string) bool { return id == old })[0]
	if both.Signs() != old {
		t.Fatal("the new CA signs already")
	}
	mustVerb(t, c, etcdCA("status"), "stage 2 of 6, restart", "needs a restart", "next", "restart kthwd on ")
	for _, args := range [][]string{etcdCA("sign"), etcdCA("sign", "--force")} {
		refuses(t, c, args, "its etcd does not accept certificates of "+now[:8], "restart kthwd on ")
	}
	refuses(t, c, etcdCA("drop"), "this step comes after the stage watch", "kthwd pki ca sign --ca=etcd")
	refuses(t, c, etcdCA("rotate"), "a rotation has not ended")
	wantFinding(t, c, "etcd_ca_rotation", "restart kthwd here")
	stop(t, c, syscall.SIGTERM, 0)
	c = again(t, c, kthwtest.Options{})
	wantFinding(t, c, "etcd_ca_rotation", "kthwd was restarted here")

	mustVerb(t, c, etcdCA("sign"), "signs; certificates of "+old[:8]+" are accepted until kthwd pki ca drop --ca=etcd")
	wantEtcd(t, c, now, late, true, both.Trusted...)
	etcdAnswers(t, c, "after sign")
	refuses(t, c, etcdCA("abort"), "can no longer be aborted")
	mustVerb(t, c, etcdCA("resume"))
	wantFinding(t, c, "etcd_ca_rotation", "etcd accepts certificates of both CAs")
	is := etcdCAOf(t, c)
	noKeyInState(t, c.Etcd(t), "secret: "+strings.Split(string(is.Key), "\n")[1])

	mustVerb(t, c, etcdCA("drop"), "restart kthwd on every controller, one after the other, so that etcd refuses certificates of "+old[:8], "kthwd pki ca resume --ca=etcd")
	if is := etcdCAOf(t, c); !slices.Equal(is.IDs(), []string{now}) || is.Signs() != now || is.Next != nil {
		t.Errorf("the files have the CAs %v, and sign with %s", is.IDs(), is.Signs())
	}
	refuses(t, c, etcdCA("resume"), "its etcd still accepts certificates of "+old[:8], "restart kthwd on ")
	wantEtcd(t, c, now, late, true, both.Trusted...)
	stop(t, c, syscall.SIGTERM, 0)
	c = again(t, c, kthwtest.Options{})
	mustVerb(t, c, etcdCA("resume"), "done  "+old[:8]+" → "+now[:8])
	wantEtcd(t, c, now, late, false, both.Trusted...)
	wantEtcd(t, c, now, ofEtcd(t, c, is.Signer, is.Key), true, both.Trusted...)
	etcdAnswers(t, c, "at the end")
	mustVerb(t, c, etcdCA("status"), "none; the last one, "+old[:8]+" → "+now[:8])
	mustVerb(t, c, caRotation("status"), "none")
	kthwtest.WaitFor(t, "the end of the finding", soon, func() error { // the state is looked at every 5 s
		if r := mustStatus(t, c); findingSays(r, "etcd_ca_rotation", "") {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
	for _, kind := range []string{"file_misfit", "file_changed", "certificate", "keys_replaced"} {
		if r := mustStatus(t, c); findingSays(r, kind, "") {
			t.Errorf("at the end: got the findings %+v", r.Findings)
		}
	}
}

// wantFinding waits for a finding.
func wantFinding(t *testing.T, c *kthwtest.Controller, kind, said string) {
	t.Helper()
	kthwtest.WaitFor(t, "the finding "+said, soon, func() error {
		if r := mustStatus(t, c); !findingSays(r, kind, said) {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
}

// etcdCATakenBack begins a rotation and takes it back, which leaves the files as they were, to the byte, and needs no
// restart.
func etcdCATakenBack(t *testing.T, c *kthwtest.Controller, old string) {
	t.Helper()
	names := []string{"etcd-ca.pem", "etcd-ca-key.pem", "etcd.pem", "ca.pem"}
	mustVerb(t, c, etcdCA("rotate", "--plan"), "trust ", "restart ", "sign ", "watch ", "drop ", "forget ")
	mustVerb(t, c, etcdCA("status"), "rotation", "none", "signs with "+old[:8]+", trusts "+old[:8])
	for _, v := range []string{"resume", "sign", "drop", "abort"} {
		refuses(t, c, etcdCA(v), "no rotation of etcd's CA is under way", "kthwd pki ca rotate --ca=etcd")
	}
	files := contentOf(t, c, names...)
	edit(t, filepath.Join(c.Dir, "etcd-ca.pem"), files["etcd-ca.pem"][:len(files["etcd-ca.pem"])/2])
	refuses(t, c, etcdCA("rotate"), "etcd-ca.pem")
	edit(t, filepath.Join(c.Dir, "etcd-ca.pem"), files["etcd-ca.pem"])
	mustVerb(t, c, etcdCA("rotate", "--without-backup"), "etcd-ca.pem has both CAs")
	mustVerb(t, c, etcdCA("abort"), "done  ", "aborted")
	for name, data := range contentOf(t, c, names...) {
		if data != files[name] {
			t.Errorf("taken back, %s is another file than before", name)
		}
	}
	if _, err := os.Lstat(pki.Layout{Dir: c.Dir}.NextCAKey(pki.NameEtcdCA)); err == nil {
		t.Error("taken back, the key that was to come is kept")
	}
}

// A controller that is killed in any stage starts again, and goes on when it is told to.
func TestEtcdCAKilled(t *testing.T) {
	endToEnd(t, "TestEtcdCARotate")
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	was := etcdCAOf(t, c)
	old, late := was.Signs(), ofEtcd(t, c, was.Signer, was.Key)
	for _, tt := range []struct {
		stage, then string
		run         []string
	}{
		{"trust", "abort", etcdCA("rotate", "--without-backup")},
		{"trust", "resume", etcdCA("rotate", "--without-backup")},
		{"sign", "resume", etcdCA("sign")},
		{"drop", "resume", etcdCA("drop")},
	} {
		killWhen(t, c, etcdCAKey, tt.stage, tt.run...)
		c = again(t, c, kthwtest.Options{})
		etcdAnswers(t, c, "after a kill in "+tt.stage)
		// The lease of the process that died may last for some seconds.
		kthwtest.WaitFor(t, tt.then+" after a kill in "+tt.stage, soon, func() error {
			code, out := verb(t, c, etcdCA(tt.then)...)
			over := tt.stage == "drop" && (strings.Contains(out, "no rotation of etcd's CA is under way") || strings.Contains(out, "still accepts certificates of")) // it was faster than the kill
			if code != 0 && !over {
				return errors.New(out)
			}
			return nil
		})
		etcdAnswers(t, c, "after a kill in "+tt.stage+" and "+tt.then)
		if err := readFileOnce(t.Context(), c); err != nil {
			t.Errorf("after a kill in %s and %s: %v", tt.stage, tt.then, err)
		}
		if tt.then == "abort" && !slices.Equal(etcdCAOf(t, c).IDs(), []string{old}) {
			t.Errorf("taken back, etcd-ca.pem has %v", etcdCAOf(t, c).IDs())
		}
		if tt.stage == "sign" {
			continue // the next stage needs no restart
		}
		stop(t, c, syscall.SIGKILL, -1) // in the stage restart, and in the stage forget
		c = again(t, c, kthwtest.Options{})
		kthwtest.WaitFor(t, "the stage after a kill", soon, func() error {
			code, out := verb(t, c, etcdCA("resume")...)
			if code != 0 && !strings.Contains(out, "no rotation of etcd's CA is under way") {
				return errors.New(out)
			}
			return nil
		})
	}
	is := etcdCAOf(t, c)
	if len(is.Trusted) != 1 || is.Signs() == old || is.Next != nil {
		t.Errorf("at the end etcd-ca.pem has %v, and %s signs", is.IDs(), is.Signs())
	}
	mustVerb(t, c, etcdCA("status"), "none; the last one")
	wantEtcd(t, c, is.Signs(), late, false, is.Trusted...)
}

// throughBalancer asks the API servers through the balancer, with a certificate from the files of a controller, over a
// new connection or over one that stays.
func throughBalancer(t *testing.T, m *made, c *kthwtest.Controller, keep bool) func(context.Context) error {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig("admin"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(config.CAData)
	transport := &http.Transport{DisableKeepAlives: !keep, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: keep}
	t.Cleanup(transport.CloseIdleConnections)
	url := "https://" + net.JoinHostPort(m.lb, strconv.Itoa(m.ports[3].Secure)) + "/api/v1/namespaces/default"
	return func(ctx context.Context) error {
		defer pause(ctx, 10*time.Millisecond)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
}

// Three controllers behind a balancer get another CA of etcd in two rolling restarts, under requests none of which
// fails. A step is refused while one of them is away, or was not restarted, and the error names it. In the end every
// port of every etcd refuses a certificate of the old CA.
func TestEtcdCAOfThree(t *testing.T) {
	endToEnd(t, "TestEtcdCARotate and TestEtcdCAKilled replace the CA of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	balancer := m.startPatientBalancer(t)
	balancer.WaitReady(t)
	was := etcdCAOf(t, all[0])
	key, err := os.ReadFile(filepath.Join(m.dir, "ca", "etcd-ca-key.pem")) // no controller has it
	if err != nil {
		t.Fatal(err)
	}
	old := was.Signs()
	var late [3]tls.Certificate
	for i, c := range all {
		late[i] = ofEtcd(t, c, was.Signer, key)
		wantEtcd(t, c, old, late[i], true, was.Signer)
	}
	m.refusesWithoutC2(t, &all, etcdCA("rotate", "--without-backup")...)

	client := throughBalancer(t, m, all[0], true)
	kthwtest.WaitFor(t, "the balancer to pass requests on", soon, func() error { return client(t.Context()) })
	began := time.Now()
	asks := startAsking(t, client, throughBalancer(t, m, all[1], true), throughBalancer(t, m, all[2], false))
	mustVerb(t, all[0], etcdCA("rotate", "--without-backup"), "etcd-ca.pem has both CAs")
	both := etcdCAOf(t, all[0])
	now := slices.DeleteFunc(both.IDs(), func(id string) bool { return id == old })[0]
	refuses(t, all[1], etcdCA("sign"), "c0: its etcd does not accept", "c1: its etcd does not accept", "c2: its etcd does not accept", "restart kthwd on c1, c0, c2")
	for i := range all[:2] {
		m.replace(t, &all, i, "")
	}
	refuses(t, all[1], etcdCA("sign", "--force"), "error: c2: its etcd does not accept", "restart kthwd on c2,")
	mustVerb(t, all[0], etcdCA("status"), "restart kthwd on c2, one after the other; then kthwd pki ca sign --ca=etcd")
	m.replace(t, &all, 2, "")
	mustVerb(t, all[1], etcdCA("sign"), "signs; certificates of "+old[:8]+" are accepted")
	for i, c := range all {
		wantEtcd(t, c, now, late[i], true, both.Trusted...)
	}
	mustVerb(t, all[1], []string{"pki", "split-etcd-ca", "--plan"}, "nothing: etcd has a CA of its own on all controllers")
	mustVerb(t, all[2], etcdCA("drop"), "restart kthwd on every controller", "kthwd pki ca resume --ca=etcd")
	for i := range all {
		refuses(t, all[0], etcdCA("resume"), fmt.Sprintf("c%d: its etcd still accepts certificates of %s", i, old[:8]), fmt.Sprintf("restart kthwd on c%d", i))
		m.replace(t, &all, i, "")
	}
	mustVerb(t, all[0], etcdCA("resume"), "done  "+old[:8]+" → "+now[:8])
	asks.check(t)
	t.Logf("%d requests a second while it went on, for %v", asks.done.Load()/int64(time.Since(began).Seconds()), time.Since(began).Round(time.Second))
	for i, c := range all { // which have no key of etcd's CA, as kthwd pki init --controllers makes them
		wantEtcd(t, c, now, late[i], false, both.Trusted...)
		if is := etcdCAOf(t, c); !slices.Equal(is.IDs(), []string{now}) || is.Signs() != now || is.Next != nil || (is.Key != nil) != (i == 0) {
			t.Errorf("c%d has %v, %s signs, a key %v", i, is.IDs(), is.Signs(), is.Key != nil)
		}
		etcdAnswers(t, c, "at the end")
	}
}
