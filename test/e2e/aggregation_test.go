package e2e

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const aggregatedPath = "/apis/e2e.kthwd.test/v1alpha1"

// aggregated registers an API whose service leads to the test's own server.
const aggregated = `
apiVersion: v1
kind: Service
metadata: {name: extension, namespace: default}
spec: {clusterIP: None, ports: [{port: 443, targetPort: %[2]s}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: extension-0, namespace: default, labels: {kubernetes.io/service-name: extension}}
addressType: IPv4
ports: [{port: %[2]s}]
endpoints: [{addresses: ["%[1]s"], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1alpha1.e2e.kthwd.test}
spec:
  group: e2e.kthwd.test
  version: v1alpha1
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {name: extension, namespace: default, port: 443}
  caBundle: %[3]s
`

// tryAggregatedAPI checks that an extension API server can know who asks: the
// request comes with the user's name, and with a certificate of the front-proxy CA.
func tryAggregatedAPI(t *testing.T, c *kthwtest.Controller) {
	e := startExtension(t, c, "10.0.1.73")
	host, port, err := net.SplitHostPort(e.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c, fmt.Sprintf(aggregated, host, port, base64.StdEncoding.EncodeToString(e.caPEM)))
	c.Kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", "apiservice/v1alpha1.e2e.kthwd.test")
	kthwtest.WaitFor(t, "answer of the extension", kthwtest.Soon, func() error {
		out, err := c.TryKubectl(t, "get", "--raw", aggregatedPath)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return lacks(out, `"groupVersion":"e2e.kthwd.test/v1alpha1"`)
	})
	if asked := e.asked("admin"); asked == nil {
		t.Errorf("no request for X-Remote-User admin; got %v", e.requests)
	} else if asked.cert != "front-proxy-client" || !slices.Contains(asked.groups, pki.AdminsGroup) {
		t.Errorf("got certificate %q and groups %v, want front-proxy-client and %s", asked.cert, asked.groups, pki.AdminsGroup)
	}
	c.Kubectl(t, "delete", "apiservice/v1alpha1.e2e.kthwd.test", "-n", "default", "service/extension")
}

// extension is an extension API server, as far as the aggregator sees.
type extension struct {
	server *httptest.Server
	caPEM  []byte

	mu       sync.Mutex
	requests []proxied
}

// proxied is who the aggregator said asks, and the certificate it said so with.
type proxied struct {
	user, cert string
	groups     []string
}

// startExtension serves on address, for bearers of a front-proxy certificate only.
func startExtension(t *testing.T, c *kthwtest.Controller, address string) *extension {
	t.Helper()
	pair, caPEM := kthwtest.ServingPair(t, "extension.default.svc")
	clients := certPool(t, pki.Layout{Dir: c.Dir}.Cert(pki.NameFrontProxyCA))
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	e := &extension{caPEM: caPEM}
	e.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: e}, TLS: &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}}
	e.server.StartTLS()
	t.Cleanup(e.server.Close)
	return e
}

func (e *extension) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests = append(e.requests, proxied{
		user: req.Header.Get("X-Remote-User"), groups: req.Header.Values("X-Remote-Group"), cert: req.TLS.PeerCertificates[0].Subject.CommonName,
	})
	if req.URL.Path != aggregatedPath {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"e2e.kthwd.test/v1alpha1","resources":[]}`)
}

// asked is a request in the name of user.
func (e *extension) asked(user string) *proxied {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.IndexFunc(e.requests, func(p proxied) bool { return p.user == user }); i >= 0 {
		return &e.requests[i]
	}
	return nil
}
