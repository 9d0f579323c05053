package cmdline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	auditpolicy "k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// oldWord is a flag that an older guide used and today's program does not have.
type oldWord struct {
	key     string
	becomes string                  // today's flag; empty: the argument is dropped
	value   func(string) string     // today's value; nil keeps the old one. An empty result drops the argument.
	gate    string                  // the feature gate that today's flag sets to the old value
	why     string                  // its replacement, for the one warning
	when    func(value string) bool // nil: always
}

// oldWords are the removed and renamed flags, by program. No translation changes
// access rights: an old flag that granted access (--basic-auth-file, --insecure-port
// with a port, …) remains an error.
var oldWords = map[string][]oldWord{
	program.Etcd: {
		{key: "ca-file", becomes: "trusted-ca-file", why: "renamed"},
		{key: "peer-ca-file", becomes: "peer-trusted-ca-file", why: "renamed"},
		{key: "debug", why: "set --log-level=etcd=debug"},
		{key: "log-package-levels", why: "set --log-level=etcd=LEVEL"},
		{key: "enable-v2", why: "the v2 API is gone; Kubernetes never needs it"},
		{key: "proxy", why: "the v2 proxy is gone", when: isOff},
		{key: "experimental-compact-hash-check-time", becomes: "compact-hash-check-time", why: "renamed"},
		{key: "experimental-corrupt-check-time", becomes: "corrupt-check-time", why: "renamed"},
		{key: "experimental-compaction-batch-limit", becomes: "compaction-batch-limit", why: "renamed"},
		{key: "experimental-watch-progress-notify-interval", becomes: "watch-progress-notify-interval", why: "renamed"},
		{key: "experimental-warning-apply-duration", becomes: "warning-apply-duration", why: "renamed"},
		{key: "experimental-warning-unary-request-duration", becomes: "warning-unary-request-duration", why: "renamed"},
		{key: "experimental-bootstrap-defrag-threshold-megabytes", becomes: "bootstrap-defrag-threshold-megabytes", why: "renamed"},
		{key: "experimental-memory-mlock", becomes: "memory-mlock", why: "renamed"},
		{key: "experimental-snapshot-catchup-entries", becomes: "snapshot-catchup-entries", why: "renamed"},
		{key: "experimental-compaction-sleep-interval", becomes: "compaction-sleep-interval", why: "renamed"},
		{key: "experimental-downgrade-check-time", becomes: "downgrade-check-time", why: "renamed"},
		{key: "experimental-peer-skip-client-san-verification", becomes: "peer-skip-client-san-verification", why: "renamed"},
		{key: "experimental-enable-distributed-tracing", becomes: "enable-distributed-tracing", why: "renamed"},
		{key: "experimental-distributed-tracing-address", becomes: "distributed-tracing-address", why: "renamed"},
		{key: "experimental-distributed-tracing-service-name", becomes: "distributed-tracing-service-name", why: "renamed"},
		{key: "experimental-distributed-tracing-instance-id", becomes: "distributed-tracing-instance-id", why: "renamed"},
		{key: "experimental-distributed-tracing-sampling-rate", becomes: "distributed-tracing-sampling-rate", why: "renamed"},
		{key: "experimental-initial-corrupt-check", becomes: "feature-gates", gate: "InitialCorruptCheck", why: "a feature gate now"},
		{key: "experimental-compact-hash-check-enabled", becomes: "feature-gates", gate: "CompactHashCheck", why: "a feature gate now"},
		{key: "experimental-stop-grpc-service-on-defrag", becomes: "feature-gates", gate: "StopGRPCServiceOnDefrag", why: "a feature gate now"},
		{key: "experimental-txn-mode-write-with-shared-buffer", becomes: "feature-gates", gate: "TxnModeWriteWithSharedBuffer", why: "a feature gate now"},
		{key: "experimental-enable-lease-checkpoint", becomes: "feature-gates", gate: "LeaseCheckpoint", why: "a feature gate now"},
		{key: "experimental-enable-lease-checkpoint-persist", becomes: "feature-gates", gate: "LeaseCheckpointPersist", why: "a feature gate now"},
	},
	program.APIServer: append([]oldWord{
		{key: "enable-swagger-ui", why: "the schema is always served, at /openapi/v2 and /openapi/v3"},
		{key: "kubelet-https", why: "kubelets are always spoken to over TLS", when: isOn},
		{key: "experimental-encryption-provider-config", becomes: "encryption-provider-config", why: "renamed"},
		{key: "apiserver-count", why: "the endpoints of the kubernetes service are kept by leases"},
		{key: "runtime-config", becomes: "runtime-config", value: explicitTrue, why: "every entry needs a value now", when: lacksValues},
		{key: "admission-control", becomes: "enable-admission-plugins", value: withoutGonePlugins, why: "renamed; the order of plugins is fixed now"},
		{key: "enable-admission-plugins", becomes: "enable-admission-plugins", value: withoutGonePlugins, why: gonePluginsWhy, when: namesGonePlugins},
		{key: "insecure-port", why: "plain HTTP is gone", when: isZero},
		{key: "port", why: "plain HTTP is gone", when: isZero},
		{key: "insecure-bind-address", why: "plain HTTP is gone"},
		{key: "address", why: "plain HTTP is gone"},
		{key: "etcd-quorum-read", why: "reads are always through the quorum", when: isOn},
		{key: "repair-malformed-updates", why: "updates are always checked"},
		{key: "tls-ca-file", why: "put the chain into --tls-cert-file"},
		{key: "target-ram-mb", why: "caches size themselves"},
		{key: "deserialization-cache-size", why: "caches size themselves"},
		{key: "cloud-provider", why: "cloud providers are outside the API server", when: isOff},
		{key: "feature-gates", becomes: "feature-gates", value: withoutGoneGates, why: goneGatesWhy, when: namesGoneGates},
	}, oldLogging...),
	program.ControllerManager: append([]oldWord{
		{key: "address", becomes: "bind-address", why: "renamed"},
		{key: "port", why: "10252 is gone; 10257 answers, over TLS"},
		{key: "experimental-cluster-signing-duration", becomes: "cluster-signing-duration", why: "renamed"},
		{key: "pod-eviction-timeout", why: "evictions follow taints; use tolerationSeconds"},
		{key: "enable-taint-manager", why: "always on", when: isOn},
		{key: "horizontal-pod-autoscaler-use-rest-clients", why: "always on", when: isOn},
		{key: "horizontal-pod-autoscaler-upscale-delay", why: "use the behavior field of the autoscaler"},
		{key: "horizontal-pod-autoscaler-downscale-delay", becomes: "horizontal-pod-autoscaler-downscale-stabilization", why: "renamed"},
		{key: "register-retry-count", why: "nodes register themselves"},
		{key: "deleting-pods-qps", why: "see --node-eviction-rate"},
		{key: "deleting-pods-burst", why: "see --node-eviction-rate"},
		{key: "concurrent-service-syncs", why: "load balancers are made by the cloud controller manager"},
		{key: "feature-gates", becomes: "feature-gates", value: withoutGoneGates, why: goneGatesWhy, when: namesGoneGates},
		{key: "leader-elect-resource-lock", becomes: "leader-elect-resource-lock", value: leases, why: "only leases are left", when: notLeases},
	}, oldLogging...),
	program.Scheduler: append([]oldWord{
		{key: "address", becomes: "bind-address", why: "renamed"},
		{key: "port", why: "10251 is gone; 10259 answers, over TLS"},
		{key: "algorithm-provider", why: "use profiles in kube-scheduler.yaml"},
		{key: "use-legacy-policy-config", why: "use profiles in kube-scheduler.yaml", when: isOff},
		{key: "hard-pod-affinity-symmetric-weight", why: "use profiles in kube-scheduler.yaml"},
		{key: "failure-domains", why: "topology spread constraints replaced it"},
		{key: "feature-gates", becomes: "feature-gates", value: withoutGoneGates, why: goneGatesWhy, when: namesGoneGates},
		{key: "leader-elect-resource-lock", becomes: "leader-elect-resource-lock", value: leases, why: "only leases are left", when: notLeases},
		{key: "lock-object-name", becomes: "leader-elect-resource-name", why: "renamed"},
		{key: "lock-object-namespace", becomes: "leader-elect-resource-namespace", why: "renamed"},
	}, oldLogging...),
}

