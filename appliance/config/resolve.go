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

// Resolve fills in what this machine decides, for the parts of its roles, or for
// all when it has none: absolute paths, the host name, the address of the default
// route. Origin tells so afterwards.
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

// ResolveController is Resolve for a verb that looks at the controller's part only.
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

// resolveLB makes the paths absolute.
func resolveLB(c *lb.Config) (err error) {
	paths := []*string{&c.BackendCA, &c.CheckCert, &c.CheckKey, &c.AccessLog, &c.DiscoveryKubeconfig, &c.DiscoveryCache}
	if !strings.HasPrefix(c.UpgradeSocket, "@") { // that is no file
		paths = append(paths, &c.UpgradeSocket)
	}
	for _, path := range paths {
		if *path, err = absolute(*path); err != nil {
			return err
		}
	}
	return nil
}

// Resolve fills in what this machine decides and writes the rest in one form:
// paths absolute, pass-through arguments as "key=value". What was set stays.
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
			}
		}
	}
	return nil
}

// absolute is filepath.Abs that leaves an empty path empty, for Validate to name.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// hostName is the host name's first label, in lower case.
func hostName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the host name: %w", err)
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name, nil
}

// ownAddress is the address that other machines reach this one by: the one it
// listens on, if it is one, else the one that the default route leaves from,
// else 127.0.0.1.
func (c *Controller) ownAddress() string {
	if ip, err := netip.ParseAddr(c.BindAddress); err == nil && !ip.IsUnspecified() {
		return c.BindAddress
	}
	// Connecting a UDP socket sends nothing; these are addresses for documentation.
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

// Layout knows the paths below the data directory.
func (c Controller) Layout() pki.Layout {
	return pki.Layout{Dir: c.DataDir, EtcdDir: c.EtcdDataDir}
}

// PKISpec is what the certificates must be good for. It wants a configuration
// that is resolved and valid.
func (c Controller) PKISpec() pki.Spec {
	addresses := []string{c.AdvertiseAddress}
	if ip, err := netip.ParseAddr(c.BindAddress); err == nil && !ip.IsUnspecified() {
		addresses = append(addresses, c.BindAddress)
	}
	return pki.Spec{
		Addresses: unique(append(addresses, c.SubjectAltNames...)),
		Local:     unique([]string{c.AdvertiseAddress, c.LocalAddress()}),
		ServiceIP: c.ServiceIP(),
		Server:    c.LocalServer(),
	}
}

// ServiceIP is the first address of the service range, that of the service
// "kubernetes"; nil when the range is no CIDR.
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
