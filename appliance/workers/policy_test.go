package workers

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name string, addresses ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

var facts = cluster{
	controllers: []Controller{{"c0", "10.0.1.73"}, {"c1", "fd00::1"}, {"c2", "c2.example.com"}},
	reserved:    []string{"kubernetes", "kubernetes.default.svc", "lb.example.com", "10.0.1.48"},
	services:    []netip.Prefix{netip.MustParsePrefix("10.32.0.0/24")},
	nodes:       []corev1.Node{node("w0", "10.0.1.31", "fd00::31", "w0.example.com"), node("w1", "10.0.1.32", "10.32.0.9", "10.0.1.73", "127.0.0.1")},
}

func TestServing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Request)
		ranges string
		want   string // in the error; "" for an approval
		notYet bool
	}{
		{name: "own name and addresses", change: func(*Request) {}},
		{name: "own address in a range", change: func(*Request) {}, ranges: "10.0.1.0/24"},
		{name: "IPv6", change: func(r *Request) { r.Contents.IPAddresses = []net.IP{net.ParseIP("fd00::31")} }},
		{name: "a name among its addresses", change: func(r *Request) { r.Contents.DNSNames = []string{"w0.example.com"} }},
		{name: "outside the range", change: func(*Request) {}, ranges: "10.0.2.0/24", want: "is not in 10.0.2.0/24"},
		{name: "address not reported yet", change: func(r *Request) { r.Contents.IPAddresses = []net.IP{net.ParseIP("10.0.1.99")} }, want: "no address of the node w0", notYet: true},
		{name: "another node's address", change: func(r *Request) { r.Contents.IPAddresses = []net.IP{net.ParseIP("10.0.1.32")} }, want: "of the node w1"},
		{name: "another node's name", change: func(r *Request) { r.Contents.DNSNames = []string{"w1"} }, want: "is the node w1"},
		{name: "another node asks", change: func(r *Request) { r.User = "system:node:w1" }, want: "system:node:w1 asks for"},
		{name: "a user asks", change: func(r *Request) { r.Groups = nil }, want: "asks for"},
		{name: "no addresses", change: func(r *Request) { r.Contents.DNSNames, r.Contents.IPAddresses = nil, nil }, want: "no address"},
		{name: "API server's name", change: func(r *Request) { r.Contents.DNSNames = []string{"lb.example.com"} }, want: "API server"},
		{name: "API server's name, capitals", change: func(r *Request) { r.Contents.DNSNames = []string{"LB.example.com"} }, want: "API server"},
		{name: "a controller's name in DNS", change: func(r *Request) { r.Contents.DNSNames = []string{"C2.example.com"} }, want: "the address of the controller c2"},
		{name: "API server's name, a dot", change: func(r *Request) { r.Contents.DNSNames = []string{"kubernetes.default.svc."} }, want: "API server"},
		{name: "service", change: func(r *Request) { r.Contents.DNSNames = []string{"dns.kube-system.svc"} }, want: "service"},
		{name: "service, capitals", change: func(r *Request) { r.Contents.DNSNames = []string{"dns.kube-system.SVC"} }, want: "service"},
		{name: "service in full", change: func(r *Request) { r.Contents.DNSNames = []string{"dns.kube-system.svc.cluster.local"} }, want: "service"},
		{name: "wildcard", change: func(r *Request) { r.Contents.DNSNames = []string{"*.example.com"} }, want: "names of others"},
		{name: "mail", change: func(r *Request) { r.Contents.EmailAddresses = []string{"a@b"} }, want: "mail"},
		{name: "client usage", change: func(r *Request) { r.Usages = []string{"client auth"} }, want: "usage"},
		{name: "further group", change: func(r *Request) { r.Contents.Subject.Organization = []string{"system:nodes", "system:masters"} }, want: "organization"},
		{name: "no such node", change: func(r *Request) { r.User, r.Contents.Subject.CommonName = "system:node:w9", "system:node:w9" }, want: "no node w9", notYet: true},
		// What a node reports does not make it right.
		{name: "reported, a controller's", change: asW1("10.0.1.73"), want: "controller c0"},
		{name: "reported, a service's", change: asW1("10.32.0.9"), want: "service"},
		{name: "reported, loopback", change: asW1("127.0.0.1"), want: "no address by which"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Request{User: "system:node:w0", Groups: []string{"system:nodes"}, Signer: certificatesv1.KubeletServingSignerName,
				Usages: []string{"digital signature", "server auth"}, Contents: contents("w0", "10.0.1.31")}
			tt.change(&r)
			var ranges []netip.Prefix
			if tt.ranges != "" {
				ranges = append(ranges, netip.MustParsePrefix(tt.ranges))
			}
			_, err := facts.checkServing(r, ranges)
			wantRefusal(t, err, tt.want)
			if errors.Is(err, errNotYet) != tt.notYet {
				t.Errorf("got %v; want it to be expected: %v", err, tt.notYet)
			}
		})
	}
}

