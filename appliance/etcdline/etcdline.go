// Package etcdline reads etcd's command line into etcd's own configuration, and decides the
// timing of a member that is alone.
package etcdline

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/pkg/v3/flags"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/paths"
	"kthwd/appliance/program"
)

// Parse parses an etcd command line into etcd's own configuration. etcd's own parser
// would exit the process (etcdmain/config.go:parse), so Parse repeats its steps after
// flag.Parse with the same exported helpers.
func Parse(args []program.Arg, logger func(*embed.Config) error) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.ZapLoggerBuilder = logger
	fs := flag.NewFlagSet(program.Etcd, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	cfg.AddFlags(fs)
	state := flags.NewSelectiveStringValue(embed.ClusterStateFlagNew, embed.ClusterStateFlagExisting)
	fs.Var(state, "initial-cluster-state", "")
	if err := fs.Parse(program.Render(args)); err != nil {
		var names []string
		fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
		return nil, cmdline.UnknownFlag(program.Etcd, names, err)
	}
	cfg.ListenPeerUrls = flags.UniqueURLsFromFlag(fs, "listen-peer-urls")
	cfg.AdvertisePeerUrls = flags.UniqueURLsFromFlag(fs, "initial-advertise-peer-urls")
	cfg.ListenClientUrls = flags.UniqueURLsFromFlag(fs, "listen-client-urls")
	cfg.ListenClientHttpUrls = flags.UniqueURLsFromFlag(fs, "listen-client-http-urls")
	cfg.AdvertiseClientUrls = flags.UniqueURLsFromFlag(fs, "advertise-client-urls")
	cfg.ListenMetricsUrls = flags.UniqueURLsFromFlag(fs, "listen-metrics-urls")
	cfg.CORS = flags.UniqueURLsMapFromFlag(fs, "cors")
	cfg.HostWhitelist = flags.UniqueStringsMapFromFlag(fs, "host-whitelist")
	cfg.ClientTLSInfo.AllowedHostnames = flags.StringsFromFlag(fs, "client-cert-allowed-hostname")
	cfg.PeerTLSInfo.AllowedCNs = flags.StringsFromFlag(fs, "peer-cert-allowed-cn")
	cfg.PeerTLSInfo.AllowedHostnames = flags.StringsFromFlag(fs, "peer-cert-allowed-hostname")
	cfg.DiscoveryCfg.Endpoints = flags.UniqueStringsFromFlag(fs, "discovery-endpoints")
	cfg.CipherSuites = flags.StringsFromFlag(fs, "cipher-suites")
	cfg.MaxConcurrentStreams = flags.Uint32FromFlag(fs, "max-concurrent-streams")
	cfg.ClusterState = state.String()
	if !flags.IsSet(fs, "initial-cluster") && (cfg.DNSCluster != "" || cfg.DNSClusterServiceName != "" || len(cfg.DiscoveryCfg.Endpoints) > 0) {
		cfg.InitialCluster = "" // its default excludes discovery
	}
	fs.Visit(func(f *flag.Flag) { cfg.FlagsExplicitlySet[f.Name] = true })
	if err := checkSockets(cfg); err != nil {
		return nil, err
	}
	UseLoneTiming(cfg)
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", program.Etcd, err)
	}
	return cfg, nil
}

// checkSockets refuses a unix socket whose URL means another path than it shows, and one
// whose path is in use: etcd removes whatever is there (client/pkg/transport/unix_listener.go).
func checkSockets(cfg *embed.Config) error {
	for _, all := range [][]url.URL{cfg.ListenClientUrls, cfg.ListenClientHttpUrls, cfg.ListenPeerUrls, cfg.ListenMetricsUrls} {
		for _, u := range all {
			if u.Scheme != "unix" && u.Scheme != "unixs" {
				continue
			}
			if u.Fragment != "" || u.RawQuery != "" || u.ForceQuery || strings.HasSuffix(u.String(), "#") {
				return advice.With(fmt.Errorf("%s: %s: its path ends before the # or ?", program.Etcd, u.String()),
					"write %23 for # and %3F for ?, or choose another path")
			}
			if err := paths.FreeForSocket(u.Host + u.Path); errors.Is(err, paths.ErrNotSocket) {
				return advice.With(fmt.Errorf("%s: %w", program.Etcd, err), "etcd would remove it: choose another path for the socket, or move it away")
			}
		}
	}
	return nil
}

// loneTick is the tick of a member that is alone, in milliseconds.
const loneTick = 50

// UseLoneTiming lets a lone member elect itself in 50–250 ms instead of 0.1–1 s. It sends
// no heartbeats, so nothing else depends on the tick. A shorter tick would wake an idle
// process five times as often (raft, monitorLeader).
func UseLoneTiming(cfg *embed.Config) {
	set := cfg.FlagsExplicitlySet
	if Alone(cfg) && !set["heartbeat-interval"] && !set["election-timeout"] {
		cfg.TickMs, cfg.ElectionMs = loneTick, 250
	}
}

// UseDefaultTiming restores etcd's own timing for a member that was created as the only
// one of its cluster, which has had other members since.
func UseDefaultTiming(cfg *embed.Config) {
	if set := cfg.FlagsExplicitlySet; !set["heartbeat-interval"] && !set["election-timeout"] {
		d := embed.NewConfig()
		cfg.TickMs, cfg.ElectionMs = d.TickMs, d.ElectionMs
	}
}

// HasLoneTiming tells whether the member has the timing of a lone member. If it led
// several members, it would step down whenever they did not answer for 250 ms.
func HasLoneTiming(cfg *embed.Config) bool {
	return cfg.TickMs == loneTick && !cfg.FlagsExplicitlySet["heartbeat-interval"]
}

// Alone tells whether the member was created as the only one of its cluster. Others may
// have been added since; it may then still wait for a quorum.
func Alone(cfg *embed.Config) bool {
	return cfg.InitialCluster != "" && !strings.Contains(cfg.InitialCluster, ",") && cfg.ClusterState == embed.ClusterStateFlagNew
}

// Socket returns the unix socket among the client URLs, or "".
func Socket(cfg *embed.Config) string {
	for _, u := range cfg.ListenClientUrls {
		if u.Scheme == "unix" {
			return filepath.Join(u.Host, u.Path)
		}
	}
	return ""
}
