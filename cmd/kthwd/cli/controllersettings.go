package cli

import (
	"context"
	"encoding/json"
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
	"kthwd/appliance/support"
)

// ControllerHere loads the controller's configuration for a verb that works with the files of a
// controller. Of one that runs, it takes the settings in force, for each that neither a flag of
// the verb nor the configuration file sets. So the verb needs no --data-dir while a controller
// answers at the metrics address.
func (a *App) ControllerHere(ctx context.Context, l *config.Loader) (config.Controller, error) {
	c, err := Controller(l)
	if err != nil {
		return c, err
	}
	t, err := a.Target(l)
	if err != nil || t.Dir == "" {
		return c, nil // a load balancer answers, if anything does
	}
	elsewhere := t.Dir != l.Config.Controller.DataDir
	ctx, cancel := context.WithTimeout(ctx, askElsewhere)
	defer cancel()
	r, err := AskRunning(ctx, t)
	switch {
	case err != nil && elsewhere:
		return c, t.Explain(err)
	case err != nil:
		return c, nil // none runs on the directory
	case elsewhere:
		c.DataDir = t.Dir
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

// ControllerOrFiles is controllerHere for a verb that works without a running controller, too: the
// files of the default data directory come first.
func (a *App) ControllerOrFiles(ctx context.Context, l *config.Loader) (config.Controller, error) {
	c, err := Controller(l)
	if err != nil || datadir.Exists(c.Layout().CA()) {
		return c, err
	}
	return a.ControllerHere(ctx, l)
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
func (t Target) readableFiles(l pki.Layout) error {
	for _, path := range []string{l.CA(), l.Kubeconfig(pki.NameAdmin), l.CAKey()} {
		f, err := os.Open(path)
		switch {
		case err == nil:
			_ = f.Close() // nothing was written
		case errors.Is(err, fs.ErrPermission):
			return t.Forbidden(err)
		}
	}
	return nil
}

// APIURL is the address at which others reach the API server of this machine.
func APIURL(c config.Controller) string {
	return "https://" + net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(c.SecurePort))
}

// WantCA refuses a directory without a CA.
func WantCA(l pki.Layout) error {
	if datadir.Exists(l.CA()) {
		return nil
	}
	return advice.With(&fs.PathError{Op: "open", Path: l.CA(), Err: fs.ErrNotExist}, "name the directory of the controller with --data-dir, or its file with --config")
}

// AskRunning asks the running kthwd for its configuration and its command lines.
func AskRunning(ctx context.Context, c Target) (r support.Running, err error) {
	body, err := c.Get(ctx, support.PathRunning)
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	return r, err
}

// Controller loads the controller's configuration for a verb.
func Controller(l *config.Loader) (config.Controller, error) {
	if err := l.Load(); err != nil {
		return config.Controller{}, err
	}
	if err := l.ResolveController(); err != nil {
		return config.Controller{}, err
	}
	return l.Config.Controller, l.ValidateController()
}

// Read loads, resolves and validates a configuration whose flags are parsed.
func Read(l *config.Loader) error {
	if err := l.Load(); err != nil {
		return err
	}
	if err := l.Resolve(); err != nil {
		return err
	}
	return l.Validate()
}
