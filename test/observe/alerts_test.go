package observe

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"

	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// fault is something that goes wrong for real, with the alerts that say so.
type fault struct {
	name   string
	alerts []string
	root   bool // takes root
	set    func(t *testing.T) scene
}

// scene is what a fault happens to. An alert must be quiet before the fault is made,
// fire after it, and be over after it is mended.
type scene struct {
	controllers, balancers []*kthwtest.Controller
	make, mend             func(p *server)
	goesOn                 func() (why string) // a reason of the machine's own for the alerts to stay; nil or "" for none
}

// faults has each alert that is shipped.
var faults = []fault{
	{"controllers are killed", []string{"KthwdDown", "KthwdMemberAway", "KthwdQuorumLost", "KthwdComponentNotReady", "KthwdNobodyLeads", "KthwdComponentRestarting"}, false, killedControllers},
	{"a database is filled", []string{"KthwdDatabaseNearQuota", "KthwdEtcdAlarm", "KthwdAPIErrorBudgetFast", "KthwdAPIErrorBudgetSlow"}, false, fullDatabase},
	{"a disk stalls", []string{"KthwdFsyncSlow"}, true, slowDisk},
	{"backends go away", []string{"KthwdBackendDown", "KthwdFailOpen"}, false, lostBackends},
	{"certificates end", []string{"KthwdCertificateExpiresSoon", "KthwdCertificateExpires", "KthwdCertificateUnreadable", "KthwdBackendCertificateExpires", "KthwdCertificateNotRenewed"}, false, endingCertificates},
	{"a disk fills", []string{"KthwdDiskLow", "KthwdDiskFull", "KthwdAuditRecordsLost"}, true, fullDisk},
	{"files and objects are spoilt", []string{"KthwdFilesChanged", "KthwdBootstrapRestored", "KthwdWebhookFails", "KthwdConversionFails", "KthwdAPIServiceUnavailable", "KthwdNamespaceStuck"}, false, spoilt},
	{"connections take the descriptors", []string{"KthwdDescriptorsFew"}, false, fewDescriptors},
	{"a killed controller comes back with other settings", []string{"KthwdRunEndedBadly", "KthwdDegraded", "KthwdTokensRefused"}, false, otherSettings},
	{"a revoked user comes back, and a join token is used twice", []string{"KthwdRevokedCertificateUsed", "KthwdJoinTokenReused"}, false, revokedUser},
	{"no backup is made for two days", []string{"KthwdNoBackup"}, false, oldBackup},
	{"an encryption file is spoilt, and a rotation is killed", []string{"KthwdEncryptionFileRefused", "KthwdEncryptionRotationStopped"}, false, spoiltEncryption},
	{"rotations have stopped, one of them two days ago", []string{"KthwdCARotationStopped", "KthwdServiceAccountRotationStopped", "KthwdRotationStands"}, false, stoppedRotations},
	{"the data in etcd grow fast", []string{"KthwdEtcdFullSoon"}, false, growingData},
	{"a process is killed again and again", []string{"KthwdRestartLoop"}, false, restartLoop},
}

// TestAlerts makes the fault of each shipped alert and sees that it fires, and is over
// when the fault is. Only times are others than those that are shipped: an alert waits
// for a second, and looks half a minute back (startPrometheus).
func TestAlerts(t *testing.T) {
	var made []string
	for _, f := range faults {
		made = append(made, f.alerts...)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(shipped(t, "prometheus/kthwd.rules.yml"), -1) {
		if !slices.Contains(made, m[1]) {
			t.Errorf("no fault makes %s fire", m[1])
		}
	}
	needE2E(t)
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if f.root && os.Geteuid() != 0 {
				lacks(t, "needs root")
			}
			f.play(t)
		})
	}
}

