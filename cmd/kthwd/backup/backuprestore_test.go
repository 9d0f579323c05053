package backup

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/spf13/pflag"

	"kthwd/appliance/config"
)

// A restore takes every setting of the archived controller, those that are no flags of its verb
// included; a flag that is given wins.
func TestAdoptSettings(t *testing.T) {
	was := config.Default()
	c := &was.Controller
	c.Name, c.AdvertiseAddress, c.DataDir, c.InitialCluster = "c0", "10.0.1.73", "/var/lib/kubernetes", []string{"c0=10.0.1.73", "c1=10.0.1.74"}
	c.EtcdDataDir = filepath.Join(c.DataDir, "etcd")
	c.ServiceClusterIPRange, c.ClusterCIDR, c.Profile, c.SecurePort = "10.44.0.0/16", "10.45.0.0/16", config.ProfileCIS, 7443
	c.APIServerArgs = []string{"goaway-chance=0.001"}

	l := config.NewLoader()
	settings := pflag.NewFlagSet("", pflag.ContinueOnError)
	l.AddFlags(settings)
	if err := settings.Parse([]string{"--name=new", "--data-dir=/srv/new"}); err != nil {
		t.Fatal(err)
	}
	if err := adoptSettings(settings, archivedSettings(config.RestoredFile(was))); err != nil {
		t.Fatal(err)
	}
	is := l.Config.Controller
	if is.Name != "new" || is.DataDir != "/srv/new" || is.EtcdDataDir != "" || len(is.InitialCluster) != 0 {
		t.Errorf("of this machine: got %s in %s, etcd in %q, members %v", is.Name, is.DataDir, is.EtcdDataDir, is.InitialCluster)
	}
	if is.ServiceClusterIPRange != c.ServiceClusterIPRange || is.ClusterCIDR != c.ClusterCIDR || is.Profile != c.Profile || is.SecurePort != c.SecurePort || !slices.Equal(is.APIServerArgs, c.APIServerArgs) {
		t.Errorf("of the cluster: got %s, %s, profile %s, port %d, %q", is.ServiceClusterIPRange, is.ClusterCIDR, is.Profile, is.SecurePort, is.APIServerArgs)
	}
}
