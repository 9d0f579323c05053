package lb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// v2 makes a header of version 2.
func v2(command, family byte, body ...[]byte) string {
	all := bytes.Join(body, nil)
	b := append([]byte(signatureV2), command, family)
	return string(append(binary.BigEndian.AppendUint16(b, uint16(len(all))), all...))
}

// places are the addresses of a header of version 2.
func places(source, destination string) []byte {
	s, d := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	b := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, s.Port()), d.Port())
}

func tlv(kind byte, value string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

// summed puts the right checksum into a header that ends with an empty one.
func summed(header string, wrong byte) string {
	b := []byte(header)
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-4:], sum)
	b[len(b)-1] ^= wrong
	return string(b)
}

const (
	four = "192.0.2.1:56324"
	six  = "[2001:db8::1]:56324"
	own  = "the connection's own"
)

var four4, six6 = places(four, "10.0.1.48:6443"), places(six, "[2001:db8::48]:6443")

// wholeHeaders are valid headers, and the client that each names.
var wholeHeaders = map[string]struct{ header, client string }{
	"v1 TCP4":                  {"PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n", four},
	"v1 TCP6":                  {"PROXY TCP6 2001:db8::1 2001:db8::48 56324 6443\r\n", six},
	"v1 UNKNOWN":               {"PROXY UNKNOWN\r\n", own},
	"v1 UNKNOWN with more":     {"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", own},
	"v1 mapped":                {"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:10.0.1.48 56324 6443\r\n", four},
	"v2 TCP4":                  {v2(0x21, 0x11, four4), four},
	"v2 TCP6":                  {v2(0x21, 0x21, six6), six},
	"v2 mapped":                {v2(0x21, 0x21, places("[::ffff:192.0.2.1]:56324", "[::ffff:10.0.1.48]:6443")), four},
	"v2 TLVs":                  {v2(0x21, 0x11, four4, tlv(0x04, ""), tlv(0x02, "api.example.com"), tlv(0xea, "\x01vpce-1"), tlv(0xe0, strings.Repeat("x", 8000))), four},
	"v2 checksum":              {summed(v2(0x21, 0x11, four4, tlv(0x03, "\x00\x00\x00\x00")), 0), four},
	"v2 LOCAL":                 {v2(0x20, 0x00), own},
	"v2 LOCAL with more":       {v2(0x20, 0x11, four4, []byte{1}), own},
	"v2 unspecified":           {v2(0x21, 0x00, tlv(0x04, "x")), own},
	"v2 unix":                  {v2(0x21, 0x31, make([]byte, 216)), own},
	"v2 UDP":                   {v2(0x21, 0x12, four4), own},
	"v2 as large as it may be": {v2(0x21, 0x11, four4, tlv(0x04, strings.Repeat("x", maxProxyHeader-16-12-3))), four},
}

// badHeaders are what a proxy must not send.
var badHeaders = map[string]string{
	"none":                   "\x16\x03\x01 a TLS client",
	"HTTP":                   "GET / HTTP/1.1\r\n\r\n",
	"v1 other family":        "PROXY TCP4 2001:db8::1 2001:db8::48 56324 6443\r\n",
	"v1 other family 2":      "PROXY TCP6 192.0.2.1 10.0.1.48 56324 6443\r\n",
	"v1 UDP":                 "PROXY UDP4 192.0.2.1 10.0.1.48 56324 6443\r\n",
	"v1 zone":                "PROXY TCP6 fe80::1%eth0 fe80::2 56324 6443\r\n",
	"v1 name":                "PROXY TCP4 localhost 10.0.1.48 56324 6443\r\n",
	"v1 port":                "PROXY TCP4 192.0.2.1 10.0.1.48 65536 6443\r\n",
	"v1 negative port":       "PROXY TCP4 192.0.2.1 10.0.1.48 -1 6443\r\n",
	"v1 port with zeros":     "PROXY TCP4 192.0.2.1 10.0.1.48 056324 6443\r\n",
	"v1 two blanks":          "PROXY  TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n",
	"v1 more words":          "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443 1\r\n",
	"v1 fewer words":         "PROXY TCP4 192.0.2.1 10.0.1.48 56324\r\n",
	"v1 without CR":          "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443\n",
	"v1 lower case":          "proxy TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n",
	"v1 too long":            "PROXY UNKNOWN " + strings.Repeat("x", 107) + "\r\n",
	"v1 no end":              "PROXY " + strings.Repeat("x", 1000),
	"v1 nothing":             "PROXY \r\n",
	"v2 version 1":           v2(0x11, 0x11, four4),
	"v2 command":             v2(0x22, 0x11, four4),
	"v2 family":              v2(0x21, 0x41, four4),
	"v2 protocol":            v2(0x21, 0x13, four4),
	"v2 short addresses":     v2(0x21, 0x11, four4[:11]),
	"v2 short addresses 6":   v2(0x21, 0x21, six6[:35]),
	"v2 short unix":          v2(0x21, 0x31, make([]byte, 215)),
	"v2 no addresses":        v2(0x21, 0x11),
	"v2 TLV cut off":         v2(0x21, 0x11, four4, []byte{4, 0}),
	"v2 TLV too long":        v2(0x21, 0x11, four4, []byte{4, 0, 9, 'x'}),
	"v2 oversize":            string(append(append([]byte(signatureV2), 0x21, 0x11), 0xff, 0xff)),
	"v2 wrong checksum":      summed(v2(0x21, 0x11, four4, tlv(0x03, "\x00\x00\x00\x00")), 1),
	"v2 long checksum":       v2(0x21, 0x11, four4, tlv(0x03, "12345")),
	"v2 signature with typo": strings.Replace(v2(0x21, 0x11, four4), "QUIT", "quit", 1),
}

