package cmdline_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// translations has each old word once, with its translation and the end of its
// warning. Words without a warning pass unchanged.
var translations = []struct{ program, old, today, warning string }{
	{program.Etcd, "ca-file=/ca", "trusted-ca-file=/ca", "renamed"},
	{program.Etcd, "peer-ca-file=/ca", "peer-trusted-ca-file=/ca", "renamed"},
	{program.Etcd, "debug", "", "set --log-level=etcd=debug"},
	{program.Etcd, "log-package-levels=raft=DEBUG", "", "set --log-level=etcd=LEVEL"},
	{program.Etcd, "enable-v2=true", "", "the v2 API is gone; Kubernetes never needs it"},
	{program.Etcd, "proxy=off", "", "the v2 proxy is gone"},
	{program.Etcd, "proxy=on", "proxy=on", ""},
	{program.Etcd, "experimental-compact-hash-check-time=1m", "compact-hash-check-time=1m", "renamed"},
	{program.Etcd, "experimental-corrupt-check-time=1m", "corrupt-check-time=1m", "renamed"},
	{program.Etcd, "experimental-compaction-batch-limit=7", "compaction-batch-limit=7", "renamed"},
	{program.Etcd, "experimental-watch-progress-notify-interval=1m", "watch-progress-notify-interval=1m", "renamed"},
	{program.Etcd, "experimental-warning-apply-duration=1m", "warning-apply-duration=1m", "renamed"},
	{program.Etcd, "experimental-warning-unary-request-duration=1m", "warning-unary-request-duration=1m", "renamed"},
	{program.Etcd, "experimental-bootstrap-defrag-threshold-megabytes=7", "bootstrap-defrag-threshold-megabytes=7", "renamed"},
	{program.Etcd, "experimental-memory-mlock=true", "memory-mlock=true", "renamed"},
	{program.Etcd, "experimental-snapshot-catchup-entries=7", "snapshot-catchup-entries=7", "renamed"},
	{program.Etcd, "experimental-compaction-sleep-interval=1m", "compaction-sleep-interval=1m", "renamed"},
	{program.Etcd, "experimental-downgrade-check-time=1m", "downgrade-check-time=1m", "renamed"},
	{program.Etcd, "experimental-peer-skip-client-san-verification=true", "peer-skip-client-san-verification=true", "renamed"},
	{program.Etcd, "experimental-enable-distributed-tracing=true", "enable-distributed-tracing=true", "renamed"},
	{program.Etcd, "experimental-distributed-tracing-address=localhost:4317", "distributed-tracing-address=localhost:4317", "renamed"},
	{program.Etcd, "experimental-distributed-tracing-service-name=etcd", "distributed-tracing-service-name=etcd", "renamed"},
	{program.Etcd, "experimental-distributed-tracing-instance-id=x", "distributed-tracing-instance-id=x", "renamed"},
	{program.Etcd, "experimental-distributed-tracing-sampling-rate=7", "distributed-tracing-sampling-rate=7", "renamed"},
	{program.Etcd, "experimental-initial-corrupt-check=true", "feature-gates=InitialCorruptCheck=true", "a feature gate now"},
	{program.Etcd, "experimental-compact-hash-check-enabled=true", "feature-gates=CompactHashCheck=true", "a feature gate now"},
	{program.Etcd, "experimental-stop-grpc-service-on-defrag=true", "feature-gates=StopGRPCServiceOnDefrag=true", "a feature gate now"},
	{program.Etcd, "experimental-txn-mode-write-with-shared-buffer=true", "feature-gates=TxnModeWriteWithSharedBuffer=true", "a feature gate now"},
	{program.Etcd, "experimental-enable-lease-checkpoint=true", "feature-gates=LeaseCheckpoint=true", "a feature gate now"},
	{program.Etcd, "experimental-enable-lease-checkpoint-persist=false", "feature-gates=LeaseCheckpointPersist=false", "a feature gate now"},

	{program.APIServer, "enable-swagger-ui=true", "", "the schema is always served, at /openapi/v2 and /openapi/v3"},
	{program.APIServer, "kubelet-https=true", "", "kubelets are always spoken to over TLS"},
	{program.APIServer, "kubelet-https=false", "kubelet-https=false", ""},
	{program.APIServer, "experimental-encryption-provider-config=/e.yaml", "encryption-provider-config=/e.yaml", "renamed"},
	{program.APIServer, "apiserver-count=3", "", "the endpoints of the kubernetes service are kept by leases"},
	{program.APIServer, "runtime-config=api/all", "runtime-config=api/all=true", "every entry needs a value now"},
	{program.APIServer, "runtime-config=api/all=true", "runtime-config=api/all=true", ""},
	{program.APIServer, "runtime-config=api/beta,x/v1=false", "runtime-config=api/beta=true,x/v1=false", "every entry needs a value now"},
	{program.APIServer, "admission-control=Initializers,NodeRestriction", "enable-admission-plugins=NodeRestriction", "renamed; the order of plugins is fixed now"},
	{program.APIServer, "enable-admission-plugins=Initializers,NamespaceLifecycle,NodeRestriction", "enable-admission-plugins=NamespaceLifecycle,NodeRestriction", cmdline.GonePluginsWhy},
	{program.APIServer, "enable-admission-plugins=NodeRestriction", "enable-admission-plugins=NodeRestriction", ""},
	{program.APIServer, "enable-admission-plugins=Initializers", "", cmdline.GonePluginsWhy},
	{program.APIServer, "insecure-port=0", "", "plain HTTP is gone"},
	{program.APIServer, "insecure-port=8080", "insecure-port=8080", ""},
	{program.APIServer, "port=0", "", "plain HTTP is gone"},
	{program.APIServer, "insecure-bind-address=127.0.0.1", "", "plain HTTP is gone"},
	{program.APIServer, "address=127.0.0.1", "", "plain HTTP is gone"},
	{program.APIServer, "etcd-quorum-read=true", "", "reads are always through the quorum"},
	{program.APIServer, "repair-malformed-updates=false", "", "updates are always checked"},
	{program.APIServer, "tls-ca-file=/ca", "", "put the chain into --tls-cert-file"},
	{program.APIServer, "target-ram-mb=100", "", "caches size themselves"},
	{program.APIServer, "deserialization-cache-size=100", "", "caches size themselves"},
	{program.APIServer, "cloud-provider=", "", "cloud providers are outside the API server"},
	{program.APIServer, "cloud-provider=aws", "cloud-provider=aws", ""},
	{program.APIServer, "feature-gates=SidecarContainers=true,AllAlpha=false,kube:BtreeWatchCache=true", "feature-gates=AllAlpha=false", cmdline.GoneGatesWhy},
	{program.APIServer, "feature-gates=SidecarContainers=true", "", cmdline.GoneGatesWhy},
	{program.APIServer, "feature-gates=SidecarContainers=false", "feature-gates=SidecarContainers=false", ""},
	{program.APIServer, "feature-gates=AllAlpha=false", "feature-gates=AllAlpha=false", ""},
	{program.APIServer, "basic-auth-file=/users", "basic-auth-file=/users", ""},
	{program.APIServer, "event-ttl=1h", "event-ttl=1h", ""},

	{program.ControllerManager, "address=0.0.0.0", "bind-address=0.0.0.0", "renamed"},
	{program.ControllerManager, "port=10252", "", "10252 is gone; 10257 answers, over TLS"},
	{program.ControllerManager, "experimental-cluster-signing-duration=1h", "cluster-signing-duration=1h", "renamed"},
	{program.ControllerManager, "pod-eviction-timeout=5m", "", "evictions follow taints; use tolerationSeconds"},
	{program.ControllerManager, "enable-taint-manager=true", "", "always on"},
	{program.ControllerManager, "horizontal-pod-autoscaler-use-rest-clients=true", "", "always on"},
	{program.ControllerManager, "horizontal-pod-autoscaler-upscale-delay=3m", "", "use the behavior field of the autoscaler"},
	{program.ControllerManager, "horizontal-pod-autoscaler-downscale-delay=5m", "horizontal-pod-autoscaler-downscale-stabilization=5m", "renamed"},
	{program.ControllerManager, "register-retry-count=10", "", "nodes register themselves"},
	{program.ControllerManager, "deleting-pods-qps=1", "", "see --node-eviction-rate"},
	{program.ControllerManager, "deleting-pods-burst=1", "", "see --node-eviction-rate"},
	{program.ControllerManager, "concurrent-service-syncs=2", "", "load balancers are made by the cloud controller manager"},
	{program.ControllerManager, "feature-gates=OrderedNamespaceDeletion=true", "", cmdline.GoneGatesWhy},
	{program.ControllerManager, "leader-elect-resource-lock=endpoints", "leader-elect-resource-lock=leases", "only leases are left"},
	{program.ControllerManager, "leader-elect-resource-lock=leases", "leader-elect-resource-lock=leases", ""},

	{program.Scheduler, "address=0.0.0.0", "bind-address=0.0.0.0", "renamed"},
	{program.Scheduler, "port=10251", "", "10251 is gone; 10259 answers, over TLS"},
	{program.Scheduler, "algorithm-provider=DefaultProvider", "", "use profiles in kube-scheduler.yaml"},
	{program.Scheduler, "use-legacy-policy-config=false", "", "use profiles in kube-scheduler.yaml"},
	{program.Scheduler, "hard-pod-affinity-symmetric-weight=1", "", "use profiles in kube-scheduler.yaml"},
	{program.Scheduler, "failure-domains=zone", "", "topology spread constraints replaced it"},
	{program.Scheduler, "feature-gates=GangScheduling=true,GenericWorkload=true", "feature-gates=GenericWorkload=true", cmdline.GoneGatesWhy},
	{program.Scheduler, "leader-elect-resource-lock=endpoints", "leader-elect-resource-lock=leases", "only leases are left"},
	{program.Scheduler, "lock-object-name=x", "leader-elect-resource-name=x", "renamed"},
	{program.Scheduler, "lock-object-namespace=x", "leader-elect-resource-namespace=x", "renamed"},
}