func (f fault) play(t *testing.T) {
	s := f.set(t)
	var controllers, all []string
	for _, c := range s.controllers {
		controllers = append(controllers, metricsAddress(c))
	}
	all = slices.Clone(controllers)
	for _, c := range s.balancers {
		all = append(all, metricsAddress(c))
	}
	begun := time.Now()
	p := startPrometheus(t, controllers, all, prometheusOptions{})
	p.up(t, 4*len(controllers)+len(all))
	for _, alert := range f.alerts {
		p.await(t, alert, false, kthwtest.Soon) // from the start of what was just made
	}
	before := time.Now()
	t.Logf("ready after %v", before.Sub(begun).Round(time.Second))
	s.make(p)
	for _, alert := range f.alerts {
		p.hasFired(t, alert, before, kthwtest.Soon)
	}
	mended := time.Now()
	t.Logf("all have fired after %v", mended.Sub(before).Round(time.Second))
	s.mend(p)
	for _, alert := range f.alerts {
		p.isOver(t, alert, s.goesOn)
	}
	t.Logf("all are over after %v", time.Since(mended).Round(time.Second))
	p.clean(t)
}

// isOver waits until an alert does not fire, or the machine gives a reason for it to go on.
func (s *server) isOver(t *testing.T, alert string, goesOn func() string) {
	t.Helper()
	kthwtest.WaitFor(t, alert+" to be over", kthwtest.Soon, func() error {
		is, err := s.firing(alert)
		switch {
		case err != nil || !is:
			return err
		case goesOn == nil:
			return errors.New("not yet")
		}
		if why := goesOn(); why != "" {
			t.Logf("%s goes on: %s", alert, why)
			return nil
		}
		return errors.New("not yet")
	})
}

// hasFired waits until an alert has fired since some time; it may be over again.
func (s *server) hasFired(t *testing.T, alert string, since time.Time, within time.Duration) {
	t.Helper()
	kthwtest.WaitFor(t, alert+" to have fired", within, func() error {
		n, err := s.values(fmt.Sprintf("max_over_time(ALERTS{alertname=%q,alertstate=\"firing\"}[%.0fs])", alert, math.Ceil(time.Since(since).Seconds())))
		if err == nil && n == 0 {
			err = errors.New("not yet")
		}
		return err
	})
}

// killedControllers kills one of three, then a second. What is left has the leases,
// and loses them.
func killedControllers(t *testing.T) scene {
	controllers := threeControllers(t)
	leads := func(c *kthwtest.Controller) bool {
		r, err := c.Status()
		return err == nil && slices.ContainsFunc(r.Leases, func(l status.Lease) bool { return l.Leading })
	}
	var last *kthwtest.Controller
	kthwtest.WaitFor(t, "a controller that leads", kthwtest.Soon, func() error {
		i := slices.IndexFunc(controllers, leads)
		if i < 0 {
			return errors.New("none")
		}
		last = controllers[i]
		return nil
	})
	var others []*kthwtest.Controller
	for _, c := range controllers {
		if c != last {
			others = append(others, c)
		}
	}
	return scene{
		controllers: controllers,
		make: func(p *server) {
			others[0].Signal(t, syscall.SIGKILL)
			p.await(t, "KthwdMemberAway", true, kthwtest.Soon)
			p.await(t, "KthwdDown", true, kthwtest.Soon)
			if is, err := p.firing("KthwdQuorumLost"); is || err != nil {
				t.Errorf("KthwdQuorumLost fires with two of three (%v)", err)
			}
			others[1].Signal(t, syscall.SIGKILL)
		},
		mend: func(*server) {
			for _, c := range others {
				c.Wait(t, kthwtest.Soon)
				kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, NoWait: true, Args: c.Cmd.Args[1+len(c.Args()):]})
			}
			for _, reason := range []string{"TermLost", "QuorumLost", "QuorumBack"} {
				eventWritten(t, last, reason)
			}
		},
	}
}

