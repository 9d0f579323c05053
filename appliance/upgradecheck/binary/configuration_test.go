package binary

import (
	"slices"
	"testing"

	"kthwd/appliance/config"
)

// The command line has the flags of the running kthwd, each as often as it was given, and not
// what comes from its file or is a default.
func TestConfigurationArgs(t *testing.T) {
	got, err := configurationArgs("/etc/k.yaml", []config.Value{
		{Key: "role", Text: "[controller, lb]", Origin: config.OriginFlag},
		{Key: "data-dir", Text: `"/a dir: x"`, Origin: config.OriginFlag},
		{Key: "name", Text: "c0", Origin: "/etc/k.yaml:3"},
		{Key: "secure-port", Text: "6443", Origin: config.OriginDefault},
		{Key: "kube-apiserver-arg", Text: `[a=1, 'b={"x": 2}']`, Origin: config.OriginFlag},
		{Key: "etcd-initial-member", Text: "[]", Origin: config.OriginFlag},
	})
	want := []string{"config", "--config=/etc/k.yaml", "--role=controller", "--role=lb", "--data-dir=/a dir: x", "--kube-apiserver-arg=a=1", `--kube-apiserver-arg=b={"x": 2}`, "--etcd-initial-member="}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if got, err := configurationArgs("", []config.Value{{Key: "role", Text: "[]", Origin: config.OriginDefault}}); err != nil || !slices.Equal(got, []string{"config", "--config=", "--role=controller"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := configurationArgs("", []config.Value{{Key: "x", Text: "[", Origin: config.OriginFlag}}); err == nil {
		t.Errorf("got %q", got)
	}
}
