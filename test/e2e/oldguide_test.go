package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestOldGuide gives kthwd the guide of 2019 word for word: all flags of its
// three unit files (testdata/guide) as pass-through arguments, its scheduler
// file, and the files that cfssl and kubectl made. Each old word is one warning,
// and the cluster works.
func TestOldGuide(t *testing.T) {
	if !onOwnMachine(t, "10.0.1.48/24") {
		return
	}
	home := t.TempDir()
	makeOldFiles(t, home)
	installOldFiles(t, home)

	c := kthwtest.Start(t, kthwtest.Options{Plain: true, Args: guideArgs(t)})
	t.Run("warnings", func(t *testing.T) {
		wantWarnings(t, c, append(oldFileWarnings("/etc/kubernetes/config/kube-scheduler.yaml"), oldFlagWarnings...))
	})
	t.Run("cluster", func(t *testing.T) { tryOldCluster(t, c, home) })
	t.Run("files", func(t *testing.T) { wantKept(t, c.Dir, home) })
	stop(t, c)

	t.Run("found in the data directory", func(t *testing.T) { tryFoundFiles(t, c, home) })
}

// installOldFiles is the guide's cp and mv into /var/lib/kubernetes.
func installOldFiles(t *testing.T, home string) {
	t.Helper()
	if err := os.MkdirAll("/var/lib/kubernetes", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("ca.pem ca-key.pem kubernetes-key.pem kubernetes.pem service-account-key.pem service-account.pem" +
		" encryption-config.yaml kube-controller-manager.kubeconfig kube-scheduler.kubeconfig") {
		writeFile(t, filepath.Join("/var/lib/kubernetes", name), readFile(t, filepath.Join(home, name)))
	}
	writeFile(t, "/etc/kubernetes/config/kube-scheduler.yaml", readFile(t, "testdata/guide/kube-scheduler.yaml"))
}

// guideArgs are the flags of the guide's unit files.
func guideArgs(t *testing.T) []string {
	t.Helper()
	variables := strings.NewReplacer("${INTERNAL_IP}", "10.0.1.48", "$CONTROLLER0_IP", "10.0.1.48", "$CONTROLLER1_IP", "10.0.1.239")
	var args []string
	for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		unit := readFile(t, "testdata/guide/"+program+".service")
		for line := range strings.SplitSeq(unit, "\n") {
			flag, isFlag := strings.CutPrefix(strings.TrimSuffix(line, " \\"), "  --")
			if isFlag {
				args = append(args, "--"+program+"-arg="+variables.Replace(flag))
			}
		}
	}
	if len(args) != 30+12+2 {
		t.Fatalf("got %d flags in testdata/guide: %q", len(args), args)
	}
	return args
}

// oldFlagWarnings are the guide's words that today's programs do not know, or
// that have no meaning in one process.
var oldFlagWarnings = []string{
	"kube-apiserver: --apiserver-count=3 dropped",
	"kube-apiserver: --enable-admission-plugins=Initializers,NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota" +
		" read as --enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota",
	"kube-apiserver: --enable-swagger-ui=true dropped",
	"kube-apiserver: --experimental-encryption-provider-config=/var/lib/kubernetes/encryption-config.yaml read as --encryption-provider-config=/var/lib/kubernetes/encryption-config.yaml",
	"kube-apiserver: --kubelet-https=true dropped",
	"kube-apiserver: --runtime-config=api/all read as --runtime-config=api/all=true",
	"kube-apiserver: --etcd-cafile=/var/lib/kubernetes/ca.pem dropped",
	"kube-apiserver: --etcd-certfile=/var/lib/kubernetes/kubernetes.pem dropped",
	"kube-apiserver: --etcd-keyfile=/var/lib/kubernetes/kubernetes-key.pem dropped",
	"kube-apiserver: --etcd-servers=https://10.0.1.48:2379,https://10.0.1.239:2379 dropped",
	"kube-controller-manager: --address=0.0.0.0 read as --bind-address=0.0.0.0",
}

