package status

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"kthwd/appliance/pki"
)

// TLSFiles are what it takes to ask a metrics address that speaks TLS.
type TLSFiles struct {
	CA        string // that has signed the server's certificate; "" means those of the system
	Cert, Key string // the client's certificate; "" for none
}

// config reads the files.
func (f TLSFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		var err error
		if c.RootCAs, err = pki.Pool(f.CA); err != nil {
			return nil, err
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a client certificate goes with its key")
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", f.Cert, f.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Login is a user of a web configuration. The zero value is nobody.
type Login struct{ User, Password string }

// String hides the password, wherever a Login is printed.
func (l Login) String() string { return l.User }

// GoString is String.
func (l Login) GoString() string { return l.User }

// ReadPassword reads a password from the first line of a file that not everybody can
// read.
func ReadPassword(path string) (string, error) {
	if err := private(path); err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("%s: no password on its first line", path)
	}
	return line, nil
}

// advised is an error with what to do about it.
type advised struct {
	error
	hint string
}

// Hint is the advice.
func (a *advised) Hint() string { return a.hint }

// Unwrap is the error.
func (a *advised) Unwrap() error { return a.error }

// remote asks at Addr.
func (c Client) remote(ctx context.Context) ([]byte, error) {
	u, err := c.url()
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	if u.Scheme == "https" {
		if t.TLSClientConfig, err = c.TLS.config(); err != nil {
			return nil, err
		}
	}
	body, err := ask(ctx, t, http.MethodGet, u.String(), "", c.Login)
	return body, c.explain(err, u)
}

// url is where to ask. Nothing of an address that may have a password in it is
// repeated.
func (c Client) url() (*url.URL, error) {
	scheme, address, found := strings.Cut(strings.TrimSuffix(c.Addr, "/"), "://")
	if !found {
		scheme, address = "http", scheme
	}
	switch {
	case strings.Contains(address, "@"):
		return nil, &advised{errors.New("an address with a user or a password in it"), "give --user and --password-file: other users of this machine can read command lines"}
	case scheme != "http" && scheme != "https":
		return nil, fmt.Errorf("%q is no address of a kthwd: want ADDRESS:PORT or https://ADDRESS:PORT", c.Addr)
	}
	u := &url.URL{Scheme: scheme, Host: reachable(address), Path: "/status"}
	if c.Login.User != "" && scheme == "http" && !found && !loopback(u.Hostname()) {
		return nil, &advised{fmt.Errorf("a password would go to %s in clear", u.Host), "ask https://" + u.Host + " if it speaks TLS; http://" + u.Host + " sends the password all the same"}
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// reachable makes an address to listen on one to connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// explain says what is to be done about what came of asking u.
func (c Client) explain(err error, u *url.URL) error {
	var no *refused
	var op *net.OpError
	var record tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil || c.Socket != "":
		return err
	case errors.As(err, &no) && no.code == http.StatusUnauthorized:
		if c.Login.User != "" {
			return &advised{fmt.Errorf("%s does not take that user and password", u.Host), "basic_auth_users of its --metrics-web-config has those that it takes"}
		}
		return &advised{fmt.Errorf("%s wants a user and a password", u.Host), "give --user, and --password-file or the password in KTHWD_PASSWORD"}
	case errors.As(err, &no) && no.code == http.StatusBadRequest && u.Scheme == "http":
		return &advised{err, "it speaks TLS: ask https://" + u.Host}
	case errors.As(err, &record):
		return &advised{fmt.Errorf("%s does not speak TLS", u.Host), "leave https:// away"}
	case errors.As(err, &op) && op.Op == "remote error": // without what net/http says of where it met that
		return &advised{op, "it wants a client certificate of its client_ca_file: give --client-certificate and --client-key"}
	case errors.As(err, &authority):
		return &advised{err, "name the CA that has signed its certificate with --certificate-authority"}
	case errors.As(err, &name):
		return &advised{err, "ask it by a name or an address that is in its certificate"}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &advised{err, "issue its certificate anew; if it has not expired, one of the two clocks is wrong"}
	case errors.Is(err, ErrNotRunning):
		return &advised{err, "look at systemctl status there, and whether it is its --metrics-address that was asked"}
	}
	return err
}
