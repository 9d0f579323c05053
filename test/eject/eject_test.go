// Package eject leaves kthwd and comes back: the four programs are started from the units that
// kthwd eject has written, on the data of a controller, and kthwd goes on after them.
package eject

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/explain"
	"kthwd/appliance/names"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

// links makes a directory with a link to kthwd for each program, as the packages have.
func links(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names.All {
		if err := os.Symlink(kthwtest.Binary(t), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// kthwd runs a verb and returns what it printed.
func kthwd(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestThereAndBack hands a cluster over to four programs, and back.
func TestThereAndBack(t *testing.T) {
	c := kthwtest.Start(t, kthwtest.Options{Env: []string{"TZ=Asia/Tokyo"}})
	token := content(t, c.Client(t))
	before := everything(t, c.RESTConfig(t))

	out, bin := filepath.Join(t.TempDir(), "out"), links(t)
	args := append([]string{"eject", "--names=kthwd", "--bin-dir=" + bin, "--config-dir=" + filepath.Join(out, "config"), "--out=" + out}, c.Args()...)
	offline := kthwd(t, args...)
	for _, want := range []string{"README.txt", "systemd/etcd.service", "config/admission.yaml", "nginx/kubernetes.default.svc.cluster.local"} {
		if !strings.Contains(offline, filepath.Join(out, want)+"\n") {
			t.Errorf("lacks %s:\n%s", want, offline)
		}
	}
	sameAsRunning(t, c, out, args)
	verifyUnits(t, out)

	away := kthwtest.WatchAway(t, c.RESTConfig(t))
	c.Signal(t, syscall.SIGTERM)
	if code := c.Wait(t, kthwtest.Soon); code != 0 {
		t.Fatalf("kthwd ended with %d", code)
	}
	programs := startPrograms(t, out)
	healthy(t, c)
	awayOnce(t, "out", away())

	same(t, "after eject", before, everything(t, c.RESTConfig(t)))
	works(t, c.RESTConfig(t), token, 3)
	closed(t, c, out)
	bridge(t, c, out)
	between := everything(t, c.RESTConfig(t))

	away = kthwtest.WatchAway(t, c.RESTConfig(t))
	for _, p := range slices.Backward(programs) {
		p.stop(t)
	}
	back := kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, NoWait: true})
	healthy(t, back)
	awayOnce(t, "back", away())
	back.WaitReady(t)
	same(t, "with kthwd again", between, everything(t, back.RESTConfig(t)))
	works(t, back.RESTConfig(t), token, 1)
}

// awayOnce requires the API to go away once, and to stay when it is back.
func awayOnce(t *testing.T, way string, a kthwtest.Away) {
	t.Helper()
	t.Logf("the API was away for %v on the way %s", a.Longest, way)
	if a.Times != 1 {
		t.Errorf("the API was away %d times on the way %s, want once", a.Times, way)
	}
}

// sameAsRunning requires --running to write what the configuration does.
func sameAsRunning(t *testing.T, c *kthwtest.Controller, out string, args []string) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "running")
	args = slices.Clone(args)
	args[slices.Index(args, "--out="+out)] = "--out=" + other
	kthwd(t, append(args, "--running")...)
	for _, name := range explain.Names() {
		path := filepath.Join("systemd", name+".service")
		a, errA := os.ReadFile(filepath.Join(out, path))
		b, errB := os.ReadFile(filepath.Join(other, path))
		// The variables of the process are not in its configuration.
		withoutVariables := func(b []byte) string {
			return regexp.MustCompile(`(?m)^EnvironmentFile=.*\n`).ReplaceAllString(string(b), "")
		}
		if err := errors.Join(errA, errB); err != nil || withoutVariables(a) != withoutVariables(b) {
			t.Errorf("%s with --running: got\n%s\nwant\n%s\n%v", path, b, a, err)
		}
	}
	file := filepath.Join(other, "config", "environment")
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "TZ=\"Asia/Tokyo\"\n") {
		t.Errorf("%s: got %q, %v; want TZ", file, data, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: got %v, %v; want mode 0600, for a proxy's password", file, info, err)
	}
}

