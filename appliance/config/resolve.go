package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kthwd/appliance/pki"
	"kthwd/lb"
)

// Resolve fills in the values that depend on this machine: absolute paths, the host
// name, the address of the default route. It does so for the parts of its roles, or
// for all parts when it has no role. Origin names the source of such a value.
func (l *Loader) Resolve() (err error) {
	if l.Config.MetricsWeb, err = absolute(l.Config.MetricsWeb); err != nil {
		return err
	}
	if l.Config.Is(RoleLB) || len(l.Config.Role) == 0 {
		if err := resolveLB(&l.Config.LB); err != nil {
			return err
		}
	}
	if l.Config.Is(RoleLB) && !l.Config.Is(RoleController) {
		return nil
	}
	return l.ResolveController()
}

// ResolveController is Resolve for a verb that reads only the controller's part.
func (l *Loader) ResolveController() error {
	before := l.Config.Controller
	if err := l.Config.Controller.Resolve(); err != nil {
		return err
	}
	after := l.Config.Controller
	derived := func(key, was, is, from string) {
		if was == "" && is != "" {
			l.origins[key] = OriginDefault + ", " + from
		}
	}
	derived("name", before.Name, after.Name, "the host name")
	derived("etcd-data-dir", before.EtcdDataDir, after.EtcdDataDir, "below data-dir")
	derived("advertise-address", before.AdvertiseAddress, after.AdvertiseAddress, "where the default route leaves from")
	return nil
}

// resolveLB makes the load balancer's paths absolute, and takes lists in one value apart.
func resolveLB(c *lb.Config) (err error) {
	c.SplitLists()
	paths := []*string{&c.BackendCA, &c.CheckCert, &c.CheckKey, &c.AccessLog, &c.DiscoveryKubeconfig, &c.DiscoveryCache}
	if !strings.HasPrefix(c.UpgradeSocket, "@") { // an abstract socket is not a file
		paths = append(paths, &c.UpgradeSocket)
	}
	for _, path := range paths {
		if *path, err = absolute(*path); err != nil {
			return err
		}
	}
	return nil
}

// Resolve fills in the values that depend on this machine and normalises the others:
// it makes paths absolute and pass-through arguments "key=value". It keeps every
// value that was set.
func (c *Controller) Resolve() (err error) {
	if c.DataDir, err = absolute(c.DataDir); err != nil {
		return err
	}
	if c.EtcdDataDir == "" && c.DataDir != "" {
		c.EtcdDataDir = c.Layout().Etcd()
	}
	if c.EtcdDataDir, err = absolute(c.EtcdDataDir); err != nil {
		return err
	}
	if err := c.resolveBackup(); err != nil {
		return err
	}
	if c.Name == "" {
		if c.Name, err = hostName(); err != nil {
			return err
		}
	}
	if c.AdvertiseAddress == "" {
		c.AdvertiseAddress = c.ownAddress()
	}
	for _, args := range []*[]string{&c.EtcdArgs, &c.APIServerArgs, &c.ControllerManagerArgs, &c.SchedulerArgs} {
		*args = slices.Clone(*args)
		for i, arg := range *args {
			if key, value := SplitArg(arg); anArg.MatchString(key) {
				(*args)[i] = key + "=" + value
				if value == "" && strings.HasSuffix(key, "-") { // takes the flag out
					(*args)[i] = key
				}
			}
		}
	}
	return nil
}

// resolveBackup makes the paths of the backup absolute.
func (c *Controller) resolveBackup() (err error) {
	for _, path := range []*string{&c.BackupDir, &c.BackupHook} {
		if *path, err = absolute(*path); err != nil {
			return err
		}
	}
	c.BackupRecipients = slices.Clone(c.BackupRecipients)
	for i, r := range c.BackupRecipients {
		if !strings.HasPrefix(r, "age1") {
			if c.BackupRecipients[i], err = absolute(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// absolute is filepath.Abs, but keeps an empty path empty for Validate to report.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// hostName returns the first label of the host name, in lower case.
func hostName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the host name: %w", err)
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name, nil
}

// ownAddress returns the address at which other machines reach this one: BindAddress
// if that is a single address, else the source address of the default route, else
// 127.0.0.1.
func (c *Controller) ownAddress() string {
	if ip, err := netip.ParseAddr(c.BindAddress); err == nil && !ip.IsUnspecified() {
		return c.BindAddress
	}
	// Connecting a UDP socket sends nothing. These addresses are reserved for documentation.
	for _, elsewhere := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := net.Dial("udp", elsewhere)
		if err != nil {
			continue
		}
		conn.Close()
		if from, ok := conn.LocalAddr().(*net.UDPAddr); ok && !from.IP.IsUnspecified() && from.Zone == "" {
			return from.IP.String()
		}
	}
	return "127.0.0.1"
}

// Layout returns the paths below the data directory.
func (c Controller) Layout() pki.Layout {
	return pki.Layout{Dir: c.DataDir, EtcdDir: c.EtcdDataDir, Elsewhere: Elsewhere(c.Files)}
}

// Elsewhere returns the files outside the data directory by their names there: the setting
// files as pki.Layout has it.
func Elsewhere(files []string) map[string]string {
	var all map[string]string
	for _, f := range files {
		if name, path, ok := strings.Cut(f, "="); ok {
			if all == nil {
				all = map[string]string{}
			}
			all[name] = path
		}
	}
	return all
}

// PKISpec returns what the certificates must be valid for. The configuration must be
// resolved and valid.
func (c Controller) PKISpec() pki.Spec {
	addresses := []string{c.AdvertiseAddress}
	if ip, err := netip.ParseAddr(c.BindAddress); err == nil && !ip.IsUnspecified() {
		addresses = append(addresses, c.BindAddress)
	}
	local := []string{c.AdvertiseAddress, c.LocalAddress()}
	if c.Profile == ProfileCIS {
		local = append(local, "127.0.0.1") // the API server reaches etcd there
	}
	return pki.Spec{
		Addresses: unique(append(addresses, c.SubjectAltNames...)),
		Local:     unique(local),
		ServiceIP: c.ServiceIP(),
		Server:    c.LocalServer(),
	}
}

// ServiceIP returns the first address of the service range, which is that of the
// service "kubernetes". It returns nil when the range is not a CIDR.
func (c Controller) ServiceIP() net.IP {
	first, _, _ := strings.Cut(c.ServiceClusterIPRange, ",")
	p, err := netip.ParsePrefix(first)
	if err != nil {
		return nil
	}
	return p.Masked().Addr().Next().AsSlice()
}

func unique(all []string) (once []string) {
	for _, s := range all {
		if s != "" && !slices.Contains(once, s) {
			once = append(once, s)
		}
	}
	return once
}
