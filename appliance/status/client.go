package status

import (
	"context"
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

	"kthwd/appliance/advice"
	"kthwd/appliance/text"
)

// ErrNotRunning means that no kthwd process answers.
var ErrNotRunning = errors.New("kthwd is not running")

// ErrNoAnswer means that a process listens but does not answer.
var ErrNoAnswer = errors.New("kthwd does not answer")

// Client queries a running kthwd. The zero value reaches none.
type Client struct {
	Socket string // kthwd's unix socket, which only kthwd's user can open; "" means none
	Addr   string // kthwd's metrics address, which gives other users the status; https://ADDRESS where it serves TLS; "" means none
	TLS    TLSFiles
	Login  Login

	// Anywhere makes Status query Addr also when no kthwd runs on Socket. Another
	// kthwd may answer there.
	Anywhere bool

	// Owners are the users whose processes are believed on Addr, an address of this
	// machine. Any other server there is a Stranger. Nil believes every server, as on an
	// address of another machine.
	Owners []int
}

// Status requests the report, from the socket first and then from Addr.
func (c Client) Status(ctx context.Context) (Report, error) {
	body, err := c.get(ctx, "/status")
	if err != nil {
		return Report{}, err
	}
	var r Report
	if err := json.Unmarshal(body, &r); err != nil || r.PID == 0 {
		return Report{}, fmt.Errorf("the server that answered is not kthwd (at %s or %s)", c.Socket, c.Addr)
	}
	return r, nil
}

// Cluster requests the state of all controllers, as Status does.
func (c Client) Cluster(ctx context.Context) (Cluster, error) {
	body, err := c.get(ctx, "/status/cluster")
	if err != nil {
		return Cluster{}, err
	}
	var all Cluster
	if err := json.Unmarshal(body, &all); err != nil || len(all.Controllers) == 0 {
		return Cluster{}, fmt.Errorf("the server that answered is not a controller (at %s or %s)", c.Socket, c.Addr)
	}
	return all, nil
}

// get requests a path, from the socket first and then from Addr.
func (c Client) get(ctx context.Context, path string) ([]byte, error) {
	body, err := c.socket(ctx, http.MethodGet, path, "")
	c.Anywhere = c.Anywhere || c.Socket == ""
	if c.Addr != "" && (errors.Is(err, fs.ErrPermission) || c.Anywhere && errors.Is(err, ErrNotRunning)) {
		second, errSecond := c.remote(ctx, path)
		var stranger *Stranger
		if errors.As(errSecond, &stranger) {
			stranger.Socket = err
			return nil, stranger
		}
		if errSecond == nil || !errors.Is(errSecond, ErrNotRunning) || c.Socket == "" {
			body, err = second, errSecond
		}
	}
	return body, err
}

// Levels requests the log level of each component.
func (c Client) Levels(ctx context.Context) (map[string]string, error) {
	body, err := c.socket(ctx, http.MethodGet, "/log-level", "")
	return parseLevels(body), err
}

// SetLevels changes log levels, each "LEVEL" or "COMPONENT=LEVEL", and returns the
// resulting ones. When one is refused, none is changed.
func (c Client) SetLevels(ctx context.Context, levels ...string) (map[string]string, error) {
	body, err := c.socket(ctx, http.MethodPut, "/log-level", strings.Join(levels, "\n")+"\n")
	return parseLevels(body), err
}

// Do sends a request for one of ServerConfig.Private to the socket of the running
// kthwd. in and out are JSON; either may be nil. An error answered with Refuse keeps
// its hint.
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

// Get requests one of the paths of the unix socket of the running kthwd.
func (c Client) Get(ctx context.Context, path string) ([]byte, error) {
	return c.socket(ctx, http.MethodGet, path, "")
}

// refused is an error with which the running kthwd answered.
type refused struct {
	code       int
	text, hint string
}

func (r *refused) Error() string { return r.text }

// Hint returns the hint that came with it.
func (r *refused) Hint() string { return r.hint }

// TooEarly is the code with which Refuse says that the same request will be accepted later.
const TooEarly = http.StatusTooEarly

// IsTooEarly reports whether the running kthwd has refused a request with TooEarly.
func IsTooEarly(err error) bool {
	r, ok := errors.AsType[*refused](err)
	return ok && r.code == TooEarly
}

func parseLevels(body []byte) map[string]string {
	levels := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if component, level, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			levels[component] = level
		}
	}
	return levels
}

// Open requests one of the paths of the unix socket of the running kthwd, for an answer that is
// too large for memory. The caller closes it. An answer that breaks off ends with
// io.ErrUnexpectedEOF.
func (c Client) Open(ctx context.Context, path string) (io.ReadCloser, http.Header, error) {
	if c.Socket == "" {
		return nil, nil, fmt.Errorf("%w: it has no socket", ErrNotRunning)
	}
	resp, err := request(ctx, c.transport(), http.MethodGet, "http://kthwd"+path, "", Login{})
	if err != nil {
		return nil, nil, named(err, c.Socket)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, nil, c.explained(refusedBy(resp))
	}
	return resp.Body, resp.Header, nil
}

// transport connects to the socket, once for each request.
func (c Client) transport() *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, c.Socket) }}
}

func (c Client) socket(ctx context.Context, method, path, body string) ([]byte, error) {
	if c.Socket == "" {
		return nil, fmt.Errorf("%w: it has no socket", ErrNotRunning)
	}
	t := c.transport()
	defer t.CloseIdleConnections()
	answer, err := ask(ctx, t, method, "http://kthwd"+path, body, Login{})
	if err == nil || errors.Is(err, ErrNotRunning) || errors.Is(err, context.DeadlineExceeded) {
		return answer, err
	}
	return answer, c.explained(named(err, c.Socket))
}

// explained puts an error that a person understands in place of the list of paths, with which a kthwd
// answers a request for a path that it does not have.
func (c Client) explained(err error) error {
	if r, ok := errors.AsType[*refused](err); ok && r.code == http.StatusNotFound && strings.HasPrefix(r.text, unknownPath) {
		return advice.With(fmt.Errorf("the kthwd that runs does not have this (at %s)", c.Socket),
			"it is another version, which its own binary can ask: kthwd version; kthwd try does not have all of it either")
	}
	return err
}

// dialUnix connects to a socket whose path may be longer than a socket address
// allows. It uses a short path through the opened directory.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, named(err, path)
	}
	return conn, nil
}

// named replaces the short path of a socket in an error by its name.
func named(err error, path string) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	cause := op.Err
	var call *os.SyscallError
	if errors.As(cause, &call) {
		cause = call.Err
	}
	return &fs.PathError{Op: op.Op, Path: path, Err: cause}
}

const maxBody = 32 << 20 // the metrics of a large cluster

func ask(ctx context.Context, t http.RoundTripper, method, url, body string, login Login) ([]byte, error) {
	resp, err := request(ctx, t, method, url, body, login)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, refusedBy(resp)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxBody))
}

// refusedBy is the error in an answer that is not 200.
func refusedBy(resp *http.Response) error {
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 500))
	if err != nil {
		return err
	}
	return &refused{resp.StatusCode, text.Line(strings.TrimSpace(string(answer))), text.Line(resp.Header.Get(hintHeader))}
}

// request returns an answer, whose body the caller closes.
func request(ctx context.Context, t http.RoundTripper, method, url, body string, login Login) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if login.User != "" {
		req.SetBasicAuth(login.User, login.Password)
	}
	resp, err := t.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: %w", ErrNoAnswer, context.DeadlineExceeded)
	}
	return resp, err
}