// content makes the objects that must survive, and returns a service account's token.
func content(t *testing.T, client kubernetes.Interface) string {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(err)
	_, err = client.CoreV1().Secrets("shop").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "password"}, StringData: map[string]string{"is": "swordfish"}}, metav1.CreateOptions{})
	must(err)
	_, err = client.CoordinationV1().Leases("shop").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new("me")}}, metav1.CreateOptions{})
	must(err)
	labels := map[string]string{"app": "web"}
	_, err = client.AppsV1().Deployments("shop").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}}},
		},
	}, metav1.CreateOptions{})
	must(err)
	pods(t, client, 2)
	token, err := client.CoreV1().ServiceAccounts("shop").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(err)
	return token.Status.Token
}

// pods waits until the deployment has that many.
func pods(t *testing.T, client kubernetes.Interface, want int) {
	t.Helper()
	kthwtest.WaitFor(t, fmt.Sprintf("%d pods and the default service account", want), kthwtest.Soon, func() error {
		if _, err := client.CoreV1().ServiceAccounts("shop").Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
			return err
		}
		list, err := client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		if len(left) != want {
			return fmt.Errorf("there are %d", len(left))
		}
		return nil
	})
}

// object is what must stay of one.
type object struct {
	uid     string
	version int64
}

// everything lists all objects of the API, but for Events, which expire.
func everything(t *testing.T, config *rest.Config) map[string]object {
	t.Helper()
	config = rest.CopyConfig(config)
	config.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]object{}
	for gvr := range served(t, config) {
		list, err := client.Resource(gvr).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatalf("list %s: %v", gvr, err)
		}
		for _, o := range list.Items {
			version, _ := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
			all[gvr.GroupResource().String()+" "+o.GetNamespace()+"/"+o.GetName()] = object{string(o.GetUID()), version}
		}
	}
	if len(all) < 100 {
		t.Fatalf("found %d objects: this is not all", len(all))
	}
	return all
}

// served are the resources that can be listed.
func served(t *testing.T, config *rest.Config) map[schema.GroupVersionResource]bool {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := client.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	all := map[schema.GroupVersionResource]bool{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") && r.Name != "events" && r.Name != "componentstatuses" {
				all[gv.WithResource(r.Name)] = true
			}
		}
	}
	return all
}

// same requires all objects, with their UIDs, and no older versions of them.
func same(t *testing.T, when string, before, after map[string]object) {
	t.Helper()
	for name, b := range before {
		if strings.HasPrefix(name, "pods ") && strings.Contains(name, " shop/") {
			continue // the deployment scales
		}
		if strings.HasPrefix(name, "leases.coordination.k8s.io kube-system/apiserver-") {
			continue // of the process: kube-apiserver makes it at a start, and removes it in a stop
		}
		switch a, there := after[name]; {
		case !there:
			t.Errorf("%s: %s is gone", when, name)
		case a.uid != b.uid:
			t.Errorf("%s: %s has the UID %s, had %s", when, name, a.uid, b.uid)
		case a.version < b.version:
			t.Errorf("%s: %s has the resourceVersion %d, had %d", when, name, a.version, b.version)
		}
	}
}

// works requires the secret to be readable, the token to be valid, and the controllers to act.
func works(t *testing.T, config *rest.Config, token string, replicas int) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := client.CoreV1().Secrets("shop").Get(t.Context(), "password", metav1.GetOptions{})
	if err != nil || string(secret.Data["is"]) != "swordfish" {
		t.Errorf("the secret: got %q, %v", secret.Data["is"], err)
	}
	lease, err := client.CoordinationV1().Leases("shop").Get(t.Context(), "mine", metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "me" {
		t.Errorf("the lease: got %v, %v", lease.Spec, err)
	}
	bearer := rest.AnonymousClientConfig(config)
	bearer.BearerToken = token
	asAccount, err := kubernetes.NewForConfig(bearer)
	if err != nil {
		t.Fatal(err)
	}
	who, err := asAccount.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:shop:default" {
		t.Errorf("the token: got %v, %v", who, err)
	}
	scale, err := client.AppsV1().Deployments("shop").GetScale(t.Context(), "web", metav1.GetOptions{})
	if err == nil {
		scale.Spec.Replicas = int32(replicas)
		_, err = client.AppsV1().Deployments("shop").UpdateScale(t.Context(), "web", scale, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	pods(t, client, replicas)
	kthwtest.WaitFor(t, "a scheduler that looks at the pods", kthwtest.Soon, func() error {
		list, err := client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled }) {
				return fmt.Errorf("%s was not looked at", p.Name)
			}
		}
		return nil
	})
}

