package attack

import (
	"path/filepath"
	"strings"
	"testing"
)

// L6: a controller of several has no key that nothing on it uses, so that an attacker on it does
// not get it. A lone one has all of the guide's files, the key of the CA among them.
func TestControllersLackUnusedKeys(t *testing.T) {
	out := filepath.Join(t.TempDir(), "cluster")
	if code, said := kthwd(t, "pki", "init", "--config=", "--controllers=c0=10.77.1.1,c1=10.77.1.2", "--lb=10.77.1.9", "--out="+out); code != 0 {
		t.Fatalf("kthwd pki init: exit code %d\n%s", code, said)
	}
	for machine, used := range map[string]string{
		"c0": "kubernetes service-account kthwd-health front-proxy-client etcd", "c1": "kubernetes service-account kthwd-health front-proxy-client etcd", "lb-10.77.1.9": "",
	} {
		keys := matching(t, filepath.Join(out, machine), "*-key.pem")
		if len(keys) == 0 && used != "" {
			t.Errorf("%s has no keys: this test shows nothing", machine)
		}
		for _, key := range keys {
			name := strings.TrimSuffix(filepath.Base(key), "-key.pem")
			if !strings.Contains(" "+used+" ", " "+name+" ") {
				t.Errorf("%s has %s, which nothing on it uses", machine, filepath.Base(key))
			}
		}
	}
}
