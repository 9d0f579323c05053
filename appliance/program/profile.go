package program

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
)

// profiled applies the profile of the configuration to kthwd's flags of a program. With
// config.ProfileGuide they stay as they are.
func profiled(name string, c config.Controller, l pki.Layout, args []Arg) []Arg {
	if c.Profile != config.ProfileCIS {
		return args
	}
	set, without := cis(name, c, l)
	args = slices.DeleteFunc(args, func(a Arg) bool { return slices.Contains(without, a.Key) })
	for _, s := range set {
		at := slices.IndexFunc(args, func(a Arg) bool { return a.Key == s.Key })
		if at < 0 {
			args = append(args, s)
		} else {
			args[at] = s
		}
	}
	return args
}

// cis is what config.ProfileCIS sets and takes out, where the guide's flags contradict the
// CIS benchmark or the STIG.
func cis(name string, c config.Controller, l pki.Layout) (set []Arg, without []string) {
	if name != APIServer { // etcd's client port: clientURLs; 10257 and 10259: ControllersBind
		return nil, nil
	}
	return []Arg{
		{"audit-log-maxbackup", "10"},
		// The guide's own way to etcd. Without the profile a socket spares the TLS between two
		// parts of one process.
		{"etcd-servers", "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.EtcdClientPort))},
		{"etcd-cafile", l.EtcdCA()},
		{"etcd-certfile", l.Cert(pki.NameEtcd)},
		{"etcd-keyfile", l.Key(pki.NameEtcd)},
	}, []string{"runtime-config", "enable-bootstrap-token-auth"}
}

// OfProfile returns the flags of a program that config.ProfileCIS sets or takes out.
func OfProfile(name string) (keys []string) {
	set, without := cis(name, config.Controller{}, pki.Layout{})
	for _, a := range set {
		keys = append(keys, a.Key)
	}
	return append(keys, without...)
}

// clientURLs are the addresses of etcd's client port. With config.ProfileCIS they are of this
// machine only; package others then answers the other controllers at the advertised address.
func clientURLs(c config.Controller, socket string) string {
	at := func(host string) string { return "https://" + net.JoinHostPort(host, strconv.Itoa(c.EtcdClientPort)) }
	var urls []string
	if c.Profile != config.ProfileCIS || isLoopback(c.AdvertiseAddress) {
		urls = append(urls, at(c.AdvertiseAddress))
	}
	if c.AdvertiseAddress != "127.0.0.1" {
		urls = append(urls, at("127.0.0.1"))
	}
	return strings.Join(append(urls, "unix://"+socket), ",")
}

// StatusAddress is the address at which a controller answers the other controllers when
// etcd's client port is on loopback; "" if etcd's port does that.
func StatusAddress(c config.Controller) string {
	if c.Profile != config.ProfileCIS || isLoopback(c.AdvertiseAddress) {
		return ""
	}
	return net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(c.EtcdClientPort))
}

// WithEtcdClient makes an API server that reaches etcd through TLS use the files with which
// etcd's client port is configured.
func WithEtcdClient(args, etcd []Arg) []Arg {
	same := map[string]string{"etcd-cafile": "trusted-ca-file", "etcd-certfile": "cert-file", "etcd-keyfile": "key-file"}
	for i, a := range args {
		if file := Value(etcd, same[a.Key]); same[a.Key] != "" && file != "" {
			args[i].Value = file
		}
	}
	return args
}

func isLoopback(address string) bool {
	ip := net.ParseIP(address)
	return ip != nil && ip.IsLoopback()
}

// FromProfile returns the flags of a program that a profile sets: those that the arguments
// with the profile have, and those without it lack or have with another value.
func FromProfile(with, without []Arg) (keys []string) {
	for _, a := range with {
		if !slices.Contains(without, a) {
			keys = append(keys, a.Key)
		}
	}
	return keys
}

// RunFiles are the files in the run directory that the configuration asks for, by path.
func RunFiles(c config.Controller, l pki.Layout) map[string][]byte {
	files := map[string][]byte{}
	for path, data := range map[string][]byte{l.Tracing(): TracingConfig(c), l.Admission(): AdmissionConfig(c)} {
		if data != nil {
			files[path] = data
		}
	}
	return files
}
