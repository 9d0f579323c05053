package discovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/lb"
	"kthwd/rbacseed"
)

// The certificate of the kubeconfig is renewed with a CertificateSigningRequest, which a controller
// approves because of the certificate in use (appliance/users). The old one stays in the file until
// an API server has accepted the new one.

const (
	certificateLook = 10 * time.Second // at the file, which a person may replace
	renewalPause    = 5 * time.Second  // after a failure; it doubles
	renewalPauseMax = 5 * time.Minute
	signTimeout     = 30 * time.Second // for the signature
	signPoll        = 200 * time.Millisecond
)

// credential is the certificate of a kubeconfig.
type credential struct {
	path string
	data []byte // of the file
	cert *x509.Certificate
	user string // its entry in the file
}

// readCredential returns the certificate in a kubeconfig; nil if it is not renewed.
func readCredential(path string) (*credential, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.Load(data)
	if err != nil {
		return nil, errors.New(text.Unquoted(err.Error()))
	}
	context := config.Contexts[config.CurrentContext]
	if context == nil || config.AuthInfos[context.AuthInfo] == nil {
		return nil, nil
	}
	block, _ := pem.Decode(config.AuthInfos[context.AuthInfo].ClientCertificateData)
	if block == nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(cert.Subject.Organization, rbacseed.BalancerGroup) {
		return nil, nil
	}
	return &credential{path: path, data: data, cert: cert, user: context.AuthInfo}, nil
}

// with returns the kubeconfig with another certificate.
func (c *credential) with(certificate, key []byte) ([]byte, error) {
	config, err := clientcmd.Load(c.data)
	if err != nil {
		return nil, errors.New(text.Unquoted(err.Error()))
	}
	config.AuthInfos[c.user].ClientCertificateData, config.AuthInfos[c.user].ClientKeyData = certificate, key
	return clientcmd.Write(*config)
}

// keepCertificate renews the certificate of the kubeconfig until ctx ends.
func (d *Discovery) keepCertificate(ctx context.Context) {
	failed := pause{least: renewalPause, most: renewalPauseMax}
	for ctx.Err() == nil {
		c, err := readCredential(d.Kubeconfig)
		if err != nil || c == nil { // a broken file is reported where it is used
			d.noteCertificate(c, nil)
			supervise.Sleep(ctx, certificateLook)
			continue
		}
		if left := time.Until(pki.RenewAt(c.cert)); left > 0 {
			failed.reset()
			d.noteCertificate(c, nil)
			supervise.Sleep(ctx, min(left, certificateLook))
			continue
		}
		if err := d.renew(ctx, c); err != nil && ctx.Err() == nil {
			d.noteCertificate(c, err)
			failed.wait(ctx)
		}
	}
}

