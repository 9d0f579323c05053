package status

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNotRunning means that no kthwd answers.
var ErrNotRunning = errors.New("kthwd is not running")

// Client asks a running kthwd. Its zero value reaches none.
type Client struct {
	Socket string // its unix socket; only the user it runs as can open it; "" for none
	Addr   string // its metrics address, which gives the status to those who cannot; may be empty; https://ADDRESS where it speaks TLS
	TLS    TLSFiles

	// Anywhere has Addr asked also when none runs on Socket. Another kthwd may
	// answer there.
	Anywhere bool
}

// TLSFiles are what it takes to ask a metrics address that speaks TLS.
type TLSFiles struct {
	CA        string // that has signed the server's certificate; "" means those of the system
	Cert, Key string // the client's certificate; "" for none
}

// config reads the files.
func (f TLSFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", f.CA)
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

// Status asks for the report, on the socket first and then at Addr.
func (c Client) Status(ctx context.Context) (Report, error) {
	body, err := c.socket(ctx, http.MethodGet, "/status", "")
	c.Anywhere = c.Anywhere || c.Socket == ""
	if c.Addr != "" && (errors.Is(err, fs.ErrPermission) || c.Anywhere && errors.Is(err, ErrNotRunning)) {
		second, errSecond := c.remote(ctx)
		if errSecond == nil || !errors.Is(errSecond, ErrNotRunning) || c.Socket == "" {
			body, err = second, errSecond
		}
	}
	if err != nil {
		return Report{}, err
	}
	var r Report
	if err := json.Unmarshal(body, &r); err != nil || r.PID == 0 {
		return Report{}, fmt.Errorf("what answered is no kthwd (at %s or %s)", c.Socket, c.Addr)
	}
	return r, nil
}

// remote asks at Addr.
func (c Client) remote(ctx context.Context) ([]byte, error) {
	host, secure := strings.CutPrefix(c.Addr, "https://")
	t := &http.Transport{DisableKeepAlives: true}
	if !secure {
		return ask(ctx, t, http.MethodGet, "http://"+reachable(strings.TrimPrefix(host, "http://"))+"/status", "")
	}
	var err error
	if t.TLSClientConfig, err = c.TLS.config(); err != nil {
		return nil, err
	}
	return ask(ctx, t, http.MethodGet, "https://"+reachable(strings.TrimSuffix(host, "/"))+"/status", "")
}

// Levels asks for the log level of each component.
func (c Client) Levels(ctx context.Context) (map[string]string, error) {
	body, err := c.socket(ctx, http.MethodGet, "/log-level", "")
	return parseLevels(body), err
}

// SetLevels changes log levels, each "LEVEL" or "COMPONENT=LEVEL", and returns
// those that hold afterwards. When one is refused, none is changed.
func (c Client) SetLevels(ctx context.Context, levels ...string) (map[string]string, error) {
	body, err := c.socket(ctx, http.MethodPut, "/log-level", strings.Join(levels, "\n")+"\n")
	return parseLevels(body), err
}

// Do asks the running kthwd something on its socket: one of ServerConfig.Private.
// in and out are JSON; either may be nil. An error that Refuse has answered with
// keeps its hint.
func (c Client) Do(ctx context.Context, method, path string, in, out any) error {
	body := ""
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = string(text)
	}
	answer, err := c.socket(ctx, method, path, body)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("the answer of kthwd at %s: %w", c.Socket, err)
	}
	return nil
}

// refused is an error that the running kthwd answered with.
type refused struct{ text, hint string }

func (r *refused) Error() string { return r.text }

// Hint is the advice that came with it.
func (r *refused) Hint() string { return r.hint }

func parseLevels(body []byte) map[string]string {
	levels := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if component, level, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			levels[component] = level
		}
	}
	return levels
}

func (c Client) socket(ctx context.Context, method, path, body string) ([]byte, error) {
	if c.Socket == "" {
		return nil, fmt.Errorf("%w: it has no socket", ErrNotRunning)
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, c.Socket) }}
	defer t.CloseIdleConnections()
	return ask(ctx, t, method, "http://kthwd"+path, body)
}

// dialUnix connects to a socket whose path may be longer than a socket address
// holds: the way through the opened directory is short.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
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

const maxBody = 4 << 20

func ask(ctx context.Context, t http.RoundTripper, method, url, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("kthwd does not answer: %w", err)
	case err != nil:
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &refused{oneLine(strings.TrimSpace(string(answer[:min(len(answer), 500)]))), oneLine(resp.Header.Get(hintHeader))}
	}
	return answer, nil
}