// oldLogging are klog's flags, removed from all Kubernetes programs in 1.26.
var oldLogging = []oldWord{
	{key: "logtostderr", why: "kthwd has one logger, on standard error"},
	{key: "alsologtostderr", why: "kthwd has one logger, on standard error"},
	{key: "stderrthreshold", why: "kthwd has one logger, on standard error"},
	{key: "log-dir", why: "kthwd has one logger, on standard error"},
	{key: "log-file", why: "kthwd has one logger, on standard error"},
	{key: "logging-format", why: "set --log-format"},
}

// gonePlugins maps admission plugins that no longer exist to their replacements.
var gonePlugins = map[string]string{
	"Initializers":          "mutating webhooks",
	"PodSecurityPolicy":     "PodSecurity",
	"SecurityContextDeny":   "PodSecurity",
	"DenyEscalatingExec":    "PodSecurity",
	"DenyExecOnPrivileged":  "PodSecurity",
	"PersistentVolumeLabel": "the external cloud controller manager",
}

const gonePluginsWhy = "admission plugins that no longer exist are left out (Initializers gave way to mutating webhooks, PodSecurityPolicy to PodSecurity)"

// goneGates are feature gates of Kubernetes 1.36 that 1.37 lacks
// (kubernetes/pkg/features/kube_features.go, apiserver/pkg/features/kube_features.go): their
// feature is always on, or follows another gate.
var goneGates = map[string]string{
	"APIServerTracing":                      "",
	"AnonymousAuthConfigurableEndpoints":    "",
	"AnyVolumeDataSource":                   "",
	"AuthorizeNodeWithSelectors":            "",
	"AuthorizeWithSelectors":                "",
	"BtreeWatchCache":                       "",
	"ConsistentListFromCache":               "",
	"GangScheduling":                        "GenericWorkload",
	"JobBackoffLimitPerIndex":               "",
	"JobPodReplacementPolicy":               "",
	"JobSuccessPolicy":                      "",
	"LogarithmicScaleDown":                  "",
	"OrderedNamespaceDeletion":              "",
	"PodLifecycleSleepAction":               "",
	"PodLifecycleSleepActionAllowZero":      "",
	"PreventStaticPodAPIReferences":         "",
	"ResilientWatchCacheInitialization":     "",
	"RetryGenerateName":                     "",
	"SchedulerQueueingHints":                "",
	"SidecarContainers":                     "",
	"StreamingCollectionEncodingToJSON":     "",
	"StreamingCollectionEncodingToProtobuf": "",
	"StructuredAuthenticationConfiguration": "",
	"WorkloadAwarePreemption":               "GenericWorkload",
}