// Every valid header is understood in every division into packets, and leaves what
// follows it.
func TestParseProxyHeader(t *testing.T) {
	for name, tt := range wholeHeaders {
		t.Run(name, func(t *testing.T) {
			for n := range len(tt.header) {
				if h, size, err := parseProxyHeader([]byte(tt.header[:n])); !errors.Is(err, errHeaderPart) {
					t.Fatalf("the first %d of %d bytes: got %v, %d and %v", n, len(tt.header), h, size, err)
				}
			}
			h, size, err := parseProxyHeader([]byte(tt.header + "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n"))
			must(t, err, equal("size", size, len(tt.header)))
			if tt.client == own {
				must(t, equal("source", h.source, netip.AddrPort{}))
				return
			}
			must(t, equal("source", h.source.String(), tt.client), equal("destination", h.destination.Port(), 6443))
		})
	}
	for name, header := range badHeaders {
		t.Run(name, func(t *testing.T) {
			if h, _, err := parseProxyHeader([]byte(header)); err == nil || errors.Is(err, errHeaderPart) || h != (proxyHeader{}) {
				t.Errorf("got %v and %v, want an error", h, err)
			}
		})
	}
}

// FuzzProxyHeader: a header that is accepted is not accepted in part, leaves what follows
// it, and names the client that another implementation reads in it.
func FuzzProxyHeader(f *testing.F) {
	for _, tt := range wholeHeaders {
		f.Add([]byte(tt.header + "rest"))
	}
	for _, header := range badHeaders {
		f.Add([]byte(header))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, size, err := parseProxyHeader(data)
		if err != nil {
			if h != (proxyHeader{}) || size > len(data) && !errors.Is(err, errHeaderPart) {
				t.Fatalf("%v and %d with %v", h, size, err)
			}
			return
		}
		if size <= 0 || size > len(data) || size > maxProxyHeader {
			t.Fatalf("size %d of %d", size, len(data))
		}
		if again, n, err := parseProxyHeader(data[:size]); err != nil || n != size || again != h {
			t.Fatalf("alone: %v, %d and %v, want %v and %d", again, n, err, h, size)
		}
		for n := range size {
			if _, _, err := parseProxyHeader(data[:n]); !errors.Is(err, errHeaderPart) {
				t.Fatalf("the first %d of %d bytes: %v", n, size, err)
			}
		}
		if !h.source.IsValid() {
			return
		}
		theirs, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(data[:size]), 1<<17))
		if err != nil {
			t.Fatalf("go-proxyproto: %v", err)
		}
		source, destination, _ := theirs.TCPAddrs()
		unmapped := func(a *net.TCPAddr) netip.AddrPort {
			return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
		}
		if unmapped(source) != h.source || unmapped(destination) != h.destination {
			t.Fatalf("got %v, go-proxyproto %v and %v", h, source, destination)
		}
	})
}

// behind starts a server that trusts 127.0.0.1 as a proxy, and a backend that returns what
// it got: the header that the server sends, and the rest.
func behind(t *testing.T, change func(*Config)) (r *rig, got chan string, log string) {
	t.Helper()
	got = make(chan string, 1)
	p := newPeerAt(t, "127.0.0.1:0", func(c net.Conn) {
		in := bufio.NewReader(c)
		h, _ := proxyproto.Read(in)
		rest, _ := io.ReadAll(in)
		if h == nil {
			got <- "no header: " + string(rest)
			return
		}
		got <- fmt.Sprintf("%v to %v: %s", h.SourceAddr, h.DestinationAddr, rest)
	})
	log = filepath.Join(t.TempDir(), "access.log")
	cfg := testConfig(p.addr)
	cfg.AcceptProxyFrom, cfg.ProxyProtocol, cfg.AccessLog = []string{"127.0.0.1"}, ProxyV2, log
	cfg.FirstByteTimeout = time.Hour
	if change != nil {
		change(&cfg)
	}
	return run(t, cfg, Options{}), got, log
}