// oldFileWarnings are about the guide's files.
func oldFileWarnings(scheduler string) []string {
	return []string{
		"/var/lib/kubernetes/encryption-config.yaml: kind EncryptionConfig, apiVersion v1 is read as kind EncryptionConfiguration, apiVersion apiserver.config.k8s.io/v1",
		scheduler + ": apiVersion componentconfig/v1alpha1 is read as kubescheduler.config.k8s.io/v1",
		"/var/lib/kubernetes/kubernetes.pem: not valid for kubernetes, ",
	}
}

// wantWarnings wants these, once each, and no other warning of kthwd's own.
func wantWarnings(t *testing.T, c *kthwtest.Controller, want []string) {
	t.Helper()
	var got []string
	for line := range strings.SplitSeq(c.Log.String(), "\n") {
		// Not those about variables that this machine happens to have.
		if strings.Contains(line, "level=WARN component=kthwd ") && !strings.Contains(line, "variable of the environment") {
			got = append(got, line)
		}
	}
	for _, w := range want {
		n := 0
		for _, line := range got {
			if strings.Contains(line, w) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("got %d warnings, want 1: %s", n, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d warnings, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
}

// tryOldCluster works with the administrator's kubeconfig that the guide made.
func tryOldCluster(t *testing.T, c *kthwtest.Controller, home string) {
	out := run(t, kthwtest.Kubectl(t), "get", "componentstatuses", "--kubeconfig", filepath.Join(home, "admin.kubeconfig"))
	if strings.Count(out, "Healthy") != 3 {
		t.Errorf("componentstatuses: want 3 Healthy:\n%s", out)
	}
	tryRBACSeed(t, c)
	tryDeployment(t, c)
	c.Kubectl(t, "-n", namespace, "create", "secret", "generic", secretName, "--from-literal=number="+plaintext)
	wantSecret(t, c, "https://10.0.1.48:2379", "aescbc")
	wantAudited(t, "/var/log/audit.log")
	tryOldToken(t, c)
}

// tryOldToken asks with a token, which service-account-key.pem signs and
// service-account.pem proves.
func tryOldToken(t *testing.T, c *kthwtest.Controller) {
	token := strings.TrimSpace(c.Kubectl(t, "-n", namespace, "create", "token", "default"))
	who := run(t, kthwtest.Kubectl(t), "--kubeconfig", "/dev/null", "--server=https://127.0.0.1:6443", "--certificate-authority="+filepath.Join(c.Dir, "ca.pem"),
		"--token="+token, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
	if want := "system:serviceaccount:" + namespace + ":default"; who != want {
		t.Errorf("the token is for %q, want %q", who, want)
	}
}

// wantKept checks that the guide's files are as the guide made them.
func wantKept(t *testing.T, dir, home string) {
	t.Helper()
	for _, name := range strings.Fields("ca.pem ca-key.pem kubernetes.pem kubernetes-key.pem service-account.pem service-account-key.pem" +
		" encryption-config.yaml kube-controller-manager.kubeconfig kube-scheduler.kubeconfig") {
		if readFile(t, filepath.Join(dir, name)) != readFile(t, filepath.Join(home, name)) {
			t.Errorf("%s has been changed", name)
		}
	}
}

// tryFoundFiles starts without arguments: the old files are found.
func tryFoundFiles(t *testing.T, c *kthwtest.Controller, home string) {
	found := filepath.Join(c.Dir, "kube-scheduler.yaml")
	writeFile(t, found, readFile(t, "testdata/guide/kube-scheduler.yaml"))
	again := kthwtest.Start(t, kthwtest.Options{Plain: true})
	wantWarnings(t, again, oldFileWarnings(found))
	wantSecret(t, again, "https://10.0.1.48:2379", "aescbc")
	again.Kubectl(t, "-n", namespace, "scale", "deployment", "web", "--replicas=3")
	beat(t, again)
	waitBound(t, again, "web", 3)
	wantKept(t, again.Dir, home)
	stop(t, again)

	// An old file that names no kubeconfig meant the insecure port, which is gone.
	writeFile(t, found, "apiVersion: kubescheduler.config.k8s.io/v1alpha1\nkind: KubeSchedulerConfiguration\n")
	stop(t, kthwtest.Start(t, kthwtest.Options{Plain: true}))
}