const goneGatesWhy = "feature gates that no longer exist are left out: what they switched is always on, or follows GenericWorkload"

func namesGoneGates(v string) bool { return withoutGoneGates(v) != v }

// withoutGoneGates leaves out the gone gates that are set to true. One that is set to false
// stays, and CheckGates refuses it: nothing has that effect now.
func withoutGoneGates(v string) string {
	parts := slices.DeleteFunc(strings.Split(v, ","), func(p string) bool {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(p), "kube:"), "=")
		_, gone := goneGates[name]
		on, err := strconv.ParseBool(value)
		return gone && on && err == nil
	})
	return strings.Join(parts, ",")
}

func isOn(v string) bool { return v == "true" || v == "1" }

func isOff(v string) bool { return v == "false" || v == "0" || v == "" || v == "off" }

func isZero(v string) bool { return v == "0" }

func notLeases(v string) bool { return v != "leases" }

func leases(string) string { return "leases" }

func lacksValues(v string) bool { return explicitTrue(v) != v }

// explicitTrue turns "api/all" into "api/all=true".
func explicitTrue(v string) string {
	parts := strings.Split(v, ",")
	for i, p := range parts {
		if p != "" && !strings.Contains(p, "=") {
			parts[i] = p + "=true"
		}
	}
	return strings.Join(parts, ",")
}