// eventWritten waits for a Kubernetes Event of a controller.
func eventWritten(t *testing.T, c *kthwtest.Controller, reason string) {
	t.Helper()
	kthwtest.WaitFor(t, "the event "+reason, kthwtest.Soon, func() error {
		list, err := c.Client(t).CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason + ",source=kthwd"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("none")
		}
		return err
	})
}

// fullDatabase fills etcd to its quota, goes on writing, which gets 500, and does what
// the status says then.
func fullDatabase(t *testing.T) scene {
	const piece = 256 << 10
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--etcd-arg=quota-backend-bytes=16777216"}})
	maps := c.Client(t).CoreV1().ConfigMaps("default")
	n := 0
	write := func() error {
		n++
		_, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("fill-%d", n)}, BinaryData: map[string][]byte{"x": make([]byte, piece)}}, metav1.CreateOptions{})
		return err
	}
	until := func(what string, p *server, alerts ...string) {
		t.Helper()
		kthwtest.WaitFor(t, what, kthwtest.Soon, func() error {
			_ = write() // which is refused in the end
			for _, alert := range alerts {
				if is, err := p.firing(alert); err != nil || !is {
					return errors.Join(fmt.Errorf("%s does not fire after %d writes", alert, n), err)
				}
			}
			return nil
		})
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			kthwtest.WaitFor(t, "a database at 80 % of its quota", kthwtest.Soon, func() error {
				r, err := c.Status()
				if err != nil || r.Member.Size*10 > r.Member.Quota*8 {
					return err
				}
				return errors.Join(errors.New("not yet"), write())
			})
			p.await(t, "KthwdDatabaseNearQuota", true, kthwtest.Soon)
			if is, err := p.firing("KthwdEtcdAlarm"); is || err != nil {
				t.Errorf("KthwdEtcdAlarm fires before the quota is reached (%v)", err)
			}
			until("writes that fail", p, "KthwdEtcdAlarm", "KthwdAPIErrorBudgetFast", "KthwdAPIErrorBudgetSlow")
		},
		mend: func(*server) {
			if err := maps.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				t.Error(err)
			}
			makeRoom(t, c)
			kthwtest.WaitFor(t, "a write", kthwtest.Soon, write)
		},
	}
}

// makeRoom is etcdctl compact, defrag and alarm disarm.
func makeRoom(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	etcd, ctx := c.Etcd(t), t.Context()
	endpoint := etcd.Endpoints()[0]
	now, err := etcd.Status(ctx, endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Defragment(ctx, endpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
}

// slowDisk has etcd's disk stall for a moment, again and again. A file system that
// stalls keeps its writers waiting before they get as far as fsync; so the one that
// stalls is below the disk, under its image. It is in memory, so that the disk is as
// slow as the test makes it and no slower.
func slowDisk(t *testing.T) scene {
	const stall = 300 * time.Millisecond
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("memory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", at("memory"), "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at("memory"), syscall.MNT_DETACH) })
	below := kthwtest.NewDiskIn(t, at("below"), at("memory"))
	kthwtest.NewDiskIn(t, at("disk"), at("below"))
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--etcd-data-dir=" + filepath.Join(at("disk"), "etcd")}})
	maps := c.Client(t).CoreV1().ConfigMaps("default")
	write := func(i int) {
		_, _ = maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("write-%d", i)}}, metav1.CreateOptions{})
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			i := 0
			kthwtest.WaitFor(t, "KthwdFsyncSlow to fire", kthwtest.Soon, func() error {
				below.Stall(t)
				thawed := time.AfterFunc(stall, below.Thaw)
				write(i) // which waits for that
				i++
				thawed.Stop()
				below.Thaw()
				is, err := p.firing("KthwdFsyncSlow")
				if err == nil && !is {
					err = fmt.Errorf("quiet after %d stalls", i)
				}
				return err
			})
		},
		mend:   func(*server) {},
		goesOn: func() string { return slowSyncs(t, at("disk")) },
	}
}

