package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"

	"sigs.k8s.io/yaml"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
)

// controllerHere loads the controller's configuration for a verb that works with the files of a
// controller. Of one that runs, it takes the settings in force, for each that neither a flag of
// the verb nor the configuration file sets. So the verb needs no --data-dir while a controller
// answers at the metrics address.
func (a *app) controllerHere(ctx context.Context, l *config.Loader) (config.Controller, error) {
	c, err := controller(l)
	if err != nil {
		return c, err
	}
	t, err := a.target(l)
	if err != nil || t.dir == "" {
		return c, nil // a load balancer answers, if anything does
	}
	elsewhere := t.dir != l.Config.Controller.DataDir
	ctx, cancel := context.WithTimeout(ctx, askElsewhere)
	defer cancel()
	r, err := askRunning(ctx, t)
	switch {
	case err != nil && elsewhere:
		return c, t.explain(err)
	case err != nil:
		return c, nil // none runs on the directory
	case elsewhere:
		c.DataDir = t.dir
	}
	for _, s := range r.Settings {
		if into := fieldOf(&c, s.Key); into != nil && !l.IsSet(s.Key) {
			if err := yaml.Unmarshal([]byte(s.Text), into); err != nil {
				return c, fmt.Errorf("the running controller has %s: %s: %w", s.Key, s.Text, err)
			}
		}
	}
	if elsewhere {
		return c, t.readableFiles(c.Layout())
	}
	return c, nil
}

// controllerOrFiles is controllerHere for a verb that works without a running controller, too: the
// files of the default data directory come first.
func (a *app) controllerOrFiles(ctx context.Context, l *config.Loader) (config.Controller, error) {
	c, err := controller(l)
	if err != nil || datadir.Exists(c.Layout().CA()) {
		return c, err
	}
	return a.controllerHere(ctx, l)
}

// fieldOf returns the field of a setting that says where files are or how clients reach the API
// server; nil for every other one.
func fieldOf(c *config.Controller, key string) any {
	switch key {
	case "etcd-data-dir":
		return &c.EtcdDataDir
	case "files":
		return &c.Files
	case "bind-address":
		return &c.BindAddress
	case "advertise-address":
		return &c.AdvertiseAddress
	case "secure-port":
		return &c.SecurePort
	case "service-cluster-ip-range":
		return &c.ServiceClusterIPRange
	}
	return nil
}

// readableFiles says whose the files of a controller are that this user may not read.
func (t target) readableFiles(l pki.Layout) error {
	for _, path := range []string{l.CA(), l.Kubeconfig(pki.NameAdmin), l.CAKey()} {
		f, err := os.Open(path)
		switch {
		case err == nil:
			_ = f.Close() // nothing was written
		case errors.Is(err, fs.ErrPermission):
			return t.forbidden(err)
		}
	}
	return nil
}

// apiURL is the address at which others reach the API server of this machine.
func apiURL(c config.Controller) string {
	return "https://" + net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(c.SecurePort))
}

// wantCA refuses a directory without a CA.
func wantCA(l pki.Layout) error {
	if datadir.Exists(l.CA()) {
		return nil
	}
	return advice.With(&fs.PathError{Op: "open", Path: l.CA(), Err: fs.ErrNotExist}, "name the directory of the controller with --data-dir, or its file with --config")
}