// The backend and the access log get the client that the header names, at once and byte by
// byte, and a second header is the client's data.
func TestAcceptProxy(t *testing.T) {
	r, got, log := behind(t, nil)
	lines := 0
	for name, tt := range wholeHeaders {
		for _, step := range []int{1 << 20, 1} {
			if step == 1 && len(tt.header) > 300 {
				continue
			}
			c := r.dial()
			const more = "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\nand data"
			for text := []byte(tt.header + more); len(text) > 0; text = text[min(step, len(text)):] {
				if _, err := c.Write(text[:min(step, len(text))]); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			must(t, c.CloseWrite())
			client := tt.client
			want := "10.0.1.48:6443: " + more
			switch {
			case client == own:
				client, want = c.LocalAddr().String(), c.RemoteAddr().String()+": "+more
			case client == six:
				want = "[2001:db8::48]:6443: " + more
			}
			if text := receive(t, "what the backend sees", got); text != client+" to "+want {
				t.Fatalf("%s: the backend sees %q, want %q", name, text, client+" to "+want)
			}
			must(t, expectEOF(c))
			lines++
			eventually(t, "a line in the access log", func() error {
				all := accessLines(t, log)
				if len(all) < lines {
					return errors.New("not yet")
				}
				l := all[len(all)-1]
				return errors.Join(equal("client", l.Client, client), equal("proxy", l.Proxy, c.LocalAddr().String()), equal("received", l.Received, len(more)))
			})
		}
	}
	r.empty()
}

// What a trusted proxy sends in place of a header closes the connection, and no backend
// hears of it.
func TestAcceptProxyRefuses(t *testing.T) {
	r, _, _ := behind(t, nil)
	refused, begun := uint64(0), time.Now()
	for name, header := range badHeaders {
		t.Log(name)
		c := r.dial()
		if _, err := c.Write([]byte(header)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var b [1]byte
		if n, err := c.Read(b[:]); n > 0 || err == nil {
			t.Fatalf("%s: got an answer", name)
		}
		refused++
		eventually(t, "it is counted", func() error { return equal(name, r.listeners[0].rejected[rejectHeader].Load(), refused) })
	}
	cut := r.dial() // ends in the middle
	must(t, write(cut, "PROXY TCP4 192."), cut.CloseWrite(), expectEOF(cut))
	r.empty()
	said := strings.Count(r.log.String(), "no valid PROXY header") // once a minute
	must(t, equal("refused", r.listeners[0].rejected[rejectHeader].Load(), refused+1),
		equal("connections to the backend", r.backend(r.cfg.Load().Backends[0]).total.Load(), 0),
		equal("lines in the log", said >= 1 && said <= 1+int(time.Since(begun)/time.Minute), true))
}

// A header has no more time than a client's first byte, and a connection without any data
// is what it is without a proxy.
func TestAcceptProxySlow(t *testing.T) {
	r, _, _ := behind(t, nil)
	r.noDefer()
	for _, part := range []string{"", "PROXY TCP4 192.", signatureV2 + "\x21\x11\x00\x0c1234", "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n"} {
		c := r.dial()
		must(t, write(c, part))
		whole, kept := strings.HasSuffix(part, "6443\r\n"), len(part)
		if whole {
			kept = 0
		}
		eventually(t, "the part is read", func() error {
			return r.eachPair(func(_ *loop, p *pair) error {
				return errors.Join(equal("header is whole", !p.headless, whole), equal("kept", len(p.first), kept))
			})
		})
		must(t, r.eachPair(func(l *loop, p *pair) error {
			err := equal("deadline", p.dueAt, p.listener.silentUntil(p.born, int64(time.Hour)))
			l.requeue(&l.fresh, p, l.now) // as if it had come
			return err
		}), expectEOF(c))
	}
	r.empty()
	must(t, equal("timeouts", r.listeners[0].rejected[rejectFirstByte].Load(), 4))
	c := r.dial() // a check of the proxy's
	must(t, c.Close())
	eventually(t, "it is counted", func() error { return equal("silent", r.listeners[0].rejected[rejectSilent].Load(), 1) })
}

// From any other address the header is data. A reload changes the trusted addresses.
func TestAcceptProxyUntrusted(t *testing.T) {
	r, got, log := behind(t, func(c *Config) {
		c.AcceptProxyFrom, c.ProxyProtocol = []string{"192.0.2.0/24", "2001:db8::/32"}, ProxyOff
	})
	const lie = "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n"
	try := func(want string) string {
		t.Helper()
		c := r.dial()
		must(t, write(c, lie+"data"), c.CloseWrite())
		must(t, equal("backend", receive(t, "what the backend sees", got), want), expectEOF(c))
		return c.LocalAddr().String()
	}
	client := try("192.0.2.1:56324 to 10.0.1.48:6443: data") // the backend reads what the client sent
	eventually(t, "a line in the access log", func() error {
		for _, l := range accessLines(t, log) {
			return errors.Join(equal("client", l.Client, client), equal("proxy", l.Proxy, ""), equal("received", l.Received, len(lie)+4))
		}
		return errors.New("not yet")
	})
	cfg := *r.cfg.Load()
	cfg.AcceptProxyFrom = []string{"127.0.0.0/8"}
	must(t, r.Reload(cfg))
	try("no header: data")
	r.empty()
}

// With the option on one of two listeners, headers count there only, and only from trusted
// addresses. A reload moves the option to the other one without touching a socket, and without it
// all listeners look for headers again.
func TestAcceptProxyPerListener(t *testing.T) {
	plain, proxied := unused(t), unused(t)
	r, got, log := behind(t, func(c *Config) { c.Listen = []string{plain, proxied + " accept-proxy"} })
	const v1, part = "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443\r\n", "PROXY TCP4 192."
	headers := map[string]string{"v1": v1, "v2": wholeHeaders["v2 TCP4"].header, "v2 with TLVs": wholeHeaders["v2 TLVs"].header}
	rejected := func(at string) uint64 {
		i := slices.IndexFunc(r.listeners, func(l *listener) bool { return l.address == at })
		return r.listeners[i].rejected[rejectHeader].Load()
	}
	ask := func(at, from, text string) (client, rest string) {
		t.Helper()
		return askAt(t, got, log, at, from, text)
	}
	looksAt := func(at string) {
		t.Helper()
		for name, header := range headers {
			if client, rest := ask(at, "127.0.0.1", header+"data"); client != four || rest != "data" {
				t.Errorf("%s at %s: the backend sees %q from %s", name, at, rest, client)
			}
			if client, rest := ask(at, "127.0.0.2", header+"data"); client != "own" || rest != header+"data" {
				t.Errorf("%s at %s from an address that is not trusted: the backend sees %q from %s", name, at, rest, client)
			}
		}
		before := rejected(at)
		for i, text := range []string{part, "GET / HTTP/1.1\r\n\r\n", badHeaders["v2 wrong checksum"]} {
			c := dial(t, at)
			must(t, write(c, text))
			_ = c.CloseWrite() // it may be closed already
			must(t, expectGone(c))
			eventually(t, "it is counted", func() error { return equal("rejected", rejected(at), before+uint64(i)+1) })
		}
	}
	ignores := func(at string) {
		t.Helper()
		before := rejected(at)
		for _, text := range []string{"data", v1 + "data", wholeHeaders["v2 TCP4"].header, part, badHeaders["v2 wrong checksum"]} {
			if client, rest := ask(at, "127.0.0.1", text); client != "own" || rest != text {
				t.Errorf("%q at %s: the backend sees %q from %s", text, at, rest, client)
			}
		}
		must(t, equal("rejected", rejected(at), before))
	}
	sockets := func() string { return fmt.Sprint(inode(t, r.listeners[0].fd), inode(t, r.listeners[1].fd)) }
	before := sockets()
	ignores(plain)
	looksAt(proxied)
	must(t, r.Reload(r.relistened(plain+" accept-proxy", proxied)))
	ignores(proxied)
	looksAt(plain)
	must(t, r.Reload(r.relistened(plain, proxied)))
	looksAt(plain)
	looksAt(proxied)
	must(t, equal("the sockets", sockets(), before), equal("in status", r.Status().Listen[1].AcceptProxy, true))
	r.empty()
}

// askAt sends a text to a listener of behind's server, from an address, and returns the client
// that the backend and the access log have, and what the backend gets.
func askAt(t *testing.T, got chan string, log, at, from, text string) (client, rest string) {
	t.Helper()
	before := len(accessLines(t, log))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.DialContext(t.Context(), "tcp", at)
	must(t, err)
	c := conn.(*net.TCPConn)
	defer c.Close()
	must(t, write(c, text), c.CloseWrite())
	client, rest, _ = strings.Cut(receive(t, "what the backend sees", got), " to ")
	_, rest, _ = strings.Cut(rest, ": ")
	own := c.LocalAddr().String()
	eventually(t, "a line in the access log", func() error {
		proxy := own
		if client == own {
			proxy = ""
		}
		for _, l := range accessLines(t, log)[before:] { // those of refused headers are between
			if l.Client == client && l.Proxy == proxy {
				return nil
			}
		}
		return fmt.Errorf("none of %s by %q", client, proxy)
	})
	if client == own {
		client = "own"
	}
	return client, rest
}

// A client that waits at a listener which a reload removes is what it was before the reload.
func TestProxiedSince(t *testing.T) {
	with := func(from string, listen ...string) Config {
		return Config{Listen: listen, AcceptProxyFrom: strings.Fields(from)}
	}
	for _, tt := range []struct {
		name     string
		old, now Config
		want     string
	}{
		{"off", with("", ":1", ":2"), with("", ":1"), ""},
		{"all", with("", ":1"), with("::1", ":1", ":2"), ":1 :2"},
		{"one of two", with("::1", ":1"), with("::1", ":1", ":2 accept-proxy"), ":2"},
		{"removed, which had it", with("::1", ":1 accept-proxy", ":2"), with("::1", ":3 accept-proxy"), ":3 :1"},
		{"removed, when all had it", with("::1", ":1", ":2"), with("::1", ":1", ":3 accept-proxy"), ":3 :2"},
	} {
		if got := strings.Join(tt.now.proxiedSince(&tt.old), " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The limit per source counts clients, not the proxy.
func TestAcceptProxyPerSource(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.AcceptProxyFrom, cfg.MaxPerSource = []string{"127.0.0.1/32"}, 1
	r := run(t, cfg, Options{})
	var open []*net.TCPConn
	for i := range 3 {
		c := r.dial()
		must(t, write(c, fmt.Sprintf("PROXY TCP4 192.0.2.%d 10.0.1.48 56324 6443\r\n", i)))
		server, _ := introduce(t, c, p)
		say(t, c, server, "hello")
		open = append(open, c, server)
	}
	second := r.dial()
	must(t, write(second, "PROXY TCP4 192.0.2.1 10.0.1.48 1 6443\r\nhello"))
	var b [1]byte
	if n, err := second.Read(b[:]); n > 0 || err == nil {
		t.Error("a second connection of a client was served")
	}
	must(t, equal("rejected", r.listeners[0].rejected[rejectPerSource].Load(), 1))
	for _, c := range open {
		c.Close()
	}
	r.empty()
}

// A new process goes on in the middle of a header, and knows the clients of the others.
func TestAcceptProxyUpgrade(t *testing.T) {
	r, got, _ := behind(t, func(c *Config) { c.MaxPerSource = 100 })
	half, whole := r.dial(), r.dial()
	must(t, write(half, "PROXY TCP4 192.0.2.1 10."), write(whole, wholeHeaders["v2 TCP4"].header))
	eventually(t, "both headers arrive", func() error {
		return equal("accepted", r.listeners[0].accepted.Load(), 2)
	})
	next := r.successor(nil)
	next.awaitReady()
	r.handedOver()
	must(t, write(half, "0.1.48 56324 6443\r\n"), write(half, "first"), half.CloseWrite())
	must(t, equal("backend", receive(t, "what the backend sees", got), four+" to 10.0.1.48:6443: first"))
	must(t, write(whole, "second"), whole.CloseWrite())
	must(t, equal("backend", receive(t, "what the backend sees", got), four+" to 10.0.1.48:6443: second"))
	must(t, expectEOF(half), expectEOF(whole))
	next.empty()
}

func TestAcceptProxyConfig(t *testing.T) {
	for from, want := range map[string]string{
		"10.0.1.5": "", "10.0.1.0/28": "", "2001:db8::/32": "", "::1": "", "0.0.0.0/0": "", "::ffff:10.0.1.5": "",
		"10.0.1.5/28":      "has bits beyond its length; the network is 10.0.1.0/28",
		"proxy.example":    "is neither an address nor a network",
		"10.0.1.5:443":     "is neither an address nor a network",
		"fe80::1%eth0":     "is neither an address nor a network",
		"::ffff:a00:0/104": "is an IPv4 network in the form of an IPv6 one",
		"":                 "is neither an address nor a network",
	} {
		c := Default()
		c.Backends, c.AcceptProxyFrom = []string{"10.0.1.73:6443"}, []string{from}
		err := c.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", from, err, want)
		}
	}
}
