// Package names holds the programs that the binary of kthwd also is to upstream's own.
package names

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	linked "kthwd/appliance/names"
	"kthwd/test/kthwtest"
)

// links makes a directory with a link to kthwd for each program.
func links(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range linked.All {
		if err := os.Symlink(kthwtest.Binary(t), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// outcome is all that a caller sees of a program.
type outcome struct {
	code           int
	stdout, stderr string
}

// run runs a program with nothing of this process' environment but env. home is its working
// directory, too.
func run(t *testing.T, home string, env []string, path string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = home, &stdout, &stderr
	cmd.Env = append([]string{"HOME=" + home, "PATH=/usr/bin:/bin"}, env...)
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", path, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// moments are what differs from one run of a program to the next: times, process numbers,
// addresses in memory.
var moments = regexp.MustCompile(`[IWEF][0-9]{4} [0-9:.]+ +[0-9]+|"ts":"[^"]*"|\d{4}-\d\d-\d\d[ T][0-9:.]+Z?|0x[0-9a-f]{6,}`)

// foreignGate is a feature gate that kube-controller-manager registers for its whole process, and
// so for a kube-scheduler in the same binary: the one known difference.
var foreignGate = regexp.MustCompile(`(?m)^ +kube:ControllerManagerReleaseLeaderElectionLockOnExit=.*\n`)

// same requires the linked program to do on a command line what upstream's does.
func same(t *testing.T, dir, own string, env []string, args ...string) outcome {
	t.Helper()
	home := t.TempDir()
	return sameAs(t, run(t, home, env, own, args...), home, dir, own, env, args...)
}

// sameAs is same where upstream's program has been run already, in home.
func sameAs(t *testing.T, want outcome, home, dir, own string, env []string, args ...string) outcome {
	t.Helper()
	got := run(t, home, env, filepath.Join(dir, filepath.Base(own)), args...)
	clean := func(text string) string {
		for _, in := range []string{dir, filepath.Dir(own)} { // etcd logs its command line
			text = strings.ReplaceAll(text, in+"/", "")
		}
		text = moments.ReplaceAllString(text, "…")
		if filepath.Base(own) == "kube-scheduler" {
			text = foreignGate.ReplaceAllString(text, "")
		}
		if linked.Completes(args) { // kubectl lists some words in the order of a map
			lines := strings.SplitAfter(text, "\n")
			slices.Sort(lines)
			text = strings.Join(lines, "")
		}
		return text
	}
	for _, o := range []*outcome{&got, &want} {
		o.stdout, o.stderr = clean(o.stdout), clean(o.stderr)
	}
	if got != want {
		t.Errorf("%s %s %s: %s", strings.Join(env, " "), filepath.Base(own), strings.Join(args, " "), difference(got, want))
	}
	return got
}

func difference(got, want outcome) string {
	if got.code != want.code {
		return fmt.Sprintf("got exit code %d, want %d\n%s", got.code, want.code, got.stderr)
	}
	for _, s := range []struct{ name, got, want string }{{"standard output", got.stdout, want.stdout}, {"standard error", got.stderr, want.stderr}} {
		a, b := strings.Split(s.got, "\n"), strings.Split(s.want, "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				return fmt.Sprintf("%s, line %d: got %q, want %q", s.name, i+1, a[i], b[i])
			}
		}
		if len(a) != len(b) {
			return fmt.Sprintf("%s: got %d lines, want %d", s.name, len(a), len(b))
		}
	}
	return ""
}

// TestKubectlIsUpstreams compares every command of kubectl, every flag and the ends that it comes to.
func TestKubectlIsUpstreams(t *testing.T) {
	dir, own := links(t), kthwtest.Kubectl(t)
	english, far := []string{"LANG=C.UTF-8"}, "--server=https://127.0.0.1:1"
	commands := 0
	var walk func(path ...string)
	walk = func(path ...string) {
		home := t.TempDir()
		help := run(t, home, english, own, append(path, "--help")...)
		// Below "get" and others, the names of what they take follow, not commands.
		if len(path) > 0 && !isHelpOf(help, path) {
			return
		}
		commands++
		sameAs(t, help, home, dir, own, english, append(path, "--help")...)
		list := same(t, dir, own, english, append(append([]string{"__completeNoDesc"}, path...), "")...)
		for line := range strings.Lines(list.stdout) {
			if name := strings.TrimSpace(line); !strings.HasPrefix(name, ":") {
				walk(append(path[:len(path):len(path)], name)...)
			}
		}
	}
	walk()
	if commands < 80 {
		t.Errorf("compared %d commands, want all, more than 80", commands)
	}
	for _, line := range []string{
		"", "options", "version --client", "version --client -o json", "version --client -o yaml", "completion bash", "completion zsh", "completion fish", "completion powershell",
		"--version", "ge nodes", "get", "nonsense", "get --nonsense", "version " + far, "get nodes " + far, "config view", "api-resources --cached=x", "__complete get --out", "__complete config set-c",
		"create deployment web --image=nginx --dry-run=client -o yaml " + far, "create configmap c --from-literal=a=b --dry-run=client -o json", "plugin list", "kustomize .", "-v=6 version --client",
	} {
		same(t, dir, own, english, strings.Fields(line)...)
	}
	for _, language := range []string{"LANG=fr_FR.UTF-8", "LC_ALL=ja_JP.UTF-8", "LC_MESSAGES=de_DE.UTF-8", "LANG=en_US.UTF-8", "LANG=en_GB.UTF-8", "LANG=xx", "LC_ALL=C", "LANG="} {
		same(t, dir, own, []string{language}, "--help")
		same(t, dir, own, []string{language}, "config", "set-context", "--help")
	}
}

// isHelpOf reports whether upstream's kubectl has the command, by the first line of its usage.
func isHelpOf(help outcome, path []string) bool {
	return help.code == 0 && strings.Contains(help.stdout+help.stderr, "Usage:\n  kubectl "+strings.Join(path, " ")+" ")
}

// TestProgramsAreUpstreams compares the others. It links six programs, which takes minutes the first time.
func TestProgramsAreUpstreams(t *testing.T) {
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("set KTHWD_E2E=1 to link upstream's programs and compare")
	}
	dir := links(t)
	tools := filepath.Join(kthwtest.Root(), "bin", "tools")
	for name, lines := range map[string][]string{
		"etcd":                    {"--version", "--help", "-h", "--nonsense", "--config-file=/nowhere", "gateway --help", "gateway start --help", "grpc-proxy --help", "grpc-proxy start --help", "grpc-proxy start --nonsense", "extra"},
		"etcdctl":                 {"", "version", "--help", "help", "get --help", "ver", "nonsense", "--nonsense", "completion bash", "completion zsh", "member --help", "snapshot --help", "snap status x", "--endpoints=127.0.0.1:1 --dial-timeout=100ms --command-timeout=100ms endpoint health", "__complete ge", "__complete --write-out j"},
		"etcdutl":                 {"", "version", "--help", "help", "ver", "nonsense", "--nonsense", "completion bash", "snapshot --help", "snapshot status /nowhere", "defrag", "migrate --help", "hashkv /nowhere", "__complete --write-out j", "-w json version"},
		"kube-apiserver":          {"--version", "--version=raw", "--help", "--nonsense", "extra", "__complete --audit-l"},
		"kube-controller-manager": {"--version", "--version=raw", "--help", "--nonsense", "extra", "--controllers=nonsense"},
		"kube-scheduler":          {"--version", "--version=raw", "--help", "--nonsense", "extra", "--config=/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			own := filepath.Join(tools, name)
			// Links last minutes of processor time, which the clusters of other packages need at once.
			make := exec.Command("nice", "-n", "19", "make", "-s", "-C", kthwtest.Root(), filepath.Join("bin", "tools", name))
			if out, err := make.CombinedOutput(); err != nil {
				t.Fatalf("build %s: %v\n%s", name, err, out)
			}
			for _, line := range lines {
				same(t, dir, own, nil, strings.Fields(line)...)
			}
		})
	}
}

// TestWaysToAProgram calls each program in the two ways there are.
func TestWaysToAProgram(t *testing.T) {
	dir, home := links(t), t.TempDir()
	version := run(t, home, nil, kthwtest.Binary(t), "version").stdout
	embedded := func(name string) string {
		m := regexp.MustCompile(name + ` +v?([0-9.]+)`).FindStringSubmatch(version)
		if m == nil {
			t.Fatalf("no version of %s in\n%s", name, version)
		}
		return m[1]
	}
	kubernetes, etcd := embedded("kubernetes"), embedded("etcd")
	for name, c := range map[string]struct{ args, want string }{
		"etcd":                    {"--version", "etcd Version: " + etcd},
		"etcdctl":                 {"version", "etcdctl version: " + etcd},
		"etcdutl":                 {"version", "etcdutl version: " + etcd},
		"kube-apiserver":          {"--version", "Kubernetes v" + kubernetes},
		"kube-controller-manager": {"--version", "Kubernetes v" + kubernetes},
		"kube-scheduler":          {"--version", "Kubernetes v" + kubernetes},
		"kubectl":                 {"version --client", "Client Version: v" + kubernetes},
	} {
		args := strings.Fields(c.args)
		for _, o := range []outcome{run(t, home, nil, filepath.Join(dir, name), args...), run(t, home, nil, kthwtest.Binary(t), append([]string{"program", name}, args...)...)} {
			if o.code != 0 || !strings.HasPrefix(o.stdout, c.want+"\n") {
				t.Errorf("%s %s: got %+v, want %q", name, c.args, o, c.want)
			}
		}
	}
	for line, want := range map[string]string{
		"program":                        "kthwd: error: program: no name given\nkthwd: hint: programs: etcd, etcdctl, etcdutl, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl\n",
		"program kube-apiserv":           "kthwd: error: program: \"kube-apiserv\" is no program\nkthwd: hint: did you mean kube-apiserver?\n",
		"--log-level=info kubectl get x": "kthwd: error: kubectl: only --data-dir and --config may stand before it\nkthwd: hint: put kubectl's own flags after it: kthwd kubectl get nodes\n",
	} {
		got := run(t, home, []string{"PATH=" + filepath.Dir(kthwtest.Binary(t))}, kthwtest.Binary(t), strings.Fields(line)...)
		if got.code != 2 || got.stderr != want || got.stdout != "" {
			t.Errorf("kthwd %s: got %+v, want exit code 2 and %q", line, got, want)
		}
	}
	for line, want := range map[string]string{
		"__complete program kube-a":                  "kube-apiserver",
		"__complete kube":                            "kubectl",
		"__completeNoDesc kubectl rollo":             "rollout",
		"__completeNoDesc program etcdctl snap":      "snapshot",
		"__completeNoDesc program kubectl api-resou": "api-resources",
	} {
		if got := run(t, home, nil, kthwtest.Binary(t), strings.Fields(line)...); got.code != 0 || !strings.HasPrefix(got.stdout, want) {
			t.Errorf("kthwd %s: got %+v, want %q", line, got, want)
		}
	}
}

// TestKubeconfig is kthwd kubectl beside a running controller.
func TestKubeconfig(t *testing.T) {
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--log-level=kube-apiserver=debug"}}) // for openAPI
	c.WaitReady(t)
	home, dir := t.TempDir(), "--data-dir="+filepath.Dir(c.Kubeconfig("admin"))
	kthwd := func(env, line string) outcome {
		return run(t, home, strings.Fields(env), kthwtest.Binary(t), strings.Fields(line)...)
	}
	for _, line := range []string{dir + " kubectl get namespaces -o name", "kubectl " + dir + " get namespaces -o name"} {
		if got := kthwd("", line); got.code != 0 || !strings.Contains(got.stdout, "namespace/kube-system\n") {
			t.Errorf("kthwd %s: got %+v", line, got)
		}
	}
	if got := kthwd("", "__complete kubectl "+dir+" get namespaces kube-s"); !strings.HasPrefix(got.stdout, "kube-system") {
		t.Errorf("completion of a namespace: got %+v", got)
	}
	// Either version of the OpenAPI document; that of version 2 is built for this one.
	for _, output := range []string{"plaintext", "plaintext-openapiv2"} {
		if got := kthwd("", "kubectl "+dir+" explain deployments.spec.replicas --output="+output); got.code != 0 || !strings.Contains(got.stdout, "Number of desired pods") {
			t.Errorf("explain, %s: got %+v", output, got)
		}
	}
	openAPI(t, c)
	if got := kthwd("", "kubectl "+dir+" get configmap nothing"); got.code != 1 || !strings.HasPrefix(got.stderr, "Error from server (NotFound)") {
		t.Errorf("an object that is not there: got %+v", got)
	}

	// A kubeconfig that the user names wins, also where it does not work.
	empty := filepath.Join(home, "empty")
	if err := os.WriteFile(empty, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: other, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: other, user: {token: nothing}}]\ncontexts: [{name: other, context: {cluster: other, user: other}}]\ncurrent-context: other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, got := range []outcome{kthwd("KUBECONFIG="+empty, "kubectl "+dir+" get nodes"), kthwd("", "kubectl "+dir+" get nodes --kubeconfig="+empty)} {
		if got.code != 1 || !strings.Contains(got.stderr, "127.0.0.1:1 was refused") {
			t.Errorf("with a kubeconfig of another server: got %+v", got)
		}
	}

	// Without a kubeconfig, never that of the home directory.
	if err := os.MkdirAll(filepath.Join(home, ".kube"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(c.Kubeconfig("admin"), filepath.Join(home, ".kube", "config")); err != nil {
		data, errRead := os.ReadFile(c.Kubeconfig("admin"))
		if err := errors.Join(errRead, os.WriteFile(filepath.Join(home, ".kube", "config"), data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if got := kthwd("", "program kubectl get namespaces -o name"); !strings.Contains(got.stdout, "namespace/kube-system\n") {
		t.Errorf("kubectl by its name does not use the home directory: got %+v", got)
	}
	for where, want := range map[string]string{filepath.Join(home, "nowhere"): "nowhere does not exist", home: home + " has no admin.kubeconfig"} {
		got := kthwd("", "kubectl --data-dir="+where+" get namespaces")
		if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, want+"\n") || !strings.Contains(got.stderr, "hint: name the directory of the controller, ") {
			t.Errorf("--data-dir=%s: got %+v, want %q", where, got, want)
		}
		if got := kthwd("", "__complete kubectl --data-dir="+where+" get namespaces kube-s"); strings.Contains(got.stdout, "kube-system") {
			t.Errorf("--data-dir=%s: completion asks the cluster of the home directory: %+v", where, got)
		}
		if got := kthwd("", "kubectl --data-dir="+where+" version --client"); got.code != 0 {
			t.Errorf("--data-dir=%s: version --client: got %+v", where, got)
		}
	}

	// A directory that nobody named, and a kthwd that answers.
	if _, err := os.Stat("/var/lib/kubernetes"); err == nil {
		t.Skip("/var/lib/kubernetes exists, and would be asked")
	}
	config := filepath.Join(home, "kthwd.yaml")
	if err := os.WriteFile(config, []byte("metrics-address: "+fmt.Sprintf("127.0.0.1:%d\n", c.Ports.Metrics)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := kthwd("", "kubectl --config="+config+" get namespaces -o name"); got.code != 0 || !strings.Contains(got.stdout, "namespace/kube-system\n") {
		t.Errorf("through the metrics address: got %+v", got)
	}
}

// TestCheapInitialisation holds what each call of kthwd pays before main: few collections, and
// translations only for a kubectl that needs them.
func TestCheapInitialisation(t *testing.T) {
	dir, home := links(t), t.TempDir()
	const trace = "GODEBUG=inittrace=1,gctrace=1"
	short := run(t, home, []string{trace}, kthwtest.Binary(t), "version").stderr
	early, late := strings.Index(short, "init kthwd/appliance/early "), strings.Index(short, "init k8s.io/kubectl/pkg/cmd/options ")
	if early < 0 || late < early || strings.Index(short, "init net/http ") < early {
		t.Errorf("appliance/early is at %d, kubectl's options at %d: want it first:\n%s", early, late, short)
	}
	// One may have begun before appliance/early, with a heap of 4 MiB.
	own := run(t, home, []string{trace, "GOGC=100"}, kthwtest.Binary(t), "version").stderr
	if few, many := strings.Count(short, "\ngc "), strings.Count(own, "\ngc "); few >= many {
		t.Errorf("the garbage collector ran %d times, with GOGC=100 in the environment %d times; want fewer:\n%s", few, many, short)
	}
	bytesOf := func(trace string) int {
		m := regexp.MustCompile(`init k8s.io/kubectl/pkg/cmd/options .* clock, (\d+) bytes`).FindStringSubmatch(trace)
		if m == nil {
			t.Fatalf("no line of kubectl's options:\n%s", trace)
		}
		var n int
		fmt.Sscan(m[1], &n)
		return n
	}
	english := bytesOf(run(t, home, []string{trace, "LANG=en_US.UTF-8"}, filepath.Join(dir, "kubectl"), "version", "--client").stderr)
	french := bytesOf(run(t, home, []string{trace, "LANG=fr_FR.UTF-8"}, filepath.Join(dir, "kubectl"), "version", "--client").stderr)
	daemon := bytesOf(run(t, home, []string{trace, "LANG=fr_FR.UTF-8"}, kthwtest.Binary(t), "version").stderr)
	if english*10 > french || daemon*10 > french {
		t.Errorf("bytes of the translations: English %d, French %d, kthwd %d; want the first and the last to be nearly nothing", english, french, daemon)
	}
}

// TestEtcdAndServer runs etcd and kube-apiserver by their names, as controller-runtime's
// envtest does, and stops them.
func TestEtcdAndServer(t *testing.T) {
	dir, home := links(t), t.TempDir()
	if o := run(t, home, nil, kthwtest.Binary(t), "pki", "init", "--data-dir="+home+"/pki"); o.code != 0 {
		t.Fatalf("pki init: %+v", o)
	}
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	client := fmt.Sprintf("http://127.0.0.1:%d", ports.EtcdClient)
	start := func(name string, args ...string) func() {
		cmd := exec.Command(filepath.Join(dir, name), args...)
		log := &kthwtest.Log{}
		cmd.Dir, cmd.Stdout, cmd.Stderr = home, log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			if t.Failed() {
				t.Logf("%s:\n%s", name, log.Tail(30))
			}
		})
		return func() {
			_ = cmd.Process.Signal(os.Interrupt)
			select {
			case err := <-done:
				// etcd ends in order and then, by chance, by the same signal or with 0.
				if err != nil && !(name == "etcd" && err.Error() == "signal: interrupt") {
					t.Errorf("%s: %v after SIGINT", name, err)
				}
			case <-time.After(2 * time.Minute):
				t.Errorf("%s does not stop", name)
			}
		}
	}
	stopEtcd := start("etcd", "--data-dir="+home+"/etcd", "--listen-client-urls="+client, "--advertise-client-urls="+client,
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", ports.EtcdPeer), "--unsafe-no-fsync")
	ctl := func(args ...string) error {
		if o := run(t, home, nil, filepath.Join(dir, "etcdctl"), append([]string{"--endpoints=" + client}, args...)...); o.code != 0 {
			return fmt.Errorf("etcdctl %q: %+v", args, o)
		}
		return nil
	}
	kthwtest.WaitFor(t, "etcd by its name", 3*time.Minute, func() error { return ctl("put", "a", "b") })
	key := func(name string) string { return filepath.Join(home, "pki", name) }
	stopServer := start("kube-apiserver", "--etcd-servers="+client, "--cert-dir="+home+"/certs", fmt.Sprintf("--secure-port=%d", ports.Secure), "--bind-address=127.0.0.1",
		"--service-account-issuer=https://kthwd.test", "--service-account-key-file="+key("service-account.pem"), "--service-account-signing-key-file="+key("service-account-key.pem"),
		"--client-ca-file="+key("ca.pem"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24")
	admin := []string{"--kubeconfig=" + key("admin.kubeconfig"), fmt.Sprintf("--server=https://127.0.0.1:%d", ports.Secure), "--insecure-skip-tls-verify"}
	kthwtest.WaitFor(t, "kube-apiserver by its name", 3*time.Minute, func() error {
		if o := run(t, home, nil, filepath.Join(dir, "kubectl"), append(admin, "get", "--raw", "/readyz")...); o.stdout != "ok" {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
	stopServer()
	stopEtcd()
}

// TestPackagedNames requires the tree of the packages to have each name.
func TestPackagedNames(t *testing.T) {
	root, generated := t.TempDir(), t.TempDir()
	if o := run(t, root, nil, kthwtest.Binary(t), "generate", generated); o.code != 0 {
		t.Fatalf("generate: %+v", o)
	}
	for range 2 { // an installation over an installation is the same
		if o := run(t, root, nil, filepath.Join(kthwtest.Root(), "packaging", "install.sh"), root, kthwtest.Binary(t), generated); o.code != 0 {
			t.Fatalf("install.sh: %+v", o)
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "usr/lib/kthwd/bin"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
		to, err := filepath.EvalSymlinks(filepath.Join(root, "usr/lib/kthwd/bin", e.Name()))
		if err != nil || filepath.Base(to) != "kthwd" || filepath.Dir(to) != filepath.Join(root, "usr/bin") {
			t.Errorf("%s: leads to %s, %v; want kthwd in usr/bin", e.Name(), to, err)
		}
	}
	if strings.Join(got, " ") != strings.Join(linked.All, " ") {
		t.Errorf("got %q, want %q", got, linked.All)
	}
	if o := run(t, root, nil, filepath.Join(root, "usr/lib/kthwd/bin/kubectl"), "version", "--client"); o.code != 0 || !strings.HasPrefix(o.stdout, "Client Version: v") {
		t.Errorf("kubectl of the package: got %+v", o)
	}
}
