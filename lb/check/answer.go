package check

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

const (
	maxHead = 16 << 10 // bytes of status line and header
	maxBody = 16 << 10 // bytes of the body that are looked at
)

// errNoHTTP is about an answer that has come, but is none.
var errNoHTTP = errors.New("the answer is no HTTP")

// An answer is what a backend said to GET.
type answer struct {
	code    int
	failing string // the first check of its own that fails, as "[-]etcd failed: reason withheld"
}

// readAnswer reads as much of an answer as is needed to judge it. Whatever happens in
// the body, an answer whose header was whole is an answer.
func readAnswer(r io.Reader) (answer, error) {
	in := &stream{r: r, left: maxHead + maxBody}
	resp, err := http.ReadResponse(bufio.NewReader(in), nil)
	switch {
	case err == nil && resp.StatusCode >= 100:
	case in.err != nil && (isEnd(err) || !isEnd(in.err)):
		return answer{}, in.err
	default:
		return answer{}, errNoHTTP
	}
	a := answer{code: resp.StatusCode}
	if a.code != http.StatusOK {
		a.failing = failingCheck(io.LimitReader(resp.Body, maxBody))
	}
	return a, nil // the body is not closed, that would read all of it
}

// A stream bounds what is read and keeps the error of the connection, which tells an
// answer that did not come from one that is wrong.
type stream struct {
	r    io.Reader
	left int
	err  error
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

// failingCheck finds the first line "[-]name failed: …" in the body that a failing
// /readyz of an API server has, see apiserver/pkg/server/healthz. "" for other bodies:
// they may hold anything, and are not repeated.
func failingCheck(body io.Reader) string {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxBody)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "[-]") {
			return oneLine(lines.Text())
		}
	}
	return ""
}

// judge says what the answer means, and why it is not good. shown tells whether a
// client certificate was shown.
func (a answer) judge(path string, shown bool) (Kind, string) {
	status := oneLine(fmt.Sprintf("GET %s: %d %s", path, a.code, http.StatusText(a.code)))
	switch a.code {
	case http.StatusOK:
		return KindOK, ""
	case http.StatusUnauthorized, http.StatusForbidden:
		if shown {
			return KindBadStatus, status + ": the client certificate of the checks does not allow it"
		}
		return KindBadStatus, status + ": anonymous access to " + oneLine(path) + " is off, the checks need a client certificate"
	case http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if a.failing != "" {
			return KindNotReady, a.failing
		}
		return KindNotReady, status
	}
	return KindBadStatus, status
}
