package check

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

const (
	maxHead = 16 << 10 // bytes of status line and header
	maxBody = 16 << 10 // bytes of the body that are read
)

// errNoHTTP is returned for an answer that is not HTTP.
var errNoHTTP = errors.New("the answer is not HTTP")

// An answer is a backend's answer to GET.
type answer struct {
	code    int
	failing string // the first failing check of the backend itself, as "[-]etcd failed: reason withheld"
	leaving bool   // one of its failing checks says that it is about to stop
}

// readAnswer reads only as much of an answer as its result needs. An answer with a whole
// header counts, even if its body is broken. The rest of the body is left in the response.
func readAnswer(in *stream, buffered *bufio.Reader) (answer, *http.Response, error) {
	resp, err := http.ReadResponse(buffered, nil)
	switch {
	case err == nil && resp.StatusCode >= 100:
	case in.err != nil && (isEnd(err) || !isEnd(in.err)):
		return answer{}, nil, in.err
	default:
		return answer{}, nil, errNoHTTP
	}
	if in.head != nil {
		in.head.Store(true)
	}
	a := answer{code: resp.StatusCode}
	if a.code != http.StatusOK {
		a.failing, a.leaving = failingCheck(io.LimitReader(resp.Body, maxBody))
	}
	return a, resp, nil
}

// A stream limits the bytes read and keeps the error of the connection, which
// distinguishes a missing answer from a malformed one.
type stream struct {
	r    io.Reader
	left int
	err  error
	head *atomic.Bool // set when a header is complete; may be nil
}

func (s *stream) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(b[:min(len(b), s.left)])
	s.left -= n
	s.err = err
	return n, err
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// failingCheck returns the first line "[-]name failed: …" of a failing /readyz of an API
// server (apiserver/pkg/server/healthz). It returns "" for other bodies, which may
// contain anything and are not repeated.
func failingCheck(body io.Reader) (first string, leaving bool) {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxBody)
	for lines.Scan() {
		check, failing := strings.CutPrefix(lines.Text(), "[-]")
		if !failing {
			continue
		}
		if first == "" {
			first = printable(lines.Text())
		}
		name, _, _ := strings.Cut(check, " ")
		leaving = leaving || slices.Contains(farewells, name)
	}
	return first, leaving
}

// farewells are the checks of /readyz that fail because the API server is about to stop:
// kthwd's (appliance/apiserver/leaving.go), and upstream's own
// (apiserver/pkg/server/healthz/healthz.go:shutdown).
var farewells = []string{"kthwd-leaving", "shutdown"}

// result returns the kind of the answer and, unless it is ok, the reason. shown tells
// whether the check sent a client certificate.
func (a answer) result(path string, shown bool) (Kind, string) {
	if a.code == http.StatusOK {
		return KindOK, ""
	}
	status := printable(fmt.Sprintf("GET %s: %d %s", path, a.code, http.StatusText(a.code)))
	switch a.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		if shown {
			return KindBadStatus, status + ": the client certificate of the checks does not allow it"
		}
		return KindBadStatus, status + ": anonymous access to " + printable(path) + " is off; the checks need a client certificate"
	case http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if a.failing != "" {
			return KindNotReady, a.failing
		}
		return KindNotReady, status
	}
	return KindBadStatus, status
}