func namesGonePlugins(v string) bool { return withoutGonePlugins(v) != v }

func withoutGonePlugins(v string) string {
	parts := slices.DeleteFunc(strings.Split(v, ","), func(p string) bool {
		_, gone := gonePlugins[strings.TrimSpace(p)]
		return gone
	})
	return strings.Join(parts, ",")
}

// Translate replaces old arguments by today's, with one warning each.
func Translate(name string, users []program.Arg) (today []program.Arg, warnings []string) {
	for _, u := range users {
		word := findOldWord(name, u)
		if word == nil {
			today = append(today, u)
			continue
		}
		replaced := program.Arg{Key: word.becomes, Value: u.Value}
		switch {
		case word.value != nil:
			replaced.Value = word.value(u.Value)
		case word.gate != "":
			replaced.Value = word.gate + "=" + u.Value
		}
		if word.becomes == "" || replaced.Value == "" {
			warnings = append(warnings, fmt.Sprintf("%s: %s dropped: %s", name, u, word.why))
			continue
		}
		warnings = append(warnings, fmt.Sprintf("%s: %s read as %s: %s", name, u, replaced, word.why))
		today = append(today, replaced)
	}
	return today, warnings
}

func findOldWord(name string, u program.Arg) *oldWord {
	for _, w := range oldWords[name] {
		if w.key == u.Key && (w.when == nil || w.when(u.Value)) {
			return &w
		}
	}
	return nil
}

// typeMeta is the head of a configuration file.
type typeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func readMeta(path string) (typeMeta, []byte, error) {
	var meta typeMeta
	data, err := os.ReadFile(path)
	if err != nil {
		return meta, nil, err
	}
	if err := yaml.Unmarshal(data, &meta); err != nil {
		return meta, nil, fmt.Errorf("%s: %s", path, text.Unquoted(err.Error()))
	}
	return meta, data, nil
}

// EncryptionWarning returns a warning if an encryption configuration has the old
// form, and "" otherwise. Upstream still reads both forms, though no mixture of them
// (apiserver/pkg/apis/apiserver/v1/register.go), so the file is used unchanged.
func EncryptionWarning(path string) (string, error) {
	if path == "" {
		return "", nil // switched off
	}
	meta, _, err := readMeta(path)
	if err != nil {
		return "", err
	}
	const today = "kind EncryptionConfiguration, apiVersion apiserver.config.k8s.io/v1"
	switch meta {
	case typeMeta{APIVersion: "apiserver.config.k8s.io/v1", Kind: "EncryptionConfiguration"}:
		return "", nil
	case typeMeta{APIVersion: "v1", Kind: "EncryptionConfig"}:
		return fmt.Sprintf("%s: kind %s, apiVersion %s is read as %s", path, meta.Kind, meta.APIVersion, today), nil
	}
	return "", advice.With(fmt.Errorf("%s: kind %q, apiVersion %q is no encryption configuration", path, meta.Kind, meta.APIVersion), "want "+today)
}

