package observe

import (
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// TestSlowScraper opens as many requests for the largest path as kthwd answers at one
// time, and reads nothing. Further clients are told to retry, a crowd of them costs
// nothing, other paths are answered, and the slow clients are cut off.
func TestSlowScraper(t *testing.T) {
	needE2E(t)
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	url := metricsURL(c, "/metrics/kube-apiserver")
	ask := func(url string) int {
		resp, err := plain.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	await := func(what string, code int, within time.Duration) {
		t.Helper()
		kthwtest.WaitFor(t, what, within, func() error {
			if got := ask(url); got != code {
				return fmt.Errorf("got %d", got)
			}
			return nil
		})
	}
	const questions = 50 // whose answers fill any buffer
	neverRead := func(connections int) {
		request := fmt.Sprintf("GET /metrics/kube-apiserver HTTP/1.1\r\nHost: %s\r\n\r\n", metricsAddress(c))
		for range connections {
			conn, err := net.Dial("tcp", metricsAddress(c))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if _, err := fmt.Fprint(conn, strings.Repeat(request, questions)); err != nil {
				t.Fatal(err)
			}
		}
	}
	answer := int64(len(read(t, plain, url)))
	before, begun := memory(t, c), time.Now()
	neverRead(4)
	// A slow client whose place a scrape of the test had is told to retry, so another one comes.
	kthwtest.WaitFor(t, "a scrape that is told to come back", kthwtest.Soon, func() error {
		if got := ask(url); got != http.StatusServiceUnavailable {
			neverRead(1)
			return fmt.Errorf("got %d", got)
		}
		return nil
	})
	neverRead(40)
	for _, path := range []string{"/", "/readyz", "/metrics", "/metrics/etcd"} {
		if code := ask(metricsURL(c, path)); code != http.StatusOK {
			t.Errorf("%s meanwhile: got %d", path, code)
		}
	}
	unread := answer * questions * (4 + 40)
	grown := memory(t, c) - before
	t.Logf("the process has grown by %d MiB, with %d MiB of answers asked for and not read", grown>>20, unread>>20)
	if grown > unread/25 {
		t.Errorf("the process has grown by %d MiB, more than a 25th of what it was asked for", grown>>20)
	}
	await("an answer after the slow ones were cut off", http.StatusOK, 5*time.Minute)
	t.Logf("after %v", time.Since(begun).Round(time.Second))
}

// memory is what a process has in memory, in bytes.
func memory(t *testing.T, c *kthwtest.Controller) int64 {
	t.Helper()
	for _, m := range parse(t, read(t, plain, metricsURL(c, "/metrics")))["process_resident_memory_bytes"].GetMetric() {
		return int64(m.GetGauge().GetValue())
	}
	t.Fatal("no process_resident_memory_bytes")
	return 0
}

// TestHostileNames uses a certificate whose name would break a page that shows it.
func TestHostileNames(t *testing.T) {
	needE2E(t)
	t.Parallel()
	promtool := tool(t, "promtool", "prometheus")
	const name = "x\"}\nkthwd_evil{a=\"\\ 1\n\x1b[31m</td><script>document.title='evil'</script>"
	file := filepath.Join(t.TempDir(), "ca.pem")
	put(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: selfSigned(t, 300*24*time.Hour, pkix.Name{CommonName: name}).Certificate[0]})))
	lb := balance(t, []string{startBackend(t).address}, "check: tcp", "backend-ca: "+file)

	text := read(t, plain, metricsURL(lb, "/metrics"))
	if strings.Contains(text, "\nkthwd_evil") || !strings.Contains(text, "document.title") {
		t.Errorf("the name is not in a label, or is a series:\n%s", text)
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	if page := read(t, plain, metricsURL(lb, "/")); strings.Count(page, "<script") != 1 || !strings.Contains(page, "document.title=") {
		t.Errorf("the page: the name is not on it, or is markup")
	}
	out, err := exec.Command(kthwtest.Binary(t), "status", "-o", "wide", "--server="+metricsAddress(lb)).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "\x1b") || strings.Contains(string(out), "\nkthwd_evil") || !strings.Contains(string(out), "kthwd_evil") {
		t.Errorf("the table: the name is not in it, or moves the terminal:\n%q", out)
	}
}
