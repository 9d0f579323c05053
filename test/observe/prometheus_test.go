package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

const packaging = "../../packaging"

// tool finds one of Debian's programs, or skips.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s: Debian's package %s has it", name, pkg)
	}
	return path
}

// TestRules has promtool check what is shipped, and run the unit tests, of which
// each alert has one that fires and one that does not.
func TestRules(t *testing.T) {
	rules, err := os.ReadFile(filepath.Join(packaging, "prometheus/kthwd.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(filepath.Join(packaging, "prometheus/kthwd.rules.test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		for _, what := range []string{" fires\n", " stays quiet\n"} {
			if !strings.Contains(string(tests), "name: "+m[1]+what) {
				t.Errorf("no unit test: %s%s", m[1], what)
			}
		}
	}
	promtool := tool(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "kthwd.rules.yml"}, {"test", "rules", "kthwd.rules.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = filepath.Join(packaging, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// server is a running Prometheus.
type server struct {
	url string
	log *kthwtest.Log
}

// startPrometheus runs Debian's Prometheus with the shipped configuration and
// rules, scraping each second, and with alerts that wait for a second only.
func startPrometheus(t *testing.T, controllers, all []string) *server {
	t.Helper()
	path := tool(t, "prometheus", "prometheus")
	dir := t.TempDir()
	quoted := func(targets []string) string { return "['" + strings.Join(targets, "', '") + "']" }
	config := shipped(t, "prometheus/prometheus.yml")
	config = strings.Replace(config, "['127.0.0.1:10300']", quoted(all), 1) // of job kthwd
	config = strings.ReplaceAll(config, "['127.0.0.1:10300']", quoted(controllers))
	config = strings.ReplaceAll(config, "_interval: 15s", "_interval: 1s")
	rules := regexp.MustCompile(`for: \d+[sm]`).ReplaceAllString(shipped(t, "prometheus/kthwd.rules.yml"), "for: 1s")
	put(t, filepath.Join(dir, "prometheus.yml"), config)
	put(t, filepath.Join(dir, "kthwd.rules.yml"), rules)
	address := fmt.Sprintf("127.0.0.1:%d", kthwtest.FreePorts(t, "127.0.0.1").Metrics)
	s := &server{url: "http://" + address, log: &kthwtest.Log{}}
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of prometheus:\n%s", s.log.Tail(60))
		}
	})
	return s
}

