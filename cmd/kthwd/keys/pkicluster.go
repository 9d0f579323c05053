package keys

import (
	"errors"

	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/cmd/kthwd/cli"
)

// clusterFlags are the flags with which kthwd pki init makes the files of a cluster.
type clusterFlags struct {
	controllers, lbs, caKey []string
	out                     string
}

func (f *clusterFlags) add(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.controllers, "controllers", nil, "`NAME=ADDRESS` Controllers of a cluster; each one gets a directory in --out, ready to copy.")
	fs.StringSliceVar(&f.lbs, "lb", nil, "`HOST` Load balancers in front of --controllers, by address or name; the first one is the server in admin.kubeconfig.")
	fs.StringSliceVar(&f.caKey, "with-ca-key", nil, "`NAME` Controllers of --controllers that get the CA's key, to sign certificates; without this flag the key stays in ca below --out.")
	fs.StringVar(&f.out, "out", "", "`DIR` Directory for --controllers and --lb; made if it is missing.")
}

// asked reports whether any of the flags is given.
func (f *clusterFlags) asked(fs *pflag.FlagSet) bool {
	return fs.Changed("controllers") || fs.Changed("lb") || fs.Changed("with-ca-key") || fs.Changed("out")
}

// pkiInitCluster makes the directories of all machines of a cluster.
func (a *app) pkiInitCluster(l *config.Loader, f *clusterFlags, fs *pflag.FlagSet) error {
	var errs []error
	for _, name := range []string{"data-dir", "bind-address", "advertise-address"} {
		if fs.Changed(name) {
			errs = append(errs, advice.With(cli.Usagef("--%s is about one machine and does not go with --controllers", name), "leave it out: each machine's is in its kthwd.yaml"))
		}
	}
	if err := l.Load(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	c := config.Cluster{Controllers: f.controllers, LBs: f.lbs, CAKey: f.caKey, Dir: f.out, Shared: l.Config.Controller}
	plan, err := c.Plan()
	if err != nil {
		errs = append(errs, l.WithPlaces(err))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, w := range c.Warnings() {
		a.Warn(w)
	}
	if err := placesOf(f.out, plan); err != nil {
		return err
	}
	r, err := pki.EnsureCluster(plan)
	a.list(r)
	return err
}

// placesOf refuses directories for the files of a cluster that belong to another user, or that
// others can write to or exchange, as a start refuses a data directory: the keys of the CAs are
// among them.
func placesOf(out string, plan pki.Cluster) error {
	if err := datadir.Steady(out); err != nil {
		return err
	}
	dirs := []string{plan.Dir}
	for _, m := range plan.Machines {
		dirs = append(dirs, m.Dir)
	}
	for _, dir := range dirs {
		if err := datadir.Owned(pki.Layout{Dir: dir}); err != nil {
			return err
		}
	}
	return nil
}
