package check

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"
)

func TestReadAnswer(t *testing.T) {
	broken := errors.New("connection reset by peer")
	for _, tt := range []struct {
		name string
		in   string
		then error // of the connection, after it
		want answer
		err  error
	}{
		{"ok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", nil, answer{code: 200}, nil},
		{"no reason phrase", "HTTP/1.1 200\r\n\r\n", nil, answer{code: 200}, nil},
		{"bare newlines", "HTTP/1.0 200 OK\n\nok", nil, answer{code: 200}, nil},
		{"failing", "HTTP/1.1 500 E\r\n\r\n[+]a ok\n[-]b failed: x\r\n[-]c failed: y\n", nil, answer{code: 500, failing: "[-]b failed: x"}, nil},
		{"leaving", "HTTP/1.1 500 E\r\n\r\n[-]b failed: x\n[+]c ok\n[-]kthwd-leaving failed: y\n", nil, answer{500, "[-]b failed: x", true}, nil},
		{"leaving as upstream says it", "HTTP/1.1 500 E\r\n\r\n[-]shutdown failed: x\n", nil, answer{500, "[-]shutdown failed: x", true}, nil},
		{"not leaving", "HTTP/1.1 500 E\r\n\r\n[+]kthwd-leaving ok\n[-]shutdowns failed: x\n", nil, answer{code: 500, failing: "[-]shutdowns failed: x"}, nil},
		{"failing in chunks", "HTTP/1.1 500 E\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[-]b\r\n8\r\n failed\n\r\n0\r\n\r\n", nil, answer{code: 500, failing: "[-]b failed"}, nil},
		{"failing line cut", "HTTP/1.1 500 E\r\n\r\n[-]b fai", broken, answer{code: 500, failing: "[-]b fai"}, nil},
		{"control characters", "HTTP/1.1 500 E\r\n\r\n[-]\x1b[2Jb\x00c\n", nil, answer{code: 500, failing: "[-] [2Jb c"}, nil},
		{"chunks are wrong", "HTTP/1.1 503 E\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", nil, answer{code: 503}, nil},
		{"nothing", "", nil, answer{}, io.EOF},
		{"part of the status", "HTTP/1.1 20", broken, answer{}, broken},
		{"part of the status is all", "HTTP/1.1 20", nil, answer{}, errNoHTTP},
		{"part of the header", "HTTP/1.1 200 OK\r\nA: b\r\n", nil, answer{}, io.EOF},
		{"reset", "HTTP/1.1 200 OK\r\n", broken, answer{}, broken},
		{"no HTTP", "220 mail\r\n\r\n", nil, answer{}, errNoHTTP},
		{"code 99", "HTTP/1.1 099 x\r\n\r\n", nil, answer{}, errNoHTTP},
		{"bad header", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n", nil, answer{}, errNoHTTP},
		{"long header", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", maxHead+maxBody) + "\r\n\r\n", nil, answer{}, errNoHTTP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			then := tt.then
			if then == nil {
				then = io.EOF
			}
			for name, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with error": iotest.DataErrReader,
			} {
				in := &stream{r: wrap(io.MultiReader(strings.NewReader(tt.in), iotest.ErrReader(then))), left: maxHead + maxBody}
				got, _, err := readAnswer(in, bufio.NewReader(in))
				if got != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("%s: got %+v, %v; want %+v, %v", name, got, err, tt.want, tt.err)
				}
			}
		})
	}
}

// endlessLine is an endless stream without a line break.
type endlessLine struct{ read int }

func (e *endlessLine) Read(b []byte) (int, error) {
	e.read += len(b)
	return len(b), nil
}

func TestReadAnswerIsBounded(t *testing.T) {
	for _, head := range []string{"", "HTTP/1.1 200 OK\r\nA: ", "HTTP/1.1 500 E\r\n\r\n", "HTTP/1.1 500 E\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"} {
		e := &endlessLine{}
		in := &stream{r: io.MultiReader(strings.NewReader(head), e), left: maxHead + maxBody}
		readAnswer(in, bufio.NewReader(in))
		if e.read > maxHead+maxBody {
			t.Errorf("%q: got %d bytes read", head, e.read)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n[+]ping ok\n[-]etcd failed: reason withheld\n"))
	f.Add([]byte("HTTP/1.1 500 E\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[-]b\r\n8\r\n failed\n\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 401 \x1b\r\nTransfer-Encoding: gzip\r\n\r\n"))
	f.Add([]byte("HTTP/2.0 999 \xff\n\n[-]\u202e"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &stream{r: strings.NewReader(string(in)), left: maxHead + maxBody}
		a, resp, err := readAnswer(s, bufio.NewReader(s))
		if err != nil {
			if a != (answer{}) || !errors.Is(err, errNoHTTP) && !errors.Is(err, io.EOF) {
				t.Errorf("got %+v, %v", a, err)
			}
			return
		}
		drained(resp)
		kind, reason := a.result("/readyz", false)
		if (kind == KindOK) != (a.code == 200) || (kind == KindOK) != (reason == "") || kind.verdict() == failed {
			t.Errorf("got %s %q for %d", kind, reason, a.code)
		}
		if utf8.RuneCountInString(reason) > maxLine || strings.ContainsFunc(reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("got reason %q", reason)
		}
	})
}
