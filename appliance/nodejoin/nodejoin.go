// Package nodejoin makes a machine a worker node of a cluster, up to the start of its kubelet.
//
//	p, err := nodejoin.Prepare(ctx, options) // asks the cluster, writes nothing
//	made, err := p.Write()
//
// Prepare trusts nobody before it knows the cluster: the description that the API server
// gives to everyone who names a token must be signed with the token's secret, the CAs in it
// must be those of the given hashes, and the server must have a certificate of theirs. Only
// then does the token leave the machine, for a request that the cluster tries and does not
// keep: so a wrong name or a used token shows before anything is written.
//
// The kubelet asks for its certificates itself, and renews them.
package nodejoin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/cluster-bootstrap/token/jws"

	"kthwd/appliance/advice"
	"kthwd/appliance/supervise"
	"kthwd/appliance/workers"
)

const (
	requestTimeout = 15 * time.Second
	clockTolerance = 5 * time.Minute
	maxAnswer      = 1 << 20

	// A token that was made this moment may be unknown to another controller.
	newTokenPatience = 3 * time.Second
	newTokenPoll     = 500 * time.Millisecond
)

// Options say whom to join, and where the files go.
type Options struct {
	Server string   // https://HOST:PORT of the API server or its load balancer
	Token  string   // ID.SECRET
	Hashes []string // of the CAs' public keys: see workers.HashOf
	Name   string   // of the node
	Files  Files
}

// found is the cluster, as its description and its server have proven it to be.
type found struct {
	ca      []byte // PEM
	cluster workers.Cluster
}

// Prepare asks the cluster, and returns the files to write.
func Prepare(ctx context.Context, o Options) (*Plan, error) {
	id, secret, err := workers.ParseToken(o.Token)
	if err != nil {
		return nil, advice.Usage(err)
	}
	server, err := url.Parse(o.Server)
	if err != nil || server.Scheme != "https" || server.Host == "" || strings.Trim(server.Path, "/") != "" {
		return nil, advice.Usage(fmt.Errorf("--server %q: want https://HOST:PORT", o.Server))
	}
	hashes, err := workers.ParseHashes(o.Hashes)
	if err != nil {
		return nil, advice.Usage(err)
	}
	if err := workers.CheckName(o.Name); err != nil {
		return nil, advice.With(advice.Usage(err), "choose another with --name")
	}
	if err := o.Files.check(); err != nil {
		return nil, err
	}
	f, err := discover(ctx, server, id, secret, hashes)
	if err != nil {
		return nil, err
	}
	if err := try(ctx, o, f); err != nil {
		return nil, err
	}
	return plan(o, f)
}

// discover fetches the description of the cluster and verifies it.
func discover(ctx context.Context, server *url.URL, id, secret string, hashes []string) (found, error) {
	answer, chain, clock, err := fetch(ctx, server, id)
	if err != nil {
		return found{}, err
	}
	if !jws.DetachedTokenIsValid(answer.Signature, answer.Kubeconfig, id, secret) {
		return found{}, advice.With(fmt.Errorf("what %s says of the cluster is not signed with this token: somebody is in between, or the token has a typing error", server.Host),
			"compare the token with the line that kthwd node token create has printed; if it is the same, look who answers at "+server.Host)
	}
	f, err := describe(answer.Kubeconfig)
	if err != nil {
		return f, fmt.Errorf("the description of the cluster: %w", err)
	}
	if err := pinned(f.ca, hashes); err != nil {
		return f, err
	}
	if err := sameClock(clock, server.Host); err != nil {
		return f, err
	}
	return f, genuine(chain, f.ca, server.Hostname())
}

// fetch asks for the description. The server is not known yet: nothing secret is sent.
func fetch(ctx context.Context, server *url.URL, id string) (answer workers.Welcome, chain []*x509.Certificate, clock time.Time, err error) {
	client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{ // without a proxy, as all within the cluster
		DisableKeepAlives: true,
		// What comes back is verified by its signature, and then the server by the CAs in it.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // see genuine
	}}
	ask := url.URL{Scheme: "https", Host: server.Host, Path: workers.WelcomePath, RawQuery: url.Values{workers.WelcomeToken: {id}}.Encode()}
	for until := time.Now().Add(newTokenPatience); ; supervise.Sleep(ctx, newTokenPoll) {
		var resp *http.Response
		resp, err = get(ctx, client, ask.String())
		if err != nil {
			return answer, nil, clock, advice.With(err, "name the API server, or a load balancer in front of it, as this machine reaches it")
		}
		body, errRead := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		resp.Body.Close()
		switch {
		case errRead != nil:
			return answer, nil, clock, errRead
		case resp.StatusCode == http.StatusOK:
			clock, _ = http.ParseTime(resp.Header.Get("Date"))
			if err := json.Unmarshal(body, &answer); err != nil {
				return answer, nil, clock, fmt.Errorf("%s does not answer as kthwd does: %w", server.Host, err)
			}
			return answer, resp.TLS.PeerCertificates, clock, nil
		case ctx.Err() != nil || time.Now().After(until):
			return answer, nil, clock, advice.With(fmt.Errorf("%s knows no token %s: it has expired, was used, or was deleted", server.Host, id),
				"make another one on a controller with kthwd node token create")
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	var failed interface{ Unwrap() error }
	if errors.As(err, &failed) { // without the URL, which has a query
		return nil, fmt.Errorf("%s: %w", req.URL.Host, failed.Unwrap())
	}
	return resp, err
}

// describe reads the description: a kubeconfig with one cluster.
func describe(kubeconfig string) (f found, err error) {
	config, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return f, err
	}
	if len(config.Clusters) != 1 {
		return f, fmt.Errorf("got %d clusters, want one", len(config.Clusters))
	}
	for _, c := range config.Clusters {
		f.ca = c.CertificateAuthorityData
		unknown, ok := c.Extensions[workers.Extension].(*runtime.Unknown)
		if !ok {
			return f, errors.New("it says nothing of the cluster's DNS")
		}
		if err := json.Unmarshal(unknown.Raw, &f.cluster); err != nil {
			return f, err
		}
	}
	return f, nil
}