func TestTranslate(t *testing.T) {
	for _, tt := range translations {
		t.Run(tt.program+" "+tt.old, func(t *testing.T) {
			got, warnings := cmdline.Translate(tt.program, program.ParseUser([]string{tt.old}))
			if all := strings.Join(program.Render(got), " "); all != strings.TrimSuffix("--"+tt.today, "--") {
				t.Errorf("got %q, want %q", all, tt.today)
			}
			wantWarnings := 0
			if tt.warning != "" {
				wantWarnings = 1
			}
			if len(warnings) != wantWarnings {
				t.Fatalf("got warnings %q, want %d", warnings, wantWarnings)
			}
			if wantWarnings == 1 && (!strings.HasPrefix(warnings[0], tt.program+": --") || !strings.HasSuffix(warnings[0], ": "+tt.warning)) {
				t.Errorf("got warning %q, want one of %s that ends in %q", warnings[0], tt.program, tt.warning)
			}
		})
	}
}

// Klog's flags are gone from all three Kubernetes programs.
func TestTranslateLogging(t *testing.T) {
	for _, name := range []string{program.APIServer, program.ControllerManager, program.Scheduler} {
		for _, word := range cmdline.OldLogging {
			got, warnings := cmdline.Translate(name, []program.Arg{{Key: word.Key(), Value: "x"}})
			if len(got) != 0 || len(warnings) != 1 {
				t.Errorf("%s --%s: got %v, %q; want it dropped with one warning", name, word.Key(), got, warnings)
			}
		}
	}
}

