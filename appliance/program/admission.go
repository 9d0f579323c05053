package program

import (
	"fmt"
	"slices"
	"strings"

	"kthwd/appliance/config"
)

// keyAdmissionConfig is the API server's flag for the file with the settings of its admission
// plugins. There is one file for all of them.
const keyAdmissionConfig = "admission-control-config-file"

// eventRateLimit is the admission plugin that refuses Events above a rate. It does not start
// without settings.
const eventRateLimit = "EventRateLimit"

// The limits of Events, in each API server.
//
// A pod that a rolling update replaces makes at most 10 Events: SuccessfulCreate, Scheduled,
// Pulling, Pulled, Created and Started of the new one, Killing and SuccessfulDelete of the old
// one, and two of their probes. So a namespace may make those of 5000 pods at once, however fast
// they roll, and after that those of 10 pods a second for ever. This fills 0.4 GB of etcd's
// 8 GiB in the hour of --event-ttl, at a KiB an Event; without a limit a namespace that makes
// 2500 a second fills them all, and etcd accepts no more writes.
//
// Upstream takes an Event that the namespace's limit refuses from the server's limit as well.
// So the server's must be one that a single namespace does not use up. It is above the 3000 a
// second of the 300 requests, each for a pod, that kube-controller-manager makes, and
// its burst is that of four namespaces.
const (
	podEvents       = 10
	namespaceQPS    = 10 * podEvents
	namespaceEvents = 5000 * podEvents
	serverQPS       = 50 * namespaceQPS
	serverEvents    = 4 * namespaceEvents
)

// AdmissionConfig returns the file that kube-apiserver's --admission-control-config-file names.
func AdmissionConfig(c config.Controller) []byte {
	file := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: %s
  configuration:
    apiVersion: eventratelimit.admission.k8s.io/v1alpha1
    kind: Configuration
    limits:
    # Events of one namespace: those of a rolling update of 5000 pods at once.
    - {type: Namespace, qps: %d, burst: %d}
    # Those of all namespaces.
    - {type: Server, qps: %d, burst: %d}
`, eventRateLimit, namespaceQPS, namespaceEvents, serverQPS, serverEvents)
	if c.Profile == config.ProfileCIS {
		file += podSecurity
	}
	return []byte(file)
}

const podSecurity = `- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    # Of a namespace without pod-security.kubernetes.io labels of its own.
    defaults:
      enforce: baseline
      enforce-version: latest
      audit: baseline
      audit-version: latest
      warn: baseline
      warn-version: latest
    exemptions:
      namespaces: [kube-system]
`

// withoutSettings leaves EventRateLimit out of kthwd's list of admission plugins where the
// user's file takes the place of the one with its limits, and reports whether it did.
func withoutSettings(program string, a Arg, users []Arg) (Arg, bool) {
	if program != APIServer || a.Key != keyAdmissionPlugins || !slices.ContainsFunc(users, replacesAdmissionConfig) {
		return a, false
	}
	plugins := strings.Split(a.Value, ",")
	on := slices.DeleteFunc(slices.Clone(plugins), func(p string) bool { return p == eventRateLimit })
	return Arg{a.Key, strings.Join(on, ",")}, len(on) < len(plugins)
}

func replacesAdmissionConfig(u Arg) bool {
	key, _ := u.Removed()
	return u.Key == keyAdmissionConfig || key == keyAdmissionConfig
}
