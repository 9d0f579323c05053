package cmdline

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"kthwd/appliance/program"
)

// FuzzOldScheduler: a scheduler's configuration of any age is translated or refused; what
// was translated has today's form.
func FuzzOldScheduler(f *testing.F) {
	for _, s := range []string{"", "kind: KubeSchedulerConfiguration\napiVersion: componentconfig/v1alpha1\nleaderElection: {leaderElect: true}\n",
		"clientConnection: []\n", "profiles: [~]\n", "leaderElection: {leaseDuration: {}}\n", "schedulerName: \"\\0\"\n", "&a [*a]\n", "enableProfiling: maybe\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		today, err := translateScheduler(data, "/k")
		if err != nil {
			return
		}
		var got map[string]any
		if err := yaml.Unmarshal(today, &got); err != nil || got["apiVersion"] != schedulerConfigVersion {
			t.Errorf("translated to %q: %v", today, err)
		}
	})
}

// FuzzArguments: arguments of any text, for any program, are translated into arguments that
// are not translated again, with one line for each warning.
func FuzzArguments(f *testing.F) {
	f.Add("kube-apiserver", "--experimental-encryption-provider-config=/a\n--apiserver-count=3")
	f.Add("kube-controller-manager", "--address=0.0.0.0\nport")
	f.Add("kube-scheduler", "v=2\n=\n--=x\n\x00=\x1b")
	f.Add("etcd", "")
	f.Fuzz(func(t *testing.T, name, lines string) {
		if name != program.Etcd && name != program.APIServer && name != program.ControllerManager && name != program.Scheduler {
			t.Skip()
		}
		today, warnings := Translate(name, program.ParseUser(strings.Split(lines, "\n")))
		for _, w := range warnings {
			if strings.Contains(w, "\n") {
				t.Errorf("a warning of two lines: %q", w)
			}
		}
		again, more := Translate(name, today)
		if len(more) > 0 || len(again) != len(today) {
			t.Errorf("%v is translated once more into %v: %q", today, again, more)
		}
	})
}

// FuzzAuthentication: an authentication configuration of any content is valid or refused.
func FuzzAuthentication(f *testing.F) {
	for _, s := range []string{"", "kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v1\nanonymous: {enabled: true}\n",
		"kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v1beta1\njwt: [{issuer: {url: 'https://a', audiences: [a]}, claimMappings: {username: {expression: 'claims.sub'}}}]\n", "kind: Pod\napiVersion: v1\n", "&a [*a]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = validAuthentication(data, "https://kubernetes.default.svc.cluster.local")
	})
}