func TestEveryOldWordIsTested(t *testing.T) {
	for name, words := range cmdline.OldWords {
		for _, w := range words {
			if !slices.ContainsFunc(cmdline.OldLogging, func(l cmdline.OldWord) bool { return l.Key() == w.Key() }) && !inTable(name, w.Key()) {
				t.Errorf("%s --%s is not in the table", name, w.Key())
			}
		}
	}
}

func inTable(program, key string) bool {
	for _, tt := range translations {
		if k, _, _ := strings.Cut(tt.old, "="); tt.program == program && k == key {
			return true
		}
	}
	return false
}

// Today's programs accept what was translated, and refuse what was left.
func TestTranslationsParse(t *testing.T) {
	c := config.Default().Controller
	c.Name, c.AdvertiseAddress = "controller-0", "10.240.0.10"
	parse := map[string]func([]program.Arg) error{
		program.Etcd: func(a []program.Arg) error {
			_, err := etcdline.Parse(append(program.EtcdArgs(c, c.Layout(), "/s"), a...), embed.NewZapLoggerBuilder(zap.NewNop()))
			return err
		},
		program.APIServer:         func(a []program.Arg) error { _, err := apiserver.Parse(a, pki.ControllerNames{}); return err },
		program.ControllerManager: func(a []program.Arg) error { _, err := controllers.ParseManager(a); return err },
		program.Scheduler:         func(a []program.Arg) error { _, err := controllers.ParseScheduler(a); return err },
	}
	for _, tt := range translations {
		if tt.today == "" {
			continue
		}
		err := parse[tt.program](program.ParseUser([]string{tt.today}))
		if tt.warning != "" && err != nil {
			t.Errorf("%s: %s became %s, but %v", tt.program, tt.old, tt.today, err)
		}
		if refused := []string{"proxy=on", "kubelet-https=false", "insecure-port=8080", "basic-auth-file=/users"}; slices.Contains(refused, tt.old) && err == nil {
			t.Errorf("%s: %s was taken, want an error", tt.program, tt.old)
		}
	}
}