func shipped(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(packaging, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// api asks Prometheus; the answer's data go into v.
func (s *server) api(path string, query url.Values, v any) error {
	resp, err := plain.Get(s.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Error string
		Data  any
	}{Data: v}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// values is how many series a query has, and how many of them have a number.
func (s *server) values(query string) (n int, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	err = s.api("query", url.Values{"query": {query}}, &data)
	for _, r := range data.Result {
		if r.Value[1] != "NaN" {
			n++
		}
	}
	return n, err
}

// up waits until all targets are up.
func (s *server) up(t *testing.T, want int) {
	t.Helper()
	kthwtest.WaitFor(t, "all targets up", time.Minute, func() error {
		n, err := s.values("up == 1")
		if err == nil && n != want {
			err = fmt.Errorf("%d targets are up, want %d", n, want)
		}
		return err
	})
}

// firing tells whether an alert fires.
func (s *server) firing(alert string) (bool, error) {
	n, err := s.values(fmt.Sprintf("ALERTS{alertname=%q,alertstate=\"firing\"}", alert))
	return n > 0, err
}

func (s *server) await(t *testing.T, alert string, want bool, within time.Duration) {
	t.Helper()
	word := map[bool]string{true: " fires", false: " is over"}[want]
	kthwtest.WaitFor(t, alert+word, within, func() error {
		is, err := s.firing(alert)
		if err == nil && is != want {
			err = errors.New("not yet")
		}
		return err
	})
}

// clean holds that Prometheus had nothing to complain about what it scraped.
func (s *server) clean(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(s.log.String()) {
		for _, bad := range []string{"duplicate", "out of order", "out-of-order", "parse error", "Error on ingesting", "Append failed"} {
			if strings.Contains(line, bad) {
				t.Errorf("prometheus: %s", line)
			}
		}
	}
}

func needE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("part of make test-e2e")
	}
}

func metricsAddress(c *kthwtest.Controller) string {
	return fmt.Sprintf("127.0.0.1:%d", c.Ports.Metrics)
}

// TestDashboard evaluates each query of each panel in a Prometheus that has
// scraped a controller and a load balancer with some traffic: none is empty.
func TestDashboard(t *testing.T) {
	needE2E(t)
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	lb := startBalancer(t, c)
	p := startPrometheus(t, []string{metricsAddress(c)}, []string{metricsAddress(c), metricsAddress(lb)})
	p.up(t, 6)
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(shipped(t, "grafana/kthwd.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	admin := asAdmin(t, c)
	for _, panel := range dashboard.Panels {
		if panel.Type == "row" {
			continue
		}
		if len(panel.Targets) == 0 {
			t.Errorf("%s: no query", panel.Title)
		}
		for _, target := range panel.Targets {
			query := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m").Replace(target.Expr)
			kthwtest.WaitFor(t, "a value in "+panel.Title, time.Minute, func() error {
				// New connections, so that there is something to count.
				if resp, err := admin.Get(fmt.Sprintf("https://127.0.0.1:%d/api", lb.Ports.Secure)); err == nil {
					resp.Body.Close()
					admin.CloseIdleConnections()
				}
				n, err := p.values(query)
				if err == nil && n == 0 {
					err = fmt.Errorf("empty: %s", query)
				}
				return err
			})
		}
	}
	p.clean(t)
}

// TestAlerts makes faults and sees that the alerts fire, and are over when the
// faults are.
func TestAlerts(t *testing.T) {
	needE2E(t)
	t.Parallel()
	plants := threeControllers(t)
	backend := startBackend(t)
	lbPorts := kthwtest.FreePorts(t, "127.0.0.1")
	dir := t.TempDir()
	short := filepath.Join(dir, "ca.pem")
	issue(t, short, 3*24*time.Hour)
	put(t, filepath.Join(dir, "lb.yaml"), fmt.Sprintf("role: lb\nstatus-socket: ''\ncheck: tcp\nlisten: ['127.0.0.1:%d']\nbackend: ['%s', '127.0.0.1:%d']\nbackend-ca: ca.pem\n", lbPorts.Secure, backend.address, plants[0].Ports.Secure))
	lb := kthwtest.Start(t, kthwtest.Options{File: filepath.Join(dir, "lb.yaml"), Ports: &lbPorts})

	var controllers []string
	for _, c := range plants {
		controllers = append(controllers, metricsAddress(c))
	}
	p := startPrometheus(t, controllers, append(controllers, metricsAddress(lb)))
	p.up(t, 5*len(plants)+1)

	t.Log("a certificate that expires in three days, then one that does not")
	p.await(t, "KthwdCertificateExpiresSoon", true, time.Minute)
	issue(t, short, 300*24*time.Hour)
	p.await(t, "KthwdCertificateExpiresSoon", false, time.Minute)

	t.Log("a backend that is gone, then back")
	for _, alert := range []string{"KthwdBackendDown", "KthwdFailOpen", "KthwdQuorumLost", "KthwdMemberAway", "KthwdDown"} {
		if is, err := p.firing(alert); is || err != nil {
			t.Errorf("%s fires before there is a fault (%v)", alert, err)
		}
	}
	backend.stop()
	p.await(t, "KthwdBackendDown", true, time.Minute)
	backend.start(t)
	p.await(t, "KthwdBackendDown", false, time.Minute)

	t.Log("one of three controllers is killed: away and down, with a quorum; then two: without")
	plants[1].Signal(t, syscall.SIGKILL)
	p.await(t, "KthwdMemberAway", true, time.Minute)
	p.await(t, "KthwdDown", true, time.Minute)
	r, err := plants[0].Status()
	if err != nil {
		t.Fatal(err)
	}
	leads := slices.ContainsFunc(r.Leases, func(l status.Lease) bool { return l.Leading })
	plants[2].Signal(t, syscall.SIGKILL)
	p.await(t, "KthwdQuorumLost", true, time.Minute)
	if leads {
		p.await(t, "KthwdComponentRestarting", true, time.Minute) // its lease cannot be renewed
	}
	for _, c := range plants[1:] {
		c.Wait(t, time.Minute)
		kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, NoWait: true, Args: c.Cmd.Args[1+len(c.Args()):]})
	}
	for _, alert := range []string{"KthwdQuorumLost", "KthwdMemberAway", "KthwdDown"} {
		p.await(t, alert, false, 2*time.Minute)
	}
	if leads {
		eventWritten(t, plants[0], "TermLost")
	}
	eventWritten(t, plants[0], "QuorumLost")
	eventWritten(t, plants[0], "QuorumBack")
	p.clean(t)
}

// eventWritten waits for a Kubernetes Event of a controller.
func eventWritten(t *testing.T, c *kthwtest.Controller, reason string) {
	t.Helper()
	kthwtest.WaitFor(t, "the event "+reason, time.Minute, func() error {
		list, err := c.Client(t).CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason + ",source=kthwd"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("none")
		}
		return err
	})
}

// shared are the files that the controllers of one cluster have in common.
var shared = []string{"ca.pem", "ca-key.pem", "service-account.pem", "service-account-key.pem", "front-proxy-ca.pem", "front-proxy-ca-key.pem", "encryption-config.yaml"}

// threeControllers are a cluster on one address, each with ports of its own.
func threeControllers(t *testing.T) (all []*kthwtest.Controller) {
	t.Helper()
	var ports [3]kthwtest.Ports
	var peers, dirs []string
	for i := range ports {
		ports[i] = kthwtest.FreePorts(t, "127.0.0.1")
		dirs = append(dirs, filepath.Join(t.TempDir(), "data"))
		peers = append(peers, fmt.Sprintf("c%d=https://127.0.0.1:%d", i, ports[i].EtcdPeer))
	}
	for i := range ports {
		if i == 1 {
			shareFiles(t, dirs)
		}
		all = append(all, kthwtest.Start(t, kthwtest.Options{
			Dir: dirs[i], Ports: &ports[i], NoWait: true,
			Args: []string{fmt.Sprintf("--name=c%d", i), "--etcd-arg=initial-cluster=" + strings.Join(peers, ",")},
		}))
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	return all
}

// shareFiles gives the others the files of the cluster that the first one makes.
func shareFiles(t *testing.T, dirs []string) {
	t.Helper()
	for _, dir := range dirs[1:] {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range shared {
			kthwtest.WaitFor(t, name, time.Minute, func() error {
				data, err := os.ReadFile(filepath.Join(dirs[0], name))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
				}
				return err
			})
		}
	}
}

// backend accepts connections, while it is there.
type backend struct {
	address string
	mu      sync.Mutex
	l       net.Listener
}

func startBackend(t *testing.T) *backend {
	b := &backend{address: fmt.Sprintf("127.0.0.1:%d", kthwtest.FreePorts(t, "127.0.0.1").Secure)}
	b.start(t)
	t.Cleanup(b.stop)
	return b
}

func (b *backend) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.l = l
	b.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}

func (b *backend) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.l.Close()
}

// issue writes a CA that lasts for some time.
func issue(t *testing.T, path string, lasts time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(lasts),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}
