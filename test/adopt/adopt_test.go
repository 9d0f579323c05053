// Package adopt runs a control plane of four separate programs, and lets kthwd go on with it.
package adopt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

func TestMain(m *testing.M) {
	kthwtest.TakeTurns(1)
	os.Exit(m.Run())
}

// names are the programs in the order of their start.
var names = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// plant is a control plane as the guide makes it, below a directory in place of /.
type plant struct {
	root, data, etcd string // the machine, the guide's /var/lib/kubernetes, /var/lib/etcd
	ports            kthwtest.Ports
	admin            *rest.Config
	words            map[string][]string
	running          map[string]*exec.Cmd
	logs             map[string]*bytes.Buffer
}

// newPlant makes the guide's files and units.
func newPlant(t *testing.T) *plant {
	t.Helper()
	p := &plant{root: t.TempDir(), ports: kthwtest.FreePorts(t, "127.0.0.1"), running: map[string]*exec.Cmd{}, logs: map[string]*bytes.Buffer{}}
	p.data, p.etcd = filepath.Join(p.root, "var/lib/kubernetes"), filepath.Join(p.root, "var/lib/etcd")
	made := pki.Layout{Dir: filepath.Join(t.TempDir(), "made")}
	server := "https://127.0.0.1:" + strconv.Itoa(p.ports.Secure)
	if _, err := pki.Ensure(made, pki.Spec{Local: []string{"127.0.0.1"}, ServiceIP: net.IPv4(10, 32, 0, 1), Server: server}); err != nil {
		t.Fatal(err)
	}
	give := func(dir string, files ...string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			data, err := os.ReadFile(filepath.Join(made.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	give(p.data, "ca.pem", "ca-key.pem", "kubernetes.pem", "kubernetes-key.pem", "service-account.pem", "service-account-key.pem",
		"encryption-config.yaml", "kube-controller-manager.kubeconfig")
	give(filepath.Join(p.root, "etc/etcd"), "ca.pem", "kubernetes.pem", "kubernetes-key.pem")
	give(filepath.Join(p.root, "etc/kubernetes"), "kube-scheduler.kubeconfig")
	admin, err := clientcmd.BuildConfigFromFlags("", made.Kubeconfig(pki.NameSuperAdmin))
	if err != nil {
		t.Fatal(err)
	}
	p.admin = admin
	scheduler := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nclientConnection:\n  kubeconfig: " + p.root + "/etc/kubernetes/kube-scheduler.kubeconfig\nleaderElection:\n  leaderElect: true\n"
	if err := os.WriteFile(filepath.Join(p.root, "etc/kubernetes/kube-scheduler.yaml"), []byte(scheduler), 0o600); err != nil {
		t.Fatal(err)
	}
	p.units(t)
	return p
}

// units writes the guide's units with the flags that today's programs still have, and with ports that are free.
func (p *plant) units(t *testing.T) {
	t.Helper()
	at := func(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
	etc, lib := p.root+"/etc/etcd", p.data
	p.words = map[string][]string{
		"etcd": {
			"--name", "controller-0", "--cert-file=" + etc + "/kubernetes.pem", "--key-file=" + etc + "/kubernetes-key.pem",
			"--peer-cert-file=" + etc + "/kubernetes.pem", "--peer-key-file=" + etc + "/kubernetes-key.pem",
			"--trusted-ca-file=" + etc + "/ca.pem", "--peer-trusted-ca-file=" + etc + "/ca.pem", "--peer-client-cert-auth", "--client-cert-auth",
			"--initial-advertise-peer-urls", "https://" + at(p.ports.EtcdPeer), "--listen-peer-urls", "https://" + at(p.ports.EtcdPeer),
			"--listen-client-urls", "https://" + at(p.ports.EtcdClient), "--advertise-client-urls", "https://" + at(p.ports.EtcdClient),
			"--initial-cluster-token", "etcd-cluster-0", "--initial-cluster", "controller-0=https://" + at(p.ports.EtcdPeer),
			"--initial-cluster-state", "new", "--data-dir=" + p.etcd,
		},
		"kube-apiserver": {
			"--advertise-address=127.0.0.1", "--allow-privileged=true", "--audit-log-maxage=30", "--audit-log-maxbackup=3", "--audit-log-maxsize=100",
			"--audit-log-path=" + p.root + "/audit.log", "--authorization-mode=Node,RBAC", "--bind-address=127.0.0.1", "--client-ca-file=" + lib + "/ca.pem",
			"--enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota",
			"--endpoint-reconciler-type=none", // on loopback
			"--etcd-cafile=" + lib + "/ca.pem", "--etcd-certfile=" + lib + "/kubernetes.pem", "--etcd-keyfile=" + lib + "/kubernetes-key.pem",
			"--etcd-servers=https://" + at(p.ports.EtcdClient), "--event-ttl=1h", "--encryption-provider-config=" + lib + "/encryption-config.yaml",
			"--kubelet-certificate-authority=" + lib + "/ca.pem", "--kubelet-client-certificate=" + lib + "/kubernetes.pem", "--kubelet-client-key=" + lib + "/kubernetes-key.pem",
			"--runtime-config=api/all=true", "--secure-port=" + strconv.Itoa(p.ports.Secure), "--service-account-issuer=https://hand.made",
			"--service-account-key-file=" + lib + "/service-account.pem", "--service-account-signing-key-file=" + lib + "/service-account-key.pem",
			"--service-cluster-ip-range=10.32.0.0/24", "--service-node-port-range=30000-32767",
			"--tls-cert-file=" + lib + "/kubernetes.pem", "--tls-private-key-file=" + lib + "/kubernetes-key.pem", "--v=2",
		},
		"kube-controller-manager": {
			"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(p.ports.ControllerManager), "--cluster-cidr=10.200.0.0/16", "--cluster-name=kubernetes",
			"--cluster-signing-cert-file=" + lib + "/ca.pem", "--cluster-signing-key-file=" + lib + "/ca-key.pem",
			"--kubeconfig=" + lib + "/kube-controller-manager.kubeconfig", "--leader-elect=true", "--root-ca-file=" + lib + "/ca.pem",
			"--service-account-private-key-file=" + lib + "/service-account-key.pem", "--service-cluster-ip-range=10.32.0.0/24",
			"--use-service-account-credentials=true", "--v=2",
		},
		"kube-scheduler": {"--config=" + p.root + "/etc/kubernetes/kube-scheduler.yaml", "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(p.ports.Scheduler), "--v=2"},
	}
	for _, dir := range []string{"etc/systemd/system", "usr/local/bin"} {
		if err := os.MkdirAll(filepath.Join(p.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		if err := os.Symlink(kthwtest.Binary(t), p.exe(name)); err != nil {
			t.Fatal(err)
		}
		p.unit(t, name, p.exe(name)+" \\\n  "+strings.Join(p.words[name], " \\\n  "))
	}
}

func (p *plant) exe(name string) string { return filepath.Join(p.root, "usr/local/bin", name) }

// unit writes the unit of a program.
func (p *plant) unit(t *testing.T, name, start string) {
	t.Helper()
	text := "[Unit]\nDescription=" + name + "\n\n[Service]\nExecStart=" + start + "\nRestart=on-failure\n\n[Install]\nWantedBy=multi-user.target\n"
	if err := os.WriteFile(filepath.Join(p.root, "etc/systemd/system", name+".service"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a program with the flags of its unit.
func (p *plant) start(t *testing.T, name string) {
	t.Helper()
	cmd, log := exec.Command(p.exe(name), p.words[name]...), &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.running[name], p.logs[name] = cmd, log
	t.Cleanup(func() {
		p.stop(name)
		if t.Failed() {
			lines := strings.Split(log.String(), "\n")
			t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
	})
}

// stop ends a program and waits for it.
func (p *plant) stop(name string) {
	cmd := p.running[name]
	if cmd == nil {
		return
	}
	delete(p.running, name)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	ended := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer ended.Stop()
	_ = cmd.Wait()
}

// startAll starts the four programs and waits until the API server is ready.
func (p *plant) startAll(ctx context.Context, t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(p.admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		p.start(t, name)
	}
	kthwtest.WaitFor(t, "the four programs", kthwtest.Soon, func() error {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	return client
}

// stopAll stops the four programs, etcd last.
func (p *plant) stopAll() {
	for _, name := range slices.Backward(names) {
		p.stop(name)
	}
}

// adopt runs kthwd adopt on the plant.
func (p *plant) adopt(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(kthwtest.Binary(t), append([]string{"adopt", "--root=" + p.root}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// kubernetesVersion is the version of Kubernetes in the binary.
func kubernetesVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), "program", "kube-apiserver", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[1]
}

// resources are those whose objects are compared.
var resources = []schema.GroupVersionResource{
	{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "secrets"}, {Version: "v1", Resource: "configmaps"}, {Version: "v1", Resource: "serviceaccounts"},
	{Version: "v1", Resource: "services"}, {Group: "apps", Version: "v1", Resource: "deployments"}, {Group: "apps", Version: "v1", Resource: "replicasets"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, {Version: "v1", Resource: "pods"}, {Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"},
}

// objects returns every object by its place.
func objects(ctx context.Context, t *testing.T, config *rest.Config) map[string]unstructured.Unstructured {
	t.Helper()
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]unstructured.Unstructured{}
	for _, r := range resources {
		list, err := client.Resource(r).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			all[r.Resource+" "+o.GetNamespace()+"/"+o.GetName()] = o
		}
	}
	return all
}

// write makes the content, and returns a token of a service account.
func write(ctx context.Context, t *testing.T, client kubernetes.Interface) (token string) {
	t.Helper()
	make := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("make %s: %v", what, err)
		}
	}
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	make("a namespace", err)
	kthwtest.WaitFor(t, "the default service account", kthwtest.Soon, func() error {
		_, err := client.CoreV1().ServiceAccounts("shop").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	_, err = client.CoreV1().Secrets("shop").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "card"}, StringData: map[string]string{"number": "4711"}}, metav1.CreateOptions{})
	make("a secret", err)
	_, err = client.CoordinationV1().Leases("shop").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "till"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new("me")}}, metav1.CreateOptions{})
	make("a lease", err)
	labels := map[string]string{"app": "web"}
	replicas := int32(2)
	_, err = client.AppsV1().Deployments("shop").Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}}},
	}}, metav1.CreateOptions{})
	make("a deployment", err)
	request, err := client.CoreV1().ServiceAccounts("shop").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	make("a token", err)
	kthwtest.WaitFor(t, "two pods that the scheduler has looked at", kthwtest.Soon, func() error {
		pods, err := client.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{})
		seen := 0
		for _, pod := range pods.Items {
			seen += len(pod.Status.Conditions)
		}
		if err == nil && seen < 2 {
			err = fmt.Errorf("%d conditions of %d pods", seen, len(pods.Items))
		}
		return err
	})
	return request.Status.Token
}

// A control plane of four programs goes on as kthwd with every object, key and token.
func TestAdopt(t *testing.T) {
	kthwtest.Turn(t, 1)
	ctx := t.Context()
	p := newPlant(t)
	token := write(ctx, t, p.startAll(ctx, t))

	file := filepath.Join(p.root, "kthwd.yaml")
	out, errs, code := p.adopt(t, "--was="+kubernetesVersion(t), "--out="+file)
	if _, err := os.Stat(file); code != 1 || !strings.Contains(errs, "etcd still runs") || err == nil {
		t.Fatalf("while etcd runs: got exit code %d, %v\n%s\n%s", code, err, out, errs)
	}
	before := objects(ctx, t, p.admin)
	p.stopAll()
	listed := tree(t, p.root)
	if out, errs, code = p.adopt(t, "--was="+kubernetesVersion(t)); code != 0 || !strings.Contains(out, "Nothing was written") {
		t.Fatalf("the plan: got exit code %d\n%s\n%s", code, out, errs)
	}
	if now := tree(t, p.root); now != listed {
		t.Errorf("the plan has changed files:\n%s\nwant\n%s", now, listed)
	}
	p.refusals(t)
	p.copies(t)
	if out, errs, code = p.adopt(t, "--was="+kubernetesVersion(t), "--out="+file); code != 0 {
		t.Fatalf("got exit code %d\n%s\n%s", code, out, errs)
	}
	t.Log(out)
	if !strings.Contains(out, "1 were decrypted") {
		t.Errorf("the secret was not decrypted:\n%s", out)
	}
	c := kthwtest.Start(t, kthwtest.Options{Dir: p.data, File: file, Ports: &p.ports})
	p.compare(ctx, t, before, token)
	kept, err := filepath.Glob(filepath.Join(p.data, "kept", "*adoption*", "etcd", "member"))
	if err != nil || len(kept) != 1 {
		t.Errorf("copies before the first start: got %v, %v, want one", kept, err)
	}
	if _, err := c.Client(t).AppsV1().Deployments("shop").Get(ctx, "web", metav1.GetOptions{}); err != nil {
		t.Errorf("with kthwd's own admin.kubeconfig: %v", err)
	}

	again := p.thereAndBack(ctx, t, c, before, token)
	halt(t, again)
	p.startAll(ctx, t)
	p.compare(ctx, t, before, token)
}

// tree lists all files with their sizes and times, without those that a look at them makes.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintf(&b, "%s %d %v %v\n", path, info.Size(), info.Mode(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// compare requires kthwd to serve all that the four programs served.
func (p *plant) compare(ctx context.Context, t *testing.T, before map[string]unstructured.Unstructured, token string) {
	t.Helper()
	after := objects(ctx, t, p.admin)
	for place, was := range before {
		is, there := after[place]
		kind, _, _ := strings.Cut(place, " ")
		switch {
		case strings.HasPrefix(place, "leases kube-system/apiserver-"): // of one process
		case !there:
			t.Errorf("%s is gone", place)
		case is.GetUID() != was.GetUID():
			t.Errorf("%s: got UID %s, want %s", place, is.GetUID(), was.GetUID())
		case (kind == "secrets" || kind == "namespaces" || kind == "serviceaccounts" || place == "leases shop/till") && is.GetResourceVersion() != was.GetResourceVersion():
			t.Errorf("%s: got resource version %s, want %s", place, is.GetResourceVersion(), was.GetResourceVersion())
		}
	}
	if len(before) < 60 {
		t.Errorf("compared %d objects, want more than 60", len(before))
	}
	client, err := kubernetes.NewForConfig(p.admin)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := client.CoreV1().Secrets("shop").Get(ctx, "card", metav1.GetOptions{}); err != nil || string(s.Data["number"]) != "4711" {
		t.Errorf("the secret: got %v, %v, want 4711", s.Data, err)
	}
	bearer := rest.AnonymousClientConfig(p.admin)
	bearer.BearerToken = token
	asAccount, err := kubernetes.NewForConfig(bearer)
	if err != nil {
		t.Fatal(err)
	}
	review, err := asAccount.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "system:serviceaccount:shop:default" {
		t.Errorf("the token: got %v, %v, want the service account", review.Status.UserInfo.Username, err)
	}
}

// replace writes a file anew, and returns what undoes that.
func replace(t *testing.T, path string, data []byte, mode os.FileMode) (undo func()) {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, data, 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.WriteFile(path, was, 0o600), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// refusals tries what cannot be adopted: each is refused with the reason and the way, and nothing is
// written.
func (p *plant) refusals(t *testing.T) {
	unit := func(name string) string { return filepath.Join(p.root, "etc/systemd/system", name+".service") }
	edit := func(name, from, to string) func() (undo func()) {
		return func() func() {
			data, err := os.ReadFile(unit(name))
			if err != nil || !bytes.Contains(data, []byte(from)) {
				t.Fatalf("%s: no %q in it, %v", name, from, err)
			}
			return replace(t, unit(name), bytes.ReplaceAll(data, []byte(from), []byte(to)), 0o600)
		}
	}
	other := pki.Layout{Dir: filepath.Join(t.TempDir(), "other")}
	if _, err := pki.Ensure(other, pki.Spec{Local: []string{"127.0.0.1"}, Server: "https://127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	theirs := func(path string) []byte { return contents(t, path) }
	ofKey := filepath.Join(p.data, "encryption-config.yaml")
	for _, tt := range []struct {
		name, want string
		change     func() (undo func())
		args       []string
	}{
		{"two ExecStart", "has 2 lines ExecStart=", edit("kube-scheduler", "Restart=", "ExecStart="+p.exe("kube-scheduler")+"\nRestart="), nil},
		{"a wrapper script", "not the program itself", edit("kube-apiserver", "ExecStart=", "ExecStart=/opt/start "), nil},
		{"two of a kind", "is described twice", func() func() {
			if err := os.WriteFile(unit("etcd-2"), theirs(unit("etcd")), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(unit("etcd-2")) }
		}, nil},
		{"external etcd", "etcd is elsewhere", func() func() {
			undo, etcd := edit("kube-apiserver", "--etcd-servers=https://127.0.0.1:", "--etcd-servers=https://192.0.2.1:")(), theirs(unit("etcd"))
			os.Remove(unit("etcd"))
			return func() {
				undo()
				if err := os.WriteFile(unit("etcd"), etcd, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, nil},
		{"an old Kubernetes", "a minor must not be skipped", nil, []string{"--was=v1.20.0"}},
		{"a newer Kubernetes", "no way back", nil, []string{"--was=v1.999.0"}},
		{"an unknown Kubernetes", "is not known", nil, []string{"--was="}},
		{"an unknown flag", "no such flag in this version", edit("kube-apiserver", "--allow-privileged=true", "--insecure-port=8080"), nil},
		{"a value of old", "does not take this value", edit("kube-apiserver", "--event-ttl=1h", "--event-ttl=soon"), nil},
		{"etcd of 3.4", "is of etcd 3.4.0", func() func() { return edit("etcd", p.etcd, p.dataOf34(t))() }, nil},
		{"no data", "holds no data of etcd", edit("etcd", p.etcd, p.etcd+"-none"), nil},
		{"damaged data", "is damaged", func() func() { return edit("etcd", p.etcd, p.damaged(t))() }, nil},
		{"another key", "cannot be decrypted", func() func() { return replace(t, ofKey, theirs(other.EncryptionConfig()), 0o600) }, nil},
		{"a key for everybody", "readable or writable by others", func() func() { return replace(t, ofKey, theirs(ofKey), 0o644) }, nil},
		{"an unreadable key", "a directory", func() func() { // root can read every file
			return edit("kube-apiserver", "/encryption-config.yaml", "")()
		}, nil},
		{"another service account key", "not the key of", func() func() {
			return replace(t, filepath.Join(p.data, "service-account-key.pem"), theirs(other.Key(pki.NameServiceAccount)), 0o600)
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				defer tt.change()()
			}
			file := filepath.Join(t.TempDir(), "kthwd.yaml")
			args := tt.args
			if args == nil {
				args = []string{"--was=" + kubernetesVersion(t)}
			}
			out, errs, code := p.adopt(t, append(args, "--out="+file, "--copy-data="+file+".d")...)
			if code != 1 || !strings.Contains(errs, tt.want) || !strings.Contains(errs, "hint: ") {
				t.Errorf("got exit code %d\n%s\n%s\nwant 1, %q and a hint", code, out, errs, tt.want)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) > 0 {
				t.Errorf("written: %v", left)
			}
		})
	}
}

// dataOf34 is a copy of etcd's data that says it is of etcd 3.4.
func (p *plant) dataOf34(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(dir, os.DirFS(p.etcd)); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "member/snap/db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket([]byte("meta")).Delete([]byte("storageVersion")), tx.Bucket([]byte("cluster")).Put([]byte("clusterVersion"), []byte("3.4.0")))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// damaged is a copy of etcd's data without the end of the database.
func (p *plant) damaged(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(dir, os.DirFS(p.etcd)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "member/snap/db"), 3*4096); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copies requires --copy-data to copy etcd's data byte by byte, and to name the copy.
func (p *plant) copies(t *testing.T) {
	dir := t.TempDir()
	file, to := filepath.Join(dir, "kthwd.yaml"), filepath.Join(dir, "etcd")
	if out, errs, code := p.adopt(t, "--was="+kubernetesVersion(t), "--out="+file, "--copy-data="+to); code != 0 {
		t.Fatalf("got exit code %d\n%s\n%s", code, out, errs)
	}
	data, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(data, []byte("etcd-data-dir: "+to+"\n")) {
		t.Errorf("got %s, %v, want the copy in it", data, err)
	}
	for _, name := range []string{"member/snap/db", "member/wal/0000000000000000-0000000000000000.wal"} {
		a, err := os.ReadFile(filepath.Join(p.etcd, name))
		b, err2 := os.ReadFile(filepath.Join(to, name))
		if err != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: the copy differs, %v, %v", name, err, err2)
		}
	}
	if _, errs, code := p.adopt(t, "--was="+kubernetesVersion(t), "--out="+file); code != 1 || !strings.Contains(errs, "kthwd replaces nothing") {
		t.Errorf("over an existing file: got exit code %d, %s", code, errs)
	}
	// Both are made, or none of them.
	for _, tt := range []struct {
		out, copy, want string
		code            int
	}{
		{filepath.Join(dir, strings.Repeat("x", 300)), filepath.Join(dir, "none"), "name too long", 1},
		{filepath.Join(dir, "none.yaml"), filepath.Join(p.etcd, "member", "none"), "in the directory that is copied", 2},
		{filepath.Join(dir, "none", "none.yaml"), filepath.Join(dir, "none"), "mkdir -p " + filepath.Join(dir, "none"), 1},
	} {
		_, errs, code := p.adopt(t, "--was="+kubernetesVersion(t), "--out="+tt.out, "--copy-data="+tt.copy)
		if code != tt.code || !strings.Contains(errs, tt.want) {
			t.Errorf("--out=%.60s --copy-data=%s: got exit code %d, %s, want %d and %q", tt.out, tt.copy, code, errs, tt.code, tt.want)
		}
		for _, path := range []string{tt.out, tt.copy} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%.60s is left", path)
			}
		}
	}
}
