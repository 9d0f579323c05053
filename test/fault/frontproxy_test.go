package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const frontProxyKey = "/kthwd/front-proxy-ca/rotation"

func frontProxy(verb string, args ...string) []string {
	return append([]string{"pki", "ca", verb, "--ca=front-proxy"}, args...)
}

// frontProxyOf reads the front proxy's CA of a controller, with its key.
func frontProxyOf(t *testing.T, c *kthwtest.Controller) pki.CA {
	t.Helper()
	return caOf(t, c, pki.NameFrontProxyCA)
}

// extension is an extension API server of the group NAME.kthwd.test. It answers for a front proxy only, with
// upstream's own authenticator, as every server does that is made of k8s.io/apiserver.
type extension struct {
	name   string
	issuer atomic.Value // of the certificate of the last request
	client atomic.Value // the public key in it
}

func (e *extension) path() string { return "/apis/" + e.name + ".kthwd.test/v1" }

// startExtension makes one that knows the front proxies' CAs from cas, and registers it.
func startExtension(t *testing.T, c *kthwtest.Controller, name string, cas func() (x509.VerifyOptions, bool)) *extension {
	t.Helper()
	e := &extension{name: name}
	list := func(all ...string) headerrequest.StringSliceProvider { return headerrequest.StaticStringSlice(all) }
	proxies := headerrequest.NewDynamicVerifyOptionsSecure(cas, list(pki.NameFrontProxyClient), list("X-Remote-User"), list("X-Remote-Uid"), list("X-Remote-Group"), list("X-Remote-Extra-"))
	listener, err := net.Listen("tcp", net.JoinHostPort(ownAddress(t), "0"))
	if err != nil {
		t.Fatal(err)
	}
	pair, caPEM := kthwtest.ServingPair(t, name+".default.svc")
	server := &httptest.Server{
		Listener: listener, TLS: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12},
		Config: &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if _, ok, err := proxies.AuthenticateRequest(req); err != nil || !ok {
				http.Error(w, fmt.Sprintf("no front proxy: %v", err), http.StatusUnauthorized)
				return
			}
			e.issuer.Store(string(req.TLS.PeerCertificates[0].AuthorityKeyId))
			e.client.Store(string(req.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo))
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"%s.kthwd.test/v1","resources":[]}`, name)
		})},
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	e.register(t, direct(t, c), listener.Addr().(*net.TCPAddr), caPEM)
	return e
}

// register tells the aggregator of the server, and waits until it passes requests on.
func (e *extension) register(t *testing.T, client kubernetes.Interface, at *net.TCPAddr, caPEM []byte) {
	t.Helper()
	port, ready := int32(at.Port), true
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: e.name}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Port: 443}}}}
	if _, err := client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: e.name, Labels: map[string]string{discoveryv1.LabelServiceName: e.name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new(string), Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{at.IP.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	if _, err := client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), endpoints, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	https := int32(443)
	group := e.name + ".kthwd.test"
	body, err := json.Marshal(apiregistrationv1.APIService{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiregistration.k8s.io/v1", Kind: "APIService"},
		ObjectMeta: metav1.ObjectMeta{Name: "v1." + group},
		Spec: apiregistrationv1.APIServiceSpec{Group: group, Version: "v1", GroupPriorityMinimum: 100, VersionPriority: 100, CABundle: caPEM,
			Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: e.name, Port: &https}},
	})
	if err == nil {
		err = client.Discovery().RESTClient().Post().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").Body(body).SetHeader("Content-Type", "application/json").Do(t.Context()).Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "an answer of the extension "+e.name, soon, func() error { return e.ask(t.Context(), client) })
}

// ask asks it through the aggregator.
func (e *extension) ask(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.Discovery().RESTClient().Get().AbsPath(e.path()).DoRaw(ctx)
	return err
}

// of is the ID of the CA that has signed the certificate of the last request.
func (e *extension) of(cas ...*x509.Certificate) string {
	for _, ca := range cas {
		if e.issuer.Load() == string(ca.SubjectKeyId) {
			return pki.CAID(ca)
		}
	}
	return ""
}

// fromConfigMap is what upstream's servers know the front proxies' CAs by: they follow the ConfigMap.
func fromConfigMap(t *testing.T, client kubernetes.Interface) func() (x509.VerifyOptions, bool) {
	t.Helper()
	cas, err := dynamiccertificates.NewDynamicCAFromConfigMapController("front-proxy", "kube-system", "extension-apiserver-authentication", "requestheader-client-ca-file", client)
	if err == nil {
		err = cas.RunOnce(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	go cas.Run(t.Context(), 1)
	return cas.VerifyOptions
}

// fromFile reads the CAs from a file each time: a person brings it.
func fromFile(file string) func() (x509.VerifyOptions, bool) {
	return func() (x509.VerifyOptions, bool) {
		pool, err := pki.Pool(file)
		return x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, err == nil
	}
}

// publishedCAs are the IDs of the CAs that API servers tell extension API servers.
func publishedCAs(ctx context.Context, client kubernetes.Interface, key string) (ids []string, err error) {
	m, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode([]byte(m.Data[key])); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		ids = append(ids, pki.CAID(ca))
	}
	slices.Sort(ids)
	return ids, nil
}

func wantPublishedCAs(t *testing.T, client kubernetes.Interface, key string, want ...string) {
	t.Helper()
	if got, err := publishedCAs(t.Context(), client, key); err != nil || !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("the ConfigMap has the CAs %v as %s, want %v: %v", got, key, want, err)
	}
}

// startAskers asks extensions through the aggregators of controllers.
func startAskers(t *testing.T, extensions []*extension, all ...*kthwtest.Controller) *asking {
	t.Helper()
	var requests []func(context.Context) error
	for _, c := range all {
		client := direct(t, c)
		for _, e := range extensions {
			requests = append(requests, func(ctx context.Context) error { return e.ask(ctx, client) })
		}
	}
	return startAsking(t, requests...)
}

// speaks is an authenticating proxy before the API server: it speaks for jane with a certificate.
func speaks(ctx context.Context, t *testing.T, c *kthwtest.Controller, pair tls.Certificate) error {
	t.Helper()
	pool, err := pki.Pool(pki.Layout{Dir: c.Dir}.CA())
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Secure))+"/version", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Remote-User", "jane")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// The front proxy's CA is replaced under requests through the aggregator, none of which fails: to an
// extension API server that follows the ConfigMap, and to one with a file, which is named until it has both
// CAs. An authenticating proxy with a certificate of the old CA is named, and refused in the end.
func TestFrontProxyCARotate(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := direct(t, c)
	const key = "requestheader-client-ca-file"
	was := frontProxyOf(t, c)
	old := was.Signs()
	file := t.TempDir() + "/front-proxy-ca.pem"
	layout := pki.Layout{Dir: c.Dir}
	copyFile(t, layout.Cert(pki.NameFrontProxyCA), file)
	live := startExtension(t, c, "live", fromConfigMap(t, client))
	static := startExtension(t, c, "static", fromFile(file))
	proxy, err := pki.Probe(layout, pki.NameFrontProxyCA, was.Signer, was.Key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	asks := startAskers(t, []*extension{live, static}, c)
	frontProxyTakenBack(t, c, old)
	wantPublishedCAs(t, client, key, old)

	mustVerb(t, c, frontProxy("rotate"), "front-proxy-ca.pem has both CAs: copy it", "then kthwd pki ca sign --ca=front-proxy")
	both := frontProxyOf(t, c)
	now := slices.DeleteFunc(both.IDs(), func(id string) bool { return id == old })[0]
	if both.Signs() != old {
		t.Fatal("the new CA signs already")
	}
	mustVerb(t, c, frontProxy("status"), "v1.static.kthwd.test", "does not trust the new CA yet", "1 of 2 extension API servers")
	mustVerb(t, c, caRotation("status"), "none")
	refuses(t, c, frontProxy("sign"), "v1.static.kthwd.test does not trust the new CA", "--force")
	refuses(t, c, frontProxy("drop"), "this step comes after the stage watch", "kthwd pki ca sign --ca=front-proxy")
	refuses(t, c, frontProxy("rotate"), "a rotation has not ended")
	copyFile(t, layout.Cert(pki.NameFrontProxyCA), file)

	mustVerb(t, c, frontProxy("sign"), "signs; certificates of "+old[:8]+" are accepted until kthwd pki ca drop --ca=front-proxy")
	for _, e := range []*extension{live, static} {
		if err := e.ask(t.Context(), client); err != nil || e.of(both.Trusted...) != now {
			t.Errorf("%s is asked with a certificate of %s, want %s: %v", e.name, e.of(both.Trusted...), now, err)
		}
	}
	kthwtest.WaitFor(t, "the proxy with a certificate of the old CA to be named", soon, func() error {
		if err := speaks(t.Context(), t, c, proxy); err != nil {
			t.Fatalf("a certificate of the old CA: %v", err)
		}
		if _, out := verb(t, c, frontProxy("status")...); !strings.Contains(out, "jane from") {
			return errors.New(out)
		}
		if r := mustStatus(t, c); !findingSays(r, "front_proxy_ca_rotation", "with certificates of the old CA") {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
	refuses(t, c, frontProxy("drop"), "certificates of the old CA", "still in use", "--force")
	refuses(t, c, frontProxy("abort"), "can no longer be aborted")
	mustVerb(t, c, frontProxy("resume"))

	mustVerb(t, c, frontProxy("drop", "--force"), "done  ")
	if err := speaks(t.Context(), t, c, proxy); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a certificate of the dropped CA: got %v", err)
	}
	wantPublishedCAs(t, client, key, now)
	if is := frontProxyOf(t, c); !slices.Equal(is.IDs(), []string{now}) || is.Signs() != now || is.Next != nil || bytes.Equal(is.Key, was.Key) {
		t.Errorf("the files have the CAs %v, and sign with %s", is.IDs(), is.Signs())
	}
	mustVerb(t, c, frontProxy("status"), "none; the last one, "+old[:8]+" → "+now[:8])
	anotherFrontProxyKey(t, c, live)
	asks.check(t)
	frontProxyRestarts(t, c, live)
}

// anotherFrontProxyKey replaces the key with which the API server speaks for its users, which a
// rotation of the CA keeps: somebody may know it.
func anotherFrontProxyKey(t *testing.T, c *kthwtest.Controller, e *extension) {
	t.Helper()
	client := direct(t, c)
	const file = "front-proxy-client-key.pem"
	before, shown := contentOf(t, c, file)[file], e.client.Load()
	mustVerb(t, c, []string{"pki", "renew", pki.NameFrontProxyClient, "--new-key"}, "with another key")
	if contentOf(t, c, file)[file] == before {
		t.Errorf("%s is as it was", file)
	}
	kthwtest.WaitFor(t, "a request with the new key", soon, func() error {
		if err := e.ask(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		if e.client.Load() == shown {
			return errors.New("the aggregator shows a certificate for the old one")
		}
		return nil
	})
}

// frontProxyTakenBack begins a rotation and takes it back, which leaves the files as they were, to the byte.
func frontProxyTakenBack(t *testing.T, c *kthwtest.Controller, old string) {
	t.Helper()
	names := []string{"front-proxy-ca.pem", "front-proxy-ca-key.pem", "front-proxy-client.pem", "ca.pem", "admin.kubeconfig"}
	mustVerb(t, c, frontProxy("rotate", "--plan"), "trust ", "distribute ", "ConfigMap", "sign ", "watch ", "drop ")
	mustVerb(t, c, frontProxy("status"), "rotation", "none", "signs with "+old[:8]+", trusts "+old[:8])
	for _, v := range []string{"resume", "sign", "drop", "abort"} {
		refuses(t, c, frontProxy(v), "no rotation of the front proxy's CA is under way", "kthwd pki ca rotate --ca=front-proxy")
	}
	files := contentOf(t, c, names...)
	mustVerb(t, c, frontProxy("rotate", "--without-backup"), "front-proxy-ca.pem has both CAs")
	mustVerb(t, c, frontProxy("abort"), "aborted")
	for name, data := range contentOf(t, c, names...) {
		if data != files[name] {
			t.Errorf("taken back, %s is another file than before", name)
		}
	}
	if _, err := os.Lstat(pki.Layout{Dir: c.Dir}.NextCAKey(pki.NameFrontProxyCA)); err == nil {
		t.Error("taken back, the key that was to come is kept")
	}
}

// frontProxyRestarts restarts a controller after a rotation, which must find nothing wrong with its files,
// and whose aggregator reaches the extension.
func frontProxyRestarts(t *testing.T, c *kthwtest.Controller, e *extension) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
	client := direct(t, c)
	kthwtest.WaitFor(t, "an answer after a restart", soon, func() error { return e.ask(t.Context(), client) })
	for _, kind := range []string{"front_proxy_ca_rotation", "file_misfit", "file_changed", "certificate", "keys_replaced"} {
		if r := mustStatus(t, c); findingSays(r, kind, "") {
			t.Errorf("after a restart: got the findings %+v", r.Findings)
		}
	}
}

// A controller that is killed in any stage starts again, passes requests on, and goes on when it is told to.
func TestFrontProxyCAKilled(t *testing.T) {
	endToEnd(t, "TestFrontProxyCARotate")
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	old := frontProxyOf(t, c).Signs()
	file := pki.Layout{Dir: c.Dir}.Cert(pki.NameFrontProxyCA)
	e := startExtension(t, c, "file", fromFile(file))
	for _, tt := range []struct {
		stage, then string
		run         []string
	}{
		{"trust", "abort", frontProxy("rotate", "--without-backup")},
		{"trust", "resume", frontProxy("rotate", "--without-backup")},
		{"sign", "resume", frontProxy("sign", "--force")},
		{"drop", "resume", frontProxy("drop", "--force")},
	} {
		killWhen(t, c, frontProxyKey, tt.stage, tt.run...)
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
		client := direct(t, c)
		kthwtest.WaitFor(t, "an answer after a kill in "+tt.stage, soon, func() error { return e.ask(t.Context(), client) })
		// The lease of the process that died may last for some seconds.
		kthwtest.WaitFor(t, tt.then+" after a kill in "+tt.stage, soon, func() error {
			code, out := verb(t, c, frontProxy(tt.then)...)
			if code != 0 && !(tt.stage == "drop" && strings.Contains(out, "no rotation of the front proxy's CA is under way")) { // it was faster than the kill
				return errors.New(out)
			}
			return nil
		})
		if err := e.ask(t.Context(), client); err != nil {
			t.Errorf("after a kill in %s and %s: %v", tt.stage, tt.then, err)
		}
		if is := frontProxyOf(t, c); tt.then == "abort" && !slices.Equal(is.IDs(), []string{old}) {
			t.Errorf("taken back, front-proxy-ca.pem has %v", is.IDs())
		}
	}
	is := frontProxyOf(t, c)
	if len(is.Trusted) != 1 || is.Signs() == old || is.Next != nil {
		t.Errorf("at the end front-proxy-ca.pem has %v, and %s signs", is.IDs(), is.Signs())
	}
	wantPublishedCAs(t, direct(t, c), "requestheader-client-ca-file", is.Signs())
}

// Three controllers, none of which has the key of the front proxy's CA: each in turn carries a rotation on, no
// request through any aggregator fails, and a controller that is away stops it, which all of them say.
func TestFrontProxyCAOfThree(t *testing.T) {
	endToEnd(t, "TestFrontProxyCARotate and TestFrontProxyCAKilled replace the CA of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	for _, c := range all {
		c.WaitReady(t)
	}
	client := direct(t, all[0])
	old := frontProxyOf(t, all[0]).Signs()
	live := startExtension(t, all[0], "live", fromConfigMap(t, client))
	for i, c := range all {
		client := direct(t, c)
		kthwtest.WaitFor(t, fmt.Sprintf("the aggregator of c%d", i), soon, func() error { return live.ask(t.Context(), client) })
	}
	asks := startAskers(t, []*extension{live}, all[:]...)
	mustVerb(t, all[0], frontProxy("rotate", "--without-backup"), "front-proxy-ca.pem has both CAs")
	asks.check(t)
	signsWithoutOne(t, m, &all)
	asks = startAskers(t, []*extension{live}, all[:]...)
	mustVerb(t, all[1], frontProxy("resume"), "signs; certificates of "+old[:8]+" are accepted")
	both := frontProxyOf(t, all[0])
	for i, c := range all {
		if err := live.ask(t.Context(), direct(t, c)); err != nil || frontProxyOf(t, c).Signs() != both.Signs() || both.Signs() == old {
			t.Errorf("c%d signs with %s, want %s: %v", i, frontProxyOf(t, c).Signs(), both.Signs(), err)
		}
	}
	mustVerb(t, all[2], frontProxy("drop", "--force"), "done  ")
	for i, c := range all {
		if is := frontProxyOf(t, c); !slices.Equal(is.IDs(), []string{both.Signs()}) || is.Next != nil || (is.Key != nil) != (i == 0) {
			t.Errorf("c%d has %v, %s signs, a key %v", i, is.IDs(), is.Signs(), is.Key != nil)
		}
	}
	asks.check(t)
	wantPublishedCAs(t, client, "requestheader-client-ca-file", both.Signs())
}

// signsWithoutOne kills c2 while c1 carries the stage sign on, which stops there: every controller names c2.
// It starts c2 again.
func signsWithoutOne(t *testing.T, m *made, all *[3]*kthwtest.Controller) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	watch := all[0].Etcd(t).Watch(ctx, frontProxyKey)
	signed := make(chan struct{})
	go func() {
		defer close(signed)
		_ = exec.CommandContext(ctx, kthwtest.Binary(t), append(frontProxy("sign"), "--config=", "--data-dir="+all[1].Dir)...).Run()
	}()
	for signs := false; !signs; {
		answer, open := <-watch
		if !open {
			t.Fatal("the rotation has not come to the stage sign")
		}
		for _, e := range answer.Events {
			signs = signs || strings.Contains(string(e.Kv.Value), `"stage":"sign"`)
		}
	}
	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	<-signed
	for i, c := range all[:2] {
		kthwtest.WaitFor(t, fmt.Sprintf("c%d to name c2", i), soon, func() error {
			if r := mustStatus(t, c); findingSays(r, "front_proxy_ca_rotation", "has stopped: c2: ") {
				return nil
			}
			_, out := verb(t, all[1], frontProxy("resume")...) // it may have stopped for another reason, while etcd elected a leader
			return errors.New(out)
		})
	}
	if code, out := verb(t, all[0], frontProxy("status")...); code != 1 || !strings.Contains(out, "c1: c2: ") {
		t.Errorf("the status on c0: got exit code %d:\n%s", code, out)
	}
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
}