// closed requires etcd to refuse a certificate of its CA that is no controller's: here one with
// the right CA and another name.
func closed(t *testing.T, c *kthwtest.Controller, out string) {
	t.Helper()
	argv := command(t, filepath.Join(out, "systemd", "etcd.service"))
	for _, want := range []string{"--client-cert-allowed-hostname=kubernetes.default,kubernetes.default.svc,kubernetes.default.svc.cluster.local", "--peer-cert-allowed-cn=kubernetes"} {
		if !slices.Contains(argv, want) {
			t.Errorf("etcd lacks %s", want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if r, err := c.Etcd(t).MemberList(ctx); err != nil || len(r.Members) != 1 {
		t.Errorf("a controller's certificate: got %v, %v", r, err)
	}
	stranger := strangersPair(t, pki.Layout{Dir: c.Dir})
	conn, err := tls.Dial("tcp", net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.EtcdClient)), &tls.Config{Certificates: []tls.Certificate{stranger}, InsecureSkipVerify: true})
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1)) // the refusal is the first answer
	}
	if err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("a stranger's certificate: got %v, want it refused", err)
	}
}

// healthy waits until the API server is ready.
func healthy(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	kthwtest.WaitFor(t, "ready API server", 3*time.Minute, func() error {
		client, err := kubernetes.NewForConfig(c.RESTConfig(t))
		if err != nil {
			return err
		}
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
}

// bridge starts nginx with the file for the health bridge.
func bridge(t *testing.T, c *kthwtest.Controller, out string) {
	t.Helper()
	dir := nginx(t, fmt.Sprintf("http {\n access_log off;\n include %s;\n}\n", filepath.Join(out, "nginx", "kubernetes.default.svc.cluster.local")))
	cmd := exec.Command(nginxPath, "-p", dir, "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		_ = cmd.Wait()
	}()
	url := "http://" + net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Health)) + "/healthz"
	kthwtest.WaitFor(t, "nginx as the health bridge", kthwtest.Soon, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			return fmt.Errorf("%s\n%s", resp.Status, log)
		}
		return nil
	})
}

// command is the command line of a unit, as systemd reads it. Whole words may be quoted.
func command(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, o := range options {
		if o.Section == "Service" && o.Name == "ExecStart" {
			line := strings.ReplaceAll(o.Value, "\\\n", " ")
			words := strings.Fields(line)
			for i, w := range words {
				if inner, ok := strings.CutPrefix(w, `"`); ok && strings.HasSuffix(inner, `"`) {
					words[i] = strings.TrimSuffix(inner, `"`)
				}
				if strings.ContainsAny(words[i], `"'\%$`) {
					t.Fatalf("%s: a word that this test cannot read: %s", path, w)
				}
			}
			return words
		}
	}
	t.Fatalf("%s has no ExecStart=", path)
	return nil
}

// process is a program that runs as its unit says.
type process struct {
	name string
	cmd  *exec.Cmd
	log  kthwtest.Log
	done chan struct{}
}

// startPrograms starts the four in the order of their units: a program follows when the one
// before has told systemd that it serves.
func startPrograms(t *testing.T, out string) (all []*process) {
	t.Helper()
	for _, name := range explain.Names() {
		argv := command(t, filepath.Join(out, "systemd", name+".service"))
		p := &process{name: name, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
		socket := filepath.Join(t.TempDir(), "notify")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p.cmd.Env = []string{"PATH=/usr/bin:/bin", "NOTIFY_SOCKET=" + socket}
		p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
		if err := p.cmd.Start(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		go func() {
			_ = p.cmd.Wait()
			close(p.done)
		}()
		t.Cleanup(func() { p.stop(t) })
		all = append(all, p)
		if name == program.Etcd || name == program.APIServer {
			p.awaitReady(t, conn)
		}
	}
	return all
}

// awaitReady waits for READY=1.
func (p *process) awaitReady(t *testing.T, conn *net.UnixConn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Minute))
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%s does not tell systemd that it serves: %v\n%s", p.name, err, p.log.Tail(40))
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return
		}
	}
}

// stop ends the program as systemd does.
func (p *process) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(90 * time.Second): // DefaultTimeoutStopSec=
		t.Errorf("%s did not stop within 90 s", p.name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if t.Failed() {
		t.Logf("log of %s:\n%s", p.name, p.log.Tail(40))
	}
}
