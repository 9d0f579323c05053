package member

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"kthwd/appliance/text"
)

// Client sends requests to the join endpoints that a token names. It trusts only a
// server whose certificate is issued by the CA that the token pins.
type Client struct {
	Token    Token
	Joiner   string
	Versions Versions
	Local    string           // IP address to speak from; empty lets the kernel choose
	Waiting  func(why string) // called once per reason when the answer is to retry; may be nil
}

// Files requests the files and settings that the joiner needs before Admit. The two
// parameters tell that it needs a kubernetes.pem and, where etcd has its own CA, an
// etcd.pem.
func (c Client) Files(ctx context.Context, needsCertificate, needsEtcd bool) (f Files, err error) {
	return f, c.ask(ctx, FilesPath, Request{NeedsCertificate: needsCertificate, NeedsEtcdCertificate: needsEtcd}, &f)
}

// Admit requests to be added to the cluster. The caller must listen on peerPort.
func (c Client) Admit(ctx context.Context, peerPort int) (a Admitted, err error) {
	return a, c.ask(ctx, AdmitPath, Request{PeerPort: peerPort}, &a)
}

// ask tries one endpoint after the other until one accepts or refuses. It retries an
// endpoint that answers that the request may succeed in a moment.
func (c Client) ask(ctx context.Context, path string, in Request, out any) error {
	in.ID, in.Secret, in.Joiner, in.Versions, in.KnowsEtcdCA = c.Token.ID, c.Token.Secret, c.Joiner, c.Versions, true
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var failed []error
	for _, address := range c.Token.Addresses {
		err := c.askOne(ctx, address, path, body, out)
		var refusal *Refusal
		for said := ""; errors.As(err, &refusal) && refusal.Retry && pause(ctx); {
			if c.Waiting != nil && refusal.Text != said {
				c.Waiting(text.Line(refusal.Text))
			}
			said, refusal = refusal.Text, nil
			err = c.askOne(ctx, address, path, body, out)
		}
		if err == nil || errors.As(err, &refusal) && !refusal.Retry && !refusal.next {
			return err
		}
		failed = append(failed, err)
	}
	if len(failed) == 1 && errors.As(failed[0], new(*Refusal)) {
		return failed[0]
	}
	return &Refusal{Text: "no controller answers: " + errors.Join(failed...).Error(),
		Advice: "the port must be reachable, and is open only while the token is valid; kthwd member list on a controller shows that"}
}

func pause(ctx context.Context) bool {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// answerTimeout is longer than a controller takes to change the membership.
const answerTimeout = 30 * time.Second

// maxAnswer bounds the size of an answer, which holds a dozen files of a few KiB.
const maxAnswer = 16 << 20

// askOne sends the request to one endpoint. If the kernel has chosen an address that the
// token is not for, it tries once more from the right one, if that is on this machine.
func (c Client) askOne(ctx context.Context, address, path string, body []byte, out any) error {
	err := c.send(ctx, address, path, body, out)
	var refusal *Refusal
	if c.Local != "" || !errors.As(err, &refusal) || refusal.Source == "" {
		return err
	}
	c.Local = refusal.Source
	if again := c.send(ctx, address, path, body, out); !errors.Is(again, syscall.EADDRNOTAVAIL) {
		return again
	}
	return err
}

func (c Client) send(ctx context.Context, address, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	host, _, _ := net.SplitHostPort(address)
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if ip := net.ParseIP(c.Local); ip != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: ip}
	}
	t := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   c.pinned(host),
		DialContext:       dialer.DialContext,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if text, do, ok := Outdated(err, "the certificate of the controller at "+address, time.Now()); ok {
		return &Refusal{Text: text, Advice: do, next: true}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK {
		var f Failed
		if json.Unmarshal(answer, &f) != nil || f.Error == "" {
			return fmt.Errorf("%s: answered %s", address, resp.Status)
		}
		return &Refusal{Text: f.Error, Advice: f.Hint, Retry: f.Retry, Source: f.Source}
	}
	return json.Unmarshal(answer, out)
}

// errOtherCA means that the server's certificate is not issued by the token's CA.
var errOtherCA = errors.New("its certificate is not of the CA in the token")

// pinned verifies the server against the CA that the token names by its hash. The
// server sends the CA's certificate, because the joiner does not have it yet.
func (c Client) pinned(host string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection verifies against the pin instead
		VerifyConnection: func(s tls.ConnectionState) error {
			roots, found := x509.NewCertPool(), false
			rest := x509.NewCertPool()
			for _, cert := range s.PeerCertificates[1:] {
				if sha256.Sum256(cert.Raw) == c.Token.CA {
					roots.AddCert(cert)
					found = true
				} else {
					rest.AddCert(cert)
				}
			}
			if !found {
				return errOtherCA
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: rest})
			return err
		},
	}
}