// slowSyncs tells whether a disk is slow by the measure of KthwdFsyncSlow, whoever writes to it.
func slowSyncs(t *testing.T, dir string) string {
	t.Helper()
	const syncs, slow = 50, 100 * time.Millisecond
	f, err := os.CreateTemp(dir, "sync")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	longest := time.Duration(0)
	for range syncs {
		begun := time.Now()
		if _, err := f.Write(make([]byte, 4<<10)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(begun))
	}
	if longest <= slow {
		return ""
	}
	return fmt.Sprintf("of %d syncs of the test's own one took %v", syncs, longest.Round(time.Millisecond))
}

// lostBackends stops one of two backends, then the other.
func lostBackends(t *testing.T) scene {
	lb, backends := twoBackends(t)
	return scene{
		balancers: []*kthwtest.Controller{lb},
		make: func(p *server) {
			backends[0].stop()
			p.await(t, "KthwdBackendDown", true, kthwtest.Soon)
			if is, err := p.firing("KthwdFailOpen"); is || err != nil {
				t.Errorf("KthwdFailOpen fires with one of two (%v)", err)
			}
			backends[1].stop()
		},
		mend: func(*server) {
			for _, b := range backends {
				b.start(t)
			}
		},
	}
}

// endingCertificates has certificates near their end, and one that is none.
func endingCertificates(t *testing.T) scene {
	const day = 24 * time.Hour
	backend := startTLSBackend(t, 300*day)
	files := map[string]string{} // by what becomes of them
	balancers := []*kthwtest.Controller{balance(t, []string{backend.address})}
	for _, name := range []string{"soon", "later", "unreadable"} {
		files[name] = filepath.Join(t.TempDir(), "ca.pem")
		issue(t, files[name], 300*day)
		balancers = append(balancers, balance(t, []string{backend.address}, "check: tcp", "backend-ca: "+files[name]))
	}
	c := kthwtest.Start(t, kthwtest.Options{})
	l := pki.Layout{Dir: c.Dir}
	key := textOf(t, l.CAKey())
	return scene{
		controllers: []*kthwtest.Controller{c}, balancers: balancers,
		make: func(*server) {
			due(t, l)
			issue(t, files["soon"], 3*day)
			issue(t, files["later"], 20*day)
			put(t, files["unreadable"], "-----BEGIN CERTIFICATE-----\ncut off")
			backend.lasts(t, 20*day)
		},
		mend: func(*server) {
			for _, file := range files {
				issue(t, file, 300*day)
			}
			backend.lasts(t, 300*day)
			put(t, l.CAKey(), key)
		},
	}
}

// due removes the key of the CA, and replaces kthwd-health.pem by one that is due for renewal.
func due(t *testing.T, l pki.Layout) {
	t.Helper()
	old, err := tls.LoadX509KeyPair(l.Cert(pki.NameHealth), l.Key(pki.NameHealth))
	ca, caErr := tls.LoadX509KeyPair(l.CA(), l.CAKey())
	if err := errors.Join(err, caErr); err != nil {
		t.Fatal(err)
	}
	template := *old.Leaf
	template.NotBefore, template.NotAfter = time.Now().Add(-300*24*time.Hour), time.Now().Add(60*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Leaf, old.Leaf.PublicKey, ca.PrivateKey)
	if err := errors.Join(err, os.Remove(l.CAKey())); err != nil {
		t.Fatal(err)
	}
	put(t, l.Cert(pki.NameHealth), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

func textOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// restartLoop kills a load balancer as soon as Prometheus has seen it, as a process
// dies that systemd starts again and again.
func restartLoop(t *testing.T) scene {
	lb, _ := twoBackends(t)
	return scene{
		balancers: []*kthwtest.Controller{lb},
		make: func(p *server) {
			for i := range 3 {
				lb.Signal(t, syscall.SIGKILL)
				lb.Wait(t, kthwtest.Soon)
				lb = kthwtest.Start(t, kthwtest.Options{File: lb.File(), Ports: &lb.Ports})
				kthwtest.WaitFor(t, "a scrape of the new process", kthwtest.Soon, func() error {
					n, err := p.values(fmt.Sprintf("changes(process_start_time_seconds[5m]) > %d", i))
					if err == nil && n == 0 {
						err = errors.New("none")
					}
					return err
				})
			}
		},
		mend: func(*server) {}, // nothing kills it any more
	}
}

// otherSettings kills a controller, starts it with another service range, and sends it a
// token that its own key has signed for another issuer.
func otherSettings(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{})
	token := tokenFor(t, pki.Layout{Dir: c.Dir}, "https://other.example")
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			c.Signal(t, syscall.SIGKILL)
			c.Wait(t, kthwtest.Soon)
			c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: []string{"--service-cluster-ip-range=10.96.0.0/16"}})
			config := rest.AnonymousClientConfig(c.RESTConfig(t))
			config.BearerToken = token
			client := kubernetes.NewForConfigOrDie(config)
			againUntil(t, p, func(int) {
				if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
					t.Errorf("a token of another issuer: got %v, want it refused", err)
				}
			}, "KthwdTokensRefused")
		},
		mend: func(*server) {
			c.Signal(t, syscall.SIGTERM)
			c.Wait(t, kthwtest.Soon)
			c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
		},
	}
}

