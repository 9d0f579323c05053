package lb

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

// TestBehindHaproxy puts a real HAProxy in front of kthwd: send-proxy and send-proxy-v2,
// with a checksum and TLVs. The access log has the clients' addresses, and kthwd sees
// HAProxy's checks as nobody's. A listener beside, without accept-proxy, serves HAProxy's own
// machine without a header.
func TestBehindHaproxy(t *testing.T) {
	sidesToRun(t)
	for _, b := range []*lbtest.Balancer{lbtest.Kthwd, lbtest.Haproxy} {
		if lacks := b.Missing(); lacks != "" {
			if os.Getenv("KTHWD_NO_SKIP") != "" {
				t.Fatal(lacks)
			}
			t.Skip(lacks)
		}
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	s := &suite{}
	s.certificate, s.key, s.pool = makeCertificate(t, lbtest.PublicDir(t))
	for _, option := range []string{"send-proxy check-send-proxy", "send-proxy-v2 check-send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id check-send-proxy"} {
		t.Run(option, func(t *testing.T) { s.behindHaproxy(t, option) })
	}
}

// behindHaproxy has clients, HAProxy, kthwd and backends in namespaces of their own.
// HAProxy has listenAddress, to which clients connect.
func (s *suite) behindHaproxy(t *testing.T, option string) {
	t.Helper()
	const behind, plain = "10.42.0.2:6443", "10.42.0.2:7443"
	r := &rig{suite: s, row: &row{name: "behind HAProxy"}, side: lbtest.Kthwd}
	r.network(t) // the front is the switch's machine
	for i := range r.hosts {
		r.backends = append(r.backends, nil)
		r.startBackend(t, i)
	}
	machine := r.host(t, "10.42.0.2", 12)
	dir := t.TempDir()
	log := filepath.Join(dir, "access.log")
	r.setup = lbtest.Setup{Dir: dir, Namespace: machine, Listen: behind + " accept-proxy", HTTPS: true, CA: s.certificate,
		Args: []string{"--listen=" + plain, "--accept-proxy-from=10.42.0.1", "--access-log=" + log, "--metrics-address=127.0.0.1:10300"}}
	for i := range r.hosts {
		r.setup.Backends = append(r.setup.Backends, backendAddress(i))
	}
	r.balancer = lbtest.Kthwd.Start(t, r.setup)
	r.setup.Listen = listenAddress // from here on, for the clients
	config := writeFile(t, dir, "haproxy.cfg", fmt.Sprintf(`defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind %s
  unique-id-format %%{+X}o\ %%ci:%%cp
  default_backend kthwd
backend kthwd
  server kthwd %s check inter 100ms %s
`, listenAddress, behind, option))
	lbtest.Start(t, lbtest.Command{Name: "haproxy", Namespace: r.lb, Argv: []string{"haproxy", "-db", "-f", config}})
	r.awaitReady(t)

	r.askBeside(t, plain)
	own := r.lie(t, behind)
	harness.WaitFor(t, "lines of both clients", 2*time.Minute, func() error {
		text, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		proxied, lie := 0, false
		for line := range strings.Lines(string(text)) {
			var l struct{ Client, Proxy, Backend string }
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				return err
			}
			switch {
			case l.Proxy != "" && !strings.HasPrefix(l.Proxy, "10.42.0.1:"):
				t.Fatalf("a proxy that is none: %s", line)
			case strings.HasPrefix(l.Client, clientAddress+":") && l.Proxy != "":
				proxied++
			case strings.HasPrefix(l.Client, "10.42.0.1:") && l.Proxy == "": // the one beside
			case l.Client == own:
				lie = l.Proxy == ""
			case l.Backend != "":
				t.Fatalf("a client that is none: %s", line)
			}
		}
		if proxied < backendCount || !lie {
			return fmt.Errorf("%d lines of clients behind HAProxy, the one without: %v", proxied, lie)
		}
		return nil
	})
	if n, known := metricAt(t, machine, "127.0.0.1:10300", "kthwd_lb_connections_rejected_total", `reason="proxy_header"`); n > 0 || !known {
		t.Errorf("%g headers of HAProxy were refused (known: %v)", n, known)
	}
}

// askBeside asks from HAProxy's own machine, without a header.
func (r *rig) askBeside(t *testing.T, at string) {
	t.Helper()
	raw, err := r.lb.Dial(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := r.secure(t.Context(), raw)
	if err == nil {
		_, err = ask(conn)
	}
	if err != nil {
		t.Errorf("without a header, to the listener without accept-proxy: %v", err)
	}
}

// lie sends a header as a client, and returns its address.
func (r *rig) lie(t *testing.T, behind string) string {
	t.Helper()
	direct, err := r.clients.Dial(t.Context(), behind) // no proxy: kthwd looks for no header
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	if _, err := direct.Write([]byte("PROXY TCP4 192.0.2.1 10.42.0.1 56324 6443\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := direct.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, direct) // the backend, which understands TLS only, closes it
	return direct.LocalAddr().String()
}
