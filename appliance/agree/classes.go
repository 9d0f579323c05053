package agree

import (
	"path/filepath"
	"strings"

	"kthwd/appliance/program"
)

// Class says what it means that a flag differs between two controllers.
type Class string

// The classes. A flag that is in no table should agree.
const (
	Must    Class = "must agree"   // objects or answers depend on which controller serves
	Should  Class = "should agree" // the controllers behave differently, and each one rightly
	Differs Class = "differs"      // by nature: addresses, names, paths
)

// must lists the flags by program. Their values are no secrets.
var must = map[string][]string{
	program.APIServer: {
		"service-cluster-ip-range", "service-account-issuer", "api-audiences", "feature-gates", "runtime-config", "authorization-mode",
		"enable-admission-plugins", "disable-admission-plugins", "etcd-prefix", "event-ttl", "storage-media-type", "service-node-port-range", "anonymous-auth",
	},
	program.ControllerManager: {
		"cluster-cidr", "service-cluster-ip-range", "allocate-node-cidrs", "node-cidr-mask-size", "node-cidr-mask-size-ipv4", "node-cidr-mask-size-ipv6",
		"cluster-name", "feature-gates", "controllers", "use-service-account-credentials",
	},
	program.Scheduler: {"feature-gates"},
	ownProgram:        {keyProfile},
	program.Etcd:      {"heartbeat-interval", "election-timeout", "quota-backend-bytes", "auto-compaction-mode", "auto-compaction-retention", "max-request-bytes"},
}

// differs lists the flags that name a machine or what it knew at its first start.
var differs = []string{
	"name", "advertise-address", "bind-address", "address", "initial-cluster", "initial-cluster-state", "initial-advertise-peer-urls", "listen-peer-urls",
	"listen-client-urls", "advertise-client-urls", "secure-port", "etcd-servers", "data-dir", "wal-dir",
	"emulated-version", // follows the upgrade of each controller, see kthwd upgrade status
}

func classOf(name, key string) Class {
	for _, k := range must[name] {
		if k == key {
			return Must
		}
	}
	for _, k := range differs {
		if k == key {
			return Differs
		}
	}
	return Should
}

// plain is a value without what is this machine's: its data directory and its address.
func (c *Controllers) plain(value string) string {
	for _, r := range []struct{ what, by string }{{c.Layout.Etcd(), "ETCD-DATA-DIR"}, {filepath.Clean(c.Layout.Dir), "DATA-DIR"}, {c.Address, "ADDRESS"}} {
		if r.what != "" {
			value = strings.ReplaceAll(value, r.what, r.by)
		}
	}
	return value
}