// revokedUser lets a user come to the API server after the user's revocation, and a second machine
// to the join port with the token of the first.
func revokedUser(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{})
	kubeconfig := filepath.Join(t.TempDir(), "jane.kubeconfig")
	verb := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), append(args, "--config=", "--data-dir="+c.Dir)...).CombinedOutput()
		if err != nil {
			t.Fatalf("kthwd %s: %v: %s", args[:2], err, out)
		}
		return string(out)
	}
	verb("kubeconfig", "create", "jane", "--out="+kubeconfig)
	verb("kubeconfig", "revoke", "jane")
	token, err := member.ParseToken(regexp.MustCompile(`kthwd1\.\S+`).FindString(verb("member", "add", "c1", "127.0.0.2", "--from=127.0.0.1")))
	if err != nil {
		t.Fatal(err)
	}
	join := func(joiner string) int { return askToJoin(t, c, token, joiner) }
	if code := join(member.NewJoiner()); code != http.StatusOK {
		t.Fatalf("the first use of a join token: got %d", code)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			againUntil(t, p, func(int) {
				if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err == nil {
					t.Error("the user is not refused")
				}
				if code := join(member.NewJoiner()); code == http.StatusOK {
					t.Error("a second use of a join token is not refused")
				}
			}, "KthwdRevokedCertificateUsed", "KthwdJoinTokenReused")
		},
		mend: func(*server) {}, // the user stays away
	}
}

// askToJoin asks for the files of the cluster, as kthwd join does, and returns the code of the answer.
func askToJoin(t *testing.T, c *kthwtest.Controller, token member.Token, joiner string) int {
	t.Helper()
	var v member.Versions
	said, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "version", "--output=json").Output()
	if err := errors.Join(err, json.Unmarshal(said, &v)); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(member.Request{ID: token.ID, Secret: token.Secret, Joiner: joiner, KnowsEtcdCA: true, Versions: v})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: kthwtest.Soon, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Post(fmt.Sprintf("https://%s:%d%s", c.Address, c.Ports.Join, member.FilesPath), "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// tokenFor signs a token with the cluster's own key.
func tokenFor(t *testing.T, l pki.Layout, issuer string) string {
	t.Helper()
	private, err := keyutil.PrivateKeyFromFile(l.Key(pki.NameServiceAccount))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der) // kubernetes/pkg/serviceaccount/jwt.go: keyIDFromPublicKey
	key := jose.JSONWebKey{Key: private, KeyID: base64.RawURLEncoding.EncodeToString(sum[:])}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{Issuer: issuer, Subject: "system:serviceaccount:default:default", Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}).CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