func contents(name, address string) *x509.CertificateRequest {
	return &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.ParseIP(address)},
	}
}

func asW1(address string) func(*Request) {
	return func(r *Request) { r.User, r.Contents = "system:node:w1", contents("w1", address) }
}

func wantRefusal(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestFirst(t *testing.T) {
	for _, tt := range []struct {
		name, node string
		limits     Limits
		change     func(*Request)
		want       string
	}{
		{name: "any name", node: "w9"},
		{name: "the name", node: "w9", limits: Limits{Name: "w9"}},
		{name: "another name", node: "w8", limits: Limits{Name: "w9"}, want: "the token is for the node w9"},
		{name: "a node that exists", node: "w0", want: "w0 already"},
		{name: "a controller", node: "c0", want: "controller"},
		{name: "the API server", node: "lb.example.com", want: "API server"},
		{name: "capitals", node: "W9", want: "no name of a node"},
		{name: "another signer", node: "w9", change: func(r *Request) { r.Signer = certificatesv1.KubeAPIServerClientSignerName }, want: "not of"},
		{name: "addresses", node: "w9", change: func(r *Request) { r.Contents.DNSNames = []string{"w9"} }, want: "no addresses"},
		{name: "not a node", node: "w9", change: func(r *Request) { r.Contents.Subject.CommonName = "kubernetes" }, want: "common name"},
		{name: "server usage", node: "w9", change: func(r *Request) { r.Usages = []string{"server auth"} }, want: "usage"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Request{Signer: certificatesv1.KubeAPIServerClientKubeletSignerName, Usages: []string{"digital signature", "client auth"},
				Contents: &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + tt.node, Organization: []string{"system:nodes"}}}}
			if tt.change != nil {
				tt.change(&r)
			}
			_, err := facts.checkFirst(r, tt.limits)
			wantRefusal(t, err, tt.want)
		})
	}
}

func TestRemovals(t *testing.T) {
	now := time.Now()
	cert := func(cn string, from time.Time) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotBefore: from}
	}
	unread := newRemovals()
	wantRefusal(t, unread.Refuses(cert("system:node:w0", now)), "not known yet")
	wantRefusal(t, unread.Refuses(cert("admin", now)), "")
	value, err := json.Marshal(removal{At: now})
	if err != nil {
		t.Fatal(err)
	}
	judge := removedBefore(map[string][]byte{"w0": value, "w2": []byte("garbage")})
	wantRefusal(t, judge(cert("system:node:w0", now.Add(-time.Second))), "was removed")
	wantRefusal(t, judge(cert("system:node:w0", now.Add(time.Second))), "")
	wantRefusal(t, judge(cert("system:node:w1", now.Add(-time.Hour))), "")
	wantRefusal(t, judge(cert("system:node:w2", now)), "was removed")
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		limits Limits
		ttl    time.Duration
		want   string
	}{
		{Limits{Nodes: 1}, time.Hour, ""},
		{Limits{Nodes: 0}, time.Hour, "--nodes 0"},
		{Limits{Nodes: 1}, time.Second, "--ttl 1s"},
		{Limits{Nodes: 1}, 1000 * time.Hour, "--ttl"},
		{Limits{Nodes: 2, Name: "w0"}, time.Hour, "a name is one node's"},
		{Limits{Nodes: 1, Name: "W0"}, time.Hour, "--name"},
	} {
		wantRefusal(t, tt.limits.Check(tt.ttl), tt.want)
	}
}

// An error about a token does not repeat it.
func TestParseToken(t *testing.T) {
	for _, bad := range []string{"", "a", "abcdef", "abcdef.", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef0", "abcdef.0123456789abcdef\n"} {
		_, _, err := ParseToken(bad)
		if err == nil || len(bad) > 1 && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if id, secret, err := ParseToken("abcdef.0123456789abcdef"); id != "abcdef" || secret != "0123456789abcdef" || err != nil {
		t.Errorf("got %q, %q, %v", id, secret, err)
	}
}
