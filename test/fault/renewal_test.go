package fault

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// shortLife is the life of the certificates in these tests, in place of a year.
const shortLife = 45 * time.Second

func shortLived(life time.Duration) []string {
	return []string{"KTHWD_TEST_LEAF_LIFE=" + life.String()}
}

// lasting is a client whose own certificate outlives the test.
func lasting(t *testing.T, dir, host string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "super-admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.Host, config.QPS, config.Burst = host, -1, -1
	return config
}

// onlookers are watches that must not be cut.
type onlookers struct {
	stop func()
	done sync.WaitGroup
	seen []atomic.Int64 // the last value that each has seen

	mu       sync.Mutex
	problems []string
}

// watchAll opens watches, each on a connection of its own, at one server after the other.
func watchAll(t *testing.T, n int, configs ...*rest.Config) *onlookers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	o := &onlookers{stop: cancel, seen: make([]atomic.Int64, n)}
	first := kubernetes.NewForConfigOrDie(configs[0])
	object, err := first.CoreV1().ConfigMaps("default").Create(ctx, configMap("seen-by-all", map[string]string{"n": "0"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		own := rest.CopyConfig(configs[i%len(configs)])
		own.Dial = (&net.Dialer{}).DialContext // not shared with the others
		w, err := kubernetes.NewForConfigOrDie(own).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{
			FieldSelector: "metadata.name=seen-by-all", ResourceVersion: object.ResourceVersion})
		if err != nil {
			t.Fatal(err)
		}
		o.done.Go(func() {
			defer w.Stop()
			for {
				select {
				case e, ok := <-w.ResultChan():
					object, is := e.Object.(*corev1.ConfigMap)
					if !ok || !is {
						o.problem(ctx, "watch %d was cut: %v", i, e)
						return
					}
					value, _ := strconv.ParseInt(object.Data["n"], 10, 64)
					o.seen[i].Store(value)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); o.done.Wait() })
	return o
}

func (o *onlookers) problem(ctx context.Context, format string, args ...any) {
	if ctx.Err() == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.problems = append(o.problems, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// end writes the object once more, which every watch must see, and fails the test for each
// that was cut.
func (o *onlookers) end(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	kthwtest.WaitFor(t, "a last write", soon, func() error {
		object, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "seen-by-all", metav1.GetOptions{})
		if err == nil {
			object.Data["n"] = "1"
			_, err = client.CoreV1().ConfigMaps("default").Update(t.Context(), object, metav1.UpdateOptions{})
		}
		return err
	})
	kthwtest.WaitFor(t, "every watch to see the last write", soon, func() error {
		for i := range o.seen {
			if o.seen[i].Load() != 1 {
				return fmt.Errorf("watch %d has not; %q", i, o.problems)
			}
		}
		return nil
	})
	o.stop()
	o.done.Wait()
	for _, p := range o.problems {
		t.Error(p)
	}
}

var renewalsOf = regexp.MustCompile(`(?m)^kthwd_certificate_renewals_total\{file="([^"]+)",result="(ok|failed)"\} (\d+)$`)

// renewed returns how often each file was renewed, and fails for one that was not.
func renewed(t *testing.T, c *kthwtest.Controller) map[string]int {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s:%d/metrics", c.Address, c.Ports.Metrics))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, m := range renewalsOf.FindAllSubmatch(body, -1) {
		n, _ := strconv.Atoi(string(m[3]))
		if file := filepath.Base(string(m[1])); string(m[2]) == "ok" {
			count[file] = n
		} else if n > 0 {
			t.Errorf("%s: %d renewals have failed", file, n)
		}
	}
	return count
}

// renewedOften waits until every certificate in use was renewed n times.
func renewedOften(t *testing.T, c *kthwtest.Controller, n int, within time.Duration) {
	t.Helper()
	kthwtest.WaitFor(t, fmt.Sprintf("%d renewals of every file", n), within, func() error {
		count := renewed(t, c)
		for _, file := range []string{"kubernetes.pem", "etcd.pem", "kthwd-health.pem", "front-proxy-client.pem", "admin.kubeconfig", "kube-controller-manager.kubeconfig", "kube-scheduler.kubeconfig"} {
			if count[file] < n {
				return fmt.Errorf("%s: %d; all: %v", file, count[file], count)
			}
		}
		return nil
	})
}

// ofNow fails if the port shows a certificate that was there when the process began.
func ofNow(t *testing.T, c *kthwtest.Controller, port int, made time.Time) {
	t.Helper()
	kthwtest.WaitFor(t, fmt.Sprintf("a new certificate at port %d", port), soon, func() error {
		conn, err := tls.Dial("tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)), &tls.Config{InsecureSkipVerify: true}) // only looked at
		if err != nil {
			return err
		}
		defer conn.Close()
		if end := conn.ConnectionState().PeerCertificates[0].NotAfter; end.Before(made.Add(shortLife)) || end.Before(time.Now()) {
			return fmt.Errorf("it ends %v", end)
		}
		return nil
	})
}

// asksTheAPIServer fails if 10257 or 10259 cannot have a token reviewed: their own
// certificate for that is the one in the program's kubeconfig.
func asksTheAPIServer(t *testing.T, c *kthwtest.Controller, client kubernetes.Interface) {
	t.Helper()
	for _, port := range []int{c.Ports.ControllerManager, c.Ports.Scheduler} {
		kthwtest.WaitFor(t, fmt.Sprintf("the user of a token to be known at port %d", port), soon, func() error {
			token, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://%s:%d/metrics", c.Address, port), nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+token.Status.Token)
			resp, err := insecure().RoundTrip(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "system:serviceaccount:default:default") {
				return fmt.Errorf("%s: %.200s (%v)", resp.Status, body, err)
			}
			return nil
		})
	}
}

// unbroken fails if a term has ended or a component has begun again.
func unbroken(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	for _, s := range mustStatus(t, c).Components {
		lasts(t, c, s.Name)
	}
}

// Every certificate of a controller is renewed, and all of the first ones end: no request fails, no watch is cut, nothing begins again.
func TestRenewalUnderLoad(t *testing.T) {
	kthwtest.LongTurn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Env: shortLived(shortLife)})
	made := time.Now() // all of the first ones, at the latest
	config := lasting(t, c.Dir, fmt.Sprintf("https://127.0.0.1:%d", c.Ports.Secure))
	client := kubernetes.NewForConfigOrDie(config)
	watches := watchAll(t, 10, config)
	crowd := startCrowdOf(t, config, true)
	renewedOften(t, c, 1, 10*shortLife)
	kthwtest.WaitFor(t, "the end of the first certificates", 10*shortLife, func() error {
		if left := time.Until(made.Add(shortLife + time.Second)); left > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	for _, port := range []int{c.Ports.Secure, c.Ports.EtcdClient, c.Ports.EtcdPeer, c.Ports.ControllerManager, c.Ports.Scheduler} {
		ofNow(t, c, port, made)
	}
	asksTheAPIServer(t, c, client)
	if code, body, err := bridge(c, "/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("health bridge: %d %s %v", code, body, err)
	}
	takesNewKeys(t, c)
	asksTheAPIServer(t, c, client)
	crowd.end(t)
	watches.end(t, client)
	works, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := roundTrip(works, client); err != nil {
		t.Errorf("kube-controller-manager: %v", err)
	}
	unbroken(t, c)
	kthwtest.WaitFor(t, "the Event", soon, func() error {
		events, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=CertificateRenewed"})
		if err == nil && len(events.Items) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	l := pki.Layout{Dir: c.Dir}
	for _, file := range []string{"kubernetes.pem", "kube-scheduler.kubeconfig"} {
		if kept, err := filepath.Glob(filepath.Join(l.KeptCertificates(), file+".*")); err != nil || len(kept) == 0 {
			t.Errorf("%s: kept %q, %v", file, kept, err)
		}
	}
}

// takesNewKeys gives every certificate another key, which each port shows.
func takesNewKeys(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	l := pki.Layout{Dir: c.Dir}
	before := fileText(t, l.Key(pki.NameKubernetes))
	mustVerb(t, c, []string{"pki", "renew", "--all", "--new-key"}, "/kubernetes.pem until ", ", with another key; ")
	if string(fileText(t, l.Key(pki.NameKubernetes))) == string(before) {
		t.Error("the key of kubernetes.pem is as it was")
	}
	for port, name := range map[int]string{c.Ports.Secure: pki.NameKubernetes, c.Ports.EtcdClient: pki.NameEtcd, c.Ports.EtcdPeer: pki.NameEtcd} {
		kthwtest.WaitFor(t, fmt.Sprintf("the new key at port %d", port), soon, func() error {
			pair, err := tls.LoadX509KeyPair(l.Cert(name), l.Key(name))
			if err != nil {
				return err
			}
			conn, err := tls.Dial("tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)), &tls.Config{InsecureSkipVerify: true}) // only looked at
			if err != nil {
				return err
			}
			defer conn.Close()
			if shown := conn.ConnectionState().PeerCertificates[0]; string(shown.RawSubjectPublicKeyInfo) != string(pair.Leaf.RawSubjectPublicKeyInfo) {
				return fmt.Errorf("it shows a certificate for another key, until %v", shown.NotAfter)
			}
			return nil
		})
	}
}

// roundTrip has kube-controller-manager do something: it makes the ConfigMap of the CA in a new
// namespace.
func roundTrip(ctx context.Context, client kubernetes.Interface) error {
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "renewal-"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for {
		_, err := client.CoreV1().ConfigMaps(ns.Name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 200*time.Millisecond)
	}
}

// Three controllers renew their own certificates three times, and for KTHWD_RENEWAL=5m at least, with
// clients and watches at each of them; the members of etcd and the two leases stay together all the while.
func TestRenewalOfThree(t *testing.T) {
	endToEnd(t, "TestRenewalUnderLoad is in make test")
	kthwtest.Turn(t, 3)
	const life = 90 * time.Second
	under, err := time.ParseDuration(cmp.Or(os.Getenv("KTHWD_RENEWAL"), "0s"))
	if err != nil {
		t.Fatalf("KTHWD_RENEWAL: %v", err)
	}
	m := makeCluster(t, "--with-ca-key=c0", "--with-ca-key=c1", "--with-ca-key=c2")
	m.env = shortLived(life)
	for i := range 3 { // those of pki init last a year
		shorten(t, pki.Layout{Dir: filepath.Join(m.dir, fmt.Sprintf("c%d", i))}, life)
	}
	all := m.startAll(t)
	var configs []*rest.Config
	for i := range all {
		configs = append(configs, lasting(t, filepath.Join(m.dir, "ca"), fmt.Sprintf("https://%s:%d", madeAddress(i), m.ports[i].Secure)))
	}
	client := kubernetes.NewForConfigOrDie(configs[0])
	watches := watchAll(t, 10, configs...)
	crowd, loaded := startCrowdAt(t, true, configs...), time.Now() // 200 a second where the machine bears it
	for _, c := range all {
		kthwtest.WaitFor(t, "three renewals of kubernetes.pem and etcd.pem", 10*time.Minute, func() error {
			if n := renewed(t, c); n["kubernetes.pem"] < 3 || n["etcd.pem"] < 3 || n["kube-controller-manager.kubeconfig"] < 3 {
				return fmt.Errorf("%v", n)
			}
			return nil
		})
	}
	kthwtest.WaitFor(t, "the time under load", time.Minute+2*under, func() error {
		if past := time.Since(loaded); past < under {
			return fmt.Errorf("%v are over", past)
		}
		return nil
	})
	t.Logf("%v under load, renewed: %v", time.Since(loaded).Round(time.Second), renewed(t, all[0]))
	crowd.end(t)
	t.Logf("%.0f requests a second", float64(crowd.asked.Load())/time.Since(loaded).Seconds())
	watches.end(t, client)
	for _, c := range all {
		unbroken(t, c)
		asksTheAPIServer(t, c, client)
	}
	r, err := all[1].Status()
	if err != nil || r.Quorum == nil || r.Quorum.Active != 3 {
		t.Errorf("quorum: %+v, %v", r.Quorum, err)
	}
}

// shorten renews everything in a directory for a short life.
func shorten(t *testing.T, l pki.Layout, life time.Duration) {
	t.Helper()
	done, err := pki.Renew(l, pki.RenewOptions{All: true, Life: life})
	names := slices.Collect(func(yield func(string) bool) {
		for _, d := range done {
			if !yield(filepath.Base(d.File)) {
				return
			}
		}
	})
	if !slices.Contains(names, "kubernetes.pem") {
		t.Fatalf("renewed: %q, %v", names, err)
	}
}