// CheckPolicies reads the files that the API server would otherwise refuse too late,
// after etcd has created its data.
func CheckPolicies(args []program.Arg) error {
	if path := program.Value(args, "audit-policy-file"); path != "" {
		if _, err := auditpolicy.LoadPolicyFromFile(path); err != nil {
			return advice.With(err, "correct the file; or move it away, and kthwd writes its own")
		}
	}
	if err := checkAuthentication(args); err != nil {
		return err
	}
	path := program.Value(args, "encryption-provider-config")
	if path == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the probes of KMS plugins, where there are any
	if _, err := encryptionconfig.LoadEncryptionConfig(ctx, path, false, ""); err != nil {
		if said := err.Error(); strings.Contains(said, "error decoding") { // the decoder quotes a key
			err = errors.New(text.Unquoted(said))
		}
		return advice.With(fmt.Errorf("%s: %w", path, err), "correct the file; it must keep the old key, which stored secrets need")
	}
	return nil
}

const schedulerConfigVersion = "kubescheduler.config.k8s.io/v1"

// SchedulerConfig finds the guide's kube-scheduler.yaml: the one given with
// --config, else the one in the data directory. A file in an old form is
// translated, and write puts it into the run directory. It returns "" when there is none.
func SchedulerConfig(given string, l pki.Layout, write func(name string, data []byte) (path string, err error)) (path, warning string, err error) {
	path = given
	if path == "" {
		path = l.SchedulerConfig()
	}
	meta, data, err := readMeta(path)
	if errors.Is(err, fs.ErrNotExist) && given == "" {
		return "", "", nil
	}
	if err != nil || meta.APIVersion == schedulerConfigVersion {
		return path, "", err
	}
	today, err := translateScheduler(data, l.Kubeconfig(pki.NameScheduler))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	translated, err := write("kube-scheduler.yaml", today)
	if err != nil {
		return "", "", err
	}
	return translated, fmt.Sprintf("%s: apiVersion %s is read as %s, see %s", path, meta.APIVersion, schedulerConfigVersion, translated), nil
}

// oldScheduler has the fields of componentconfig/v1alpha1 and its successors
// that have the same meaning today. Profiles replaced all other fields.
type oldScheduler struct {
	SchedulerName    string         `json:"schedulerName"`
	ClientConnection map[string]any `json:"clientConnection"`
	LeaderElection   map[string]any `json:"leaderElection"`
	EnableProfiling  *bool          `json:"enableProfiling"`
	Profiles         []any          `json:"profiles"`
}

// kubeconfig is used if the file names none: that once meant the API server's
// insecure port, which no longer exists.
func translateScheduler(data []byte, kubeconfig string) ([]byte, error) {
	var old oldScheduler
	if err := yaml.Unmarshal(data, &old); err != nil {
		return nil, err
	}
	today := map[string]any{
		"apiVersion": schedulerConfigVersion,
		"kind":       "KubeSchedulerConfiguration",
		// As in program.SchedulerArgs, whose flags have no effect with a configuration file.
		"enableContentionProfiling": false,
		"enableProfiling":           false,
	}
	client := keep(old.ClientConnection, "kubeconfig", "qps", "burst", "acceptContentTypes", "contentType")
	if client["kubeconfig"] == nil {
		client["kubeconfig"] = kubeconfig
	}
	if client["qps"] == nil {
		client["qps"], client["burst"] = 1000, 2000
	}
	today["clientConnection"] = client
	election := keep(old.LeaderElection, "leaderElect", "leaseDuration", "renewDeadline", "retryPeriod")
	election["resourceLock"] = "leases"
	today["leaderElection"] = election
	if old.EnableProfiling != nil {
		today["enableProfiling"] = *old.EnableProfiling
	}
	switch {
	case len(old.Profiles) > 0:
		today["profiles"] = old.Profiles
	case old.SchedulerName != "":
		today["profiles"] = []any{map[string]any{"schedulerName": old.SchedulerName}}
	}
	out, err := yaml.Marshal(today)
	return bytes.TrimLeft(out, "\n"), err
}

func keep(m map[string]any, keys ...string) map[string]any {
	kept := map[string]any{}
	for _, k := range keys {
		if v, ok := m[k]; ok {
			kept[k] = v
		}
	}
	return kept
}