// renew replaces the certificate of the kubeconfig with its next one.
func (d *Discovery) renew(ctx context.Context, c *credential) error {
	if !time.Now().Before(c.cert.NotAfter) {
		return fmt.Errorf("it expired on %s, so no API server accepts its request for the next one", c.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := durable.Replaceable(c.path); err != nil {
		return err
	}
	cluster, err := parseKubeconfig(c.path, c.data)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	var errs []error
	for _, server := range servers(cluster, d.Last(), d.Static()) {
		err := d.renewAt(ctx, server, c, key)
		if own := byOwnAddress(cluster, server, err); own != nil {
			err = d.renewAt(ctx, own, c, key)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err // without the long address
		}
		errs = append(errs, fmt.Errorf("%s: %w", server.Host, err))
	}
	return errors.Join(errs...)
}

// renewAt has the next certificate signed at one server, proves it there, and writes it.
func (d *Discovery) renewAt(ctx context.Context, server *rest.Config, c *credential, key *ecdsa.PrivateKey) error {
	certificate, err := sign(ctx, server, c.cert, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	data, err := c.with(certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return err
	}
	if err := prove(ctx, server, c.path, data); err != nil {
		return fmt.Errorf("the new certificate does not work, so the old one stays: %w", err)
	}
	if now, err := os.ReadFile(c.path); err != nil || string(now) != string(c.data) {
		return errors.Join(fmt.Errorf("%s has changed meanwhile", c.path), err)
	}
	if err := durable.Replace(c.path, data); err != nil {
		// The owner of before may be one to whom this user cannot give a file.
		if now, unread := os.ReadFile(c.path); unread != nil || string(now) != string(data) {
			return err
		}
	}
	d.renewals.Add(1)
	next, err := readCredential(c.path)
	if err != nil {
		return err
	}
	if next != nil {
		d.noteCertificate(next, nil)
		d.Log.Info("certificate renewed", "file", c.path, "until", next.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// sign asks for a certificate with the name, the groups and the life of another one.
func sign(ctx context.Context, server *rest.Config, old *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	through, hangUp, err := newHTTPClient(server)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	client, err := certificatesclient.NewForConfigAndClient(server, through)
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{CommonName: old.Subject.CommonName, Organization: old.Subject.Organization}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		return nil, err
	}
	seconds := int32(pki.RenewedLife(old.NotBefore, old.NotAfter) / time.Second)
	csr, err := client.CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "kthwd-lb-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	for {
		for _, c := range csr.Status.Conditions {
			if c.Type != certificatesv1.CertificateApproved && c.Status == corev1.ConditionTrue {
				return nil, fmt.Errorf("the request %s was refused: %s", csr.Name, text.Line(c.Message))
			}
		}
		if len(csr.Status.Certificate) > 0 {
			return csr.Status.Certificate, nil
		}
		supervise.Sleep(ctx, signPoll)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the request %s was not signed within %v", csr.Name, signTimeout)
		}
		if csr, err = client.CertificateSigningRequests().Get(ctx, csr.Name, metav1.GetOptions{}); err != nil {
			return nil, err
		}
	}
}

// prove lists with the content of a kubeconfig, at one server.
func prove(ctx context.Context, server *rest.Config, path string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	next, err := parseKubeconfig(path, data)
	if err != nil {
		return err
	}
	next.Host, next.ServerName = server.Host, server.ServerName
	api, hangUp, err := newClient(next)
	if err != nil {
		return err
	}
	defer hangUp()
	return slicesRequest(api, metav1.ListOptions{Limit: 1}).Do(ctx).Error()
}

// noteCertificate records how the certificate is, and logs a new reason why it is not renewed. c is
// nil for a kubeconfig whose certificate is not renewed.
func (d *Discovery) noteCertificate(c *credential, err error) {
	var said string
	d.updateStatus(func(s *lb.DiscoveryStatus) {
		was := s.Certificate
		if s.Certificate = nil; c == nil {
			return
		}
		now := lb.CertificateStatus{Ends: c.cert.NotAfter, Due: pki.RenewAt(c.cert), Renewed: d.renewals.Load()}
		if err != nil {
			now.Error, now.Advice, now.Since = joinLines(err), d.anew(c), time.Now()
			if was != nil && was.Error != "" {
				now.Since = was.Since
			}
			if was == nil || was.Error == "" {
				said = now.Error
			}
		}
		s.Certificate = &now
	})
	if err != nil {
		d.count(certificateErrors)
	}
	if said != "" {
		d.Log.Warn("certificate not renewed", "file", c.path, "ends", c.cert.NotAfter.UTC().Format(time.RFC3339), "err", said, "hint", d.anew(c))
	}
}

// anew is the command that makes the kubeconfig anew.
func (d *Discovery) anew(c *credential) string {
	server := ""
	if cluster, err := parseKubeconfig(c.path, c.data); err == nil {
		server = " --server=" + text.ShellWord(cluster.Host)
	}
	return fmt.Sprintf("on a controller: kthwd kubeconfig create %s --load-balancer%s --out=lb.kubeconfig --replace; then put the file in the place of %s here",
		text.ShellWord(c.cert.Subject.CommonName), server, text.ShellWord(c.path))
}