// pinned requires each CA to be one of those that were named.
func pinned(ca []byte, hashes []string) error {
	got, err := workers.HashesOf(ca)
	if err != nil {
		return fmt.Errorf("the cluster's CA: %w", err)
	}
	for _, h := range got {
		if !slices.Contains(hashes, h) {
			return advice.With(fmt.Errorf("the cluster has the CA %s, which --ca-hash does not name: somebody is in between, or the hash is another cluster's", h),
				"compare --ca-hash with what kthwd node token create has printed")
		}
	}
	return nil
}

// sameClock refuses a clock with which certificates would look expired, or not valid yet.
func sameClock(server time.Time, host string) error {
	if server.IsZero() {
		return nil
	}
	off, way := time.Until(server), "behind"
	if off < 0 {
		off, way = -off, "ahead of"
	}
	if off <= clockTolerance {
		return nil
	}
	return advice.With(fmt.Errorf("the clock of this machine is %v %s that of %s: certificates would not be valid here", off.Round(time.Minute), way, host),
		"set the clock, with a time service such as systemd-timesyncd")
}

// genuine requires the server to have a certificate of the cluster's CAs.
func genuine(chain []*x509.Certificate, ca []byte, host string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host})
	var name x509.HostnameError
	switch {
	case errors.As(err, &name):
		return advice.With(fmt.Errorf("the API server's certificate is not valid for %s: %w", host, err), "use one of the names in it, or give the controllers this one with --subject-alt-name")
	case err != nil:
		return advice.With(fmt.Errorf("the server at %s is none of the cluster's: somebody is in between: %w", host, err), "look who answers there")
	}
	return nil
}

// try makes the request that the kubelet will make, without effect.
func try(ctx context.Context, o Options, f found) error {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: o.Server, BearerToken: o.Token, Timeout: requestTimeout, UserAgent: "kthwd", Proxy: http.ProxyURL(nil),
		TLSClientConfig: rest.TLSClientConfig{CAData: f.ca},
	})
	if err != nil {
		return err
	}
	request, err := newRequest(o.Name)
	if err != nil {
		return err
	}
	for until := time.Now().Add(newTokenPatience); ; supervise.Sleep(ctx, newTokenPoll) {
		_, err = client.CertificatesV1().CertificateSigningRequests().Create(ctx, request, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if !apierrors.IsUnauthorized(err) || ctx.Err() != nil || time.Now().After(until) {
			return refused(err, o)
		}
	}
}

// refused says why the cluster does not want the node.
func refused(err error, o Options) error {
	var status apierrors.APIStatus
	var network net.Error
	switch {
	case err == nil:
		return nil
	case apierrors.IsUnauthorized(err):
		return advice.With(fmt.Errorf("the API server does not accept the token: it has expired or was deleted, or bootstrap tokens are off there"),
			"make another token with kthwd node token create; it says what to set if they are off")
	case apierrors.IsForbidden(err) && errors.As(err, &status):
		_, why, found := strings.Cut(status.Status().Message, "is forbidden: ")
		if !found {
			why = status.Status().Message
		}
		return advice.With(fmt.Errorf("the cluster refuses the node %s: %s", o.Name, why), "choose another --name, or make another token with kthwd node token create")
	case errors.As(err, &network):
		return fmt.Errorf("%s: %w", o.Server, err)
	}
	return err
}

func newRequest(name string) (*certificatesv1.CertificateSigningRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}}, key)
	if err != nil {
		return nil, err
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "kthwd-node-join-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, nil
}

// bootstrapKubeconfig is the kubeconfig with which the kubelet asks for its first certificate.
func bootstrapKubeconfig(o Options, caFile string) ([]byte, error) {
	const name = "kthwd"
	c := clientcmdapi.NewConfig()
	c.Clusters[name] = &clientcmdapi.Cluster{Server: o.Server, CertificateAuthority: caFile}
	c.AuthInfos["bootstrap"] = &clientcmdapi.AuthInfo{Token: o.Token}
	c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: "bootstrap"}
	c.CurrentContext = name
	return clientcmd.Write(*c)
}