// An old word and its replacement given together: both are passed on, and the table
// does not decide which wins.
func TestTranslateKeepsTheOrder(t *testing.T) {
	got, _ := cmdline.Translate(program.ControllerManager, program.ParseUser([]string{"address=1.1.1.1", "v=2", "bind-address=2.2.2.2"}))
	if all, want := strings.Join(program.Render(got), " "), "--bind-address=1.1.1.1 --v=2 --bind-address=2.2.2.2"; all != want {
		t.Errorf("got %s, want %s", all, want)
	}
}

const oldSchedulerFile = `apiVersion: componentconfig/v1alpha1
kind: KubeSchedulerConfiguration
clientConnection:
  kubeconfig: "/var/lib/kubernetes/kube-scheduler.kubeconfig"
leaderElection:
  leaderElect: true
`

func TestSchedulerFile(t *testing.T) {
	tests := []struct {
		name, text string
		translated bool
		parts      []string // of the file that is used
	}{
		{"the guide's", oldSchedulerFile, true, []string{"apiVersion: kubescheduler.config.k8s.io/v1\n", "leaderElect: true", "kubeconfig: /var/lib/kubernetes/kube-scheduler.kubeconfig", "qps: 1000", "burst: 2000"}},
		{"v1alpha1 with a name", "apiVersion: kubescheduler.config.k8s.io/v1alpha1\nkind: KubeSchedulerConfiguration\nschedulerName: mine\nalgorithmSource:\n  provider: DefaultProvider\n", true, []string{"schedulerName: mine"}},
		{"v1beta3 with profiles", "apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: a\n- schedulerName: b\n", true, []string{"schedulerName: a", "schedulerName: b"}},
		{"with limits and times", "apiVersion: componentconfig/v1alpha1\nkind: KubeSchedulerConfiguration\nclientConnection:\n  qps: 7\n  burst: 9\nleaderElection:\n  leaderElect: true\n  leaseDuration: 30s\n  lockObjectName: x\n  resourceLock: endpoints\nenableProfiling: false\n", true,
			[]string{"qps: 7", "burst: 9", "leaseDuration: 30s", "resourceLock: leases", "enableProfiling: false"}},
		{"today's", "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n", false, []string{"kind: KubeSchedulerConfiguration"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := layoutWith(t, "kube-scheduler.yaml", tt.text)
			path, warning, err := cmdline.SchedulerConfig("", l, writer(l))
			if err != nil {
				t.Fatal(err)
			}
			if (warning != "") != tt.translated || (path != l.SchedulerConfig()) != tt.translated {
				t.Errorf("got %s, warning %q; want translated %v", path, warning, tt.translated)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range tt.parts {
				if !strings.Contains(string(data), part) {
					t.Errorf("got\n%s\nwant %q in it", data, part)
				}
			}
			if _, err := schedoptions.LoadConfigFromFile(cmdline.DiscardLogger, path); err != nil {
				t.Errorf("upstream does not load it: %v\n%s", err, data)
			}
			if original, _ := os.ReadFile(l.SchedulerConfig()); string(original) != tt.text {
				t.Errorf("the user's file was changed:\n%s", original)
			}
		})
	}
}

func TestSchedulerFileAbsent(t *testing.T) {
	l := layoutWith(t, "other.yaml", oldSchedulerFile)
	if path, warning, err := cmdline.SchedulerConfig("", l, writer(l)); path != "" || warning != "" || err != nil {
		t.Errorf("none in the data directory: got %q, %q, %v; want nothing", path, warning, err)
	}
	if _, _, err := cmdline.SchedulerConfig(filepath.Join(l.Dir, "missing.yaml"), l, writer(l)); err == nil {
		t.Error("one that is named and is not there: got no error")
	}
	path, _, err := cmdline.SchedulerConfig(filepath.Join(l.Dir, "other.yaml"), l, writer(l))
	if want := filepath.Join(l.Run(), "kube-scheduler.yaml"); path != want || err != nil {
		t.Errorf("one that is named: got %q, %v; want %q", path, err, want)
	}
}

func layoutWith(t *testing.T, name, text string) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	if err := os.Mkdir(l.Run(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// Upstream's own loader must read every form that is accepted, with a warning or
// without.
func TestEncryptionKinds(t *testing.T) {
	const rest = "resources:\n- resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n      - {name: key1, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}\n  - identity: {}\n"
	tests := []struct {
		name, head string
		warns      bool
		loads      bool
	}{
		{"today's", "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\n", false, true},
		{"the guide's", "kind: EncryptionConfig\napiVersion: v1\n", true, true},
		{"new kind, old version", "kind: EncryptionConfiguration\napiVersion: v1\n", false, false},
		{"old kind, new version", "kind: EncryptionConfig\napiVersion: apiserver.config.k8s.io/v1\n", false, false},
		{"something else", "kind: Secret\napiVersion: v1\n", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := layoutWith(t, "encryption-config.yaml", tt.head+rest)
			warning, err := cmdline.EncryptionWarning(l.EncryptionConfig())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, loadErr := encryptionconfig.LoadEncryptionConfig(ctx, l.EncryptionConfig(), false, "")
			if (loadErr == nil) != tt.loads {
				t.Errorf("upstream's loader: got %v, want loads %v", loadErr, tt.loads)
			}
			if loadErr != nil {
				if err == nil {
					t.Errorf("accepted with the warning %q, but upstream says: %v", warning, loadErr)
				}
				return
			}
			if err != nil || (warning != "") != tt.warns {
				t.Errorf("got %q, %v; want a warning %v", warning, err, tt.warns)
			}
		})
	}
}

// A key that YAML cannot read stays out of the error.
func TestEncryptionKeyInError(t *testing.T) {
	const head = "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n"
	for _, key := range []string{
		"      - {name: key1, secret: *s3cretsecret}\n",     // an alias to YAML
		"      - s3cretsecret\n",                            // no mapping
		"      - {name: key1, s3cretsecret: a}\n",           // an unknown field
		"      - {name: key1, secret: {s3cretsecret: a}}\n", // no string
		"      - {name: key1, secret: s3cretsecret}\n",      // the wrong length
	} {
		l := layoutWith(t, "encryption-config.yaml", head+key)
		_, warning := cmdline.EncryptionWarning(l.EncryptionConfig())
		err := cmdline.CheckPolicies([]program.Arg{{Key: "encryption-provider-config", Value: l.EncryptionConfig()}})
		if err == nil {
			t.Errorf("%q: no error", key)
		} else if said := fmt.Sprint(err, warning); strings.Contains(said, "s3cretsecret") {
			t.Errorf("%q: the error repeats the key: %s", key, said)
		}
	}
}

// writer writes into the run directory.
func writer(l pki.Layout) func(string, []byte) (string, error) {
	return func(name string, data []byte) (string, error) {
		path := filepath.Join(l.Run(), name)
		return path, os.WriteFile(path, data, 0o600)
	}
}
