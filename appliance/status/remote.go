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

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// TLSFiles are the files for a metrics address that serves TLS.
type TLSFiles struct {
	CA        string // the CA that signed the server's certificate; "" means the CAs of the system
	Cert, Key string // the client's certificate and key; "" means none
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
		return nil, errors.New("a client certificate and its key go together")
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

// Login is a user of a web configuration. The zero value is no user.
type Login struct{ User, Password string }

// String hides the password, wherever a Login is printed.
func (l Login) String() string { return l.User }

// GoString hides the password, too.
func (l Login) GoString() string { return l.User }

// ReadPassword reads a password from the first line of a file. It refuses a file that
// every user can read.
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

// remote requests a path from Addr.
func (c Client) remote(ctx context.Context, path string) ([]byte, error) {
	u, err := c.url()
	if err != nil {
		return nil, err
	}
	u.Path = path
	t := &http.Transport{DisableKeepAlives: true}
	if c.Owners != nil {
		t = believing(c.Owners)
	}
	if u.Scheme == "https" {
		if t.TLSClientConfig, err = c.TLS.config(); err != nil {
			return nil, err
		}
	}
	body, err := ask(ctx, t, http.MethodGet, u.String(), "", c.Login)
	return body, c.explain(err, u)
}

// url returns the URL of the report at Addr. Its errors repeat nothing of an address
// that may contain a password.
func (c Client) url() (*url.URL, error) {
	scheme, address, found := strings.Cut(strings.TrimSuffix(c.Addr, "/"), "://")
	if !found {
		scheme, address = "http", scheme
	}
	switch {
	case strings.Contains(address, "@"):
		return nil, advice.With(errors.New("the address contains a user or a password"), "use --user and --password-file: other users of this machine can read command lines")
	case scheme != "http" && scheme != "https":
		return nil, fmt.Errorf("%q is not an address of kthwd: want ADDRESS:PORT or https://ADDRESS:PORT", c.Addr)
	}
	u := &url.URL{Scheme: scheme, Host: reachable(address), Path: "/status"}
	if c.Login.User != "" && scheme == "http" && !found && !loopback(u.Hostname()) {
		return nil, advice.With(fmt.Errorf("the password would go to %s unencrypted", u.Host), "use https://"+u.Host+" if it serves TLS; http://"+u.Host+" sends the password anyway")
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// reachable turns an address to listen on into one to connect to.
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

// explain adds a hint to the error of a request for u.
func (c Client) explain(err error, u *url.URL) error {
	var no *refused
	switch {
	case err == nil || c.Socket != "":
		return err
	case errors.As(err, &no) && no.code == http.StatusUnauthorized:
		if c.Login.User != "" {
			return advice.With(fmt.Errorf("%s does not accept that user and password", u.Host), "basic_auth_users of its --metrics-web-config lists the users that it accepts")
		}
		return advice.With(fmt.Errorf("%s requires a user and a password", u.Host), "give --user, and --password-file or the password in KTHWD_PASSWORD")
	case errors.As(err, &no) && no.code == http.StatusBadRequest && u.Scheme == "http":
		return advice.With(err, "it serves TLS: use https://"+u.Host)
	case errors.Is(err, ErrNotRunning):
		return advice.With(err, "check systemctl status there, and that this is its --metrics-address")
	}
	return explainTLS(err, u)
}

// explainTLS adds a hint to an error of TLS.
func explainTLS(err error, u *url.URL) error {
	var op *net.OpError
	var record tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &record):
		return advice.With(fmt.Errorf("%s does not serve TLS", u.Host), "omit https://")
	case errors.As(err, &op) && op.Op == "remote error": // drops the context that net/http adds
		return advice.With(op, "it requires a client certificate signed by its client_ca_file: give --client-certificate and --client-key")
	case errors.As(err, &authority):
		return advice.With(err, "give the CA that signed its certificate with --certificate-authority")
	case errors.As(err, &name):
		return advice.With(err, "use a name or an address that is in its certificate")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return advice.With(err, "reissue its certificate; if it has not expired, one of the two clocks is wrong")
	}
	return err
}
