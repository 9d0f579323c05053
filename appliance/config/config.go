// Package config is kthwd's configuration: the settings, their defaults, and the
// combinations that are refused.
//
// It goes one way: Default gives every value once, the YAML file overrides it,
// the command line overrides the file, Validate reports all problems at once, and
// nothing changes the result. Keys of the file are names of flags. See Loader.
//
// The package links neither Kubernetes nor etcd, so it compiles and runs its tests
// in seconds. It reads no environment variable and keeps no global state.
package config

import (
	"net"
	"slices"
	"strconv"
	"time"

	"kthwd/lb"
)

// Config is the configuration of one kthwd process.
type Config struct {
	Role           []string // RoleController, RoleLB or both
	LogFormat      string   // "text" or "json"
	LogLevel       []string // "info", or "etcd=debug" for one component; later ones win
	MetricsAddress string   // address of metrics and status; "" disables it
	MetricsWeb     string   // web configuration file of exporter-toolkit: TLS, client certificates, basic auth; "" means plain HTTP
	MetricsOpen    bool     // plain HTTP on a non-loopback address is intended
	MetricsPprof   bool     // also serve profiles at MetricsAddress
	Debugger       bool     // other processes of the same user may read the memory of this one, and it may leave a core dump
	StatusSocket   string   // a load balancer's status socket; "" means none. A controller's is in its data directory
	Controller     Controller
	LB             lb.Config
}

// Is reports whether the process has the role.
func (c Config) Is(role string) bool { return slices.Contains(c.Role, role) }

// Controller is the configuration of the controller role.
type Controller struct {
	DataDir     string   // directory of all files of the tutorial, flat; see pki.Layout
	EtcdDataDir string   // directory of etcd's data; empty means <DataDir>/etcd
	Files       []string // NAME=FILE of files outside DataDir; see pki.Movable
	Name        string   // etcd member name and lease holder; empty means the host name

	BindAddress      string // address on which the API server listens
	SecurePort       int
	AdvertiseAddress string   // address at which other machines reach this one; empty means see ownAddress
	SubjectAltNames  []string // additional names and addresses for a kubernetes.pem made here

	EtcdClientPort        int
	EtcdPeerPort          int
	ControllerManagerPort int
	SchedulerPort         int
	JoinPort              int // open on AdvertiseAddress while another controller may join

	HealthAddress    string // address of the plain HTTP health bridge; "" disables it
	HealthServerName string // the only Host that the bridge answers; "" means any

	InitialCluster        []string // NAME=ADDRESS of every controller, this one included; empty means this one only
	InitialClusterState   string   // StateNew or StateExisting; ignored once etcd has data
	ServiceClusterIPRange string
	ClusterCIDR           string

	BackupDir        string        // directory of archives; empty means none
	BackupEvery      time.Duration // time from one backup to the next; 0 means no schedule
	BackupKeep       int           // archives of the cluster that stay
	BackupRecipients []string      // age recipients; none means archives without secrets
	BackupHook       string        // a program that is run after each backup; empty means none
	UpgradeCopy      bool          // copy the data before the first start of a newer minor
	SpaceWindow      string        // when etcd's databases may be defragmented each day, see ParseWindow; empty means never

	Profile string // ProfileGuide or ProfileCIS: which flags the programs get

	TracingEndpoint string // HOST:PORT of an OpenTelemetry collector, gRPC without TLS; empty means no traces

	// Flags for the programs, each "key=value". They override kthwd's own.
	EtcdArgs              []string
	APIServerArgs         []string
	ControllerManagerArgs []string
	SchedulerArgs         []string
}

// The values of Profile.
const (
	ProfileGuide = "guide" // what the guide names stays as the guide has it
	ProfileCIS   = "cis"   // the CIS benchmark's values where the guide contradicts it
)

// The values of InitialClusterState.
const (
	StateNew      = "new"
	StateExisting = "existing"
)

// Default returns the default configuration: the tutorial's paths, ports and
// ranges, and lb.Default. These two functions hold every default of kthwd.
func Default() Config {
	return Config{
		LogFormat:      "text",
		LogLevel:       []string{"info"},
		MetricsAddress: "127.0.0.1:10300",
		StatusSocket:   "/run/kthwd-lb/status.sock",
		LB:             lb.Default(),
		Controller: Controller{
			DataDir:               "/var/lib/kubernetes",
			BindAddress:           "0.0.0.0",
			SecurePort:            6443,
			EtcdClientPort:        2379,
			EtcdPeerPort:          2380,
			ControllerManagerPort: 10257, // 10257 and 10259 are fixed in kubectl get componentstatuses
			SchedulerPort:         10259,
			JoinPort:              10301,
			InitialClusterState:   StateNew,
			HealthAddress:         ":80",
			HealthServerName:      "",
			BackupKeep:            8,
			UpgradeCopy:           true,
			ServiceClusterIPRange: "10.32.0.0/24",
			ClusterCIDR:           "10.200.0.0/16",
			Profile:               ProfileGuide,
		},
	}
}

// LocalAddress returns the address at which a client on this machine reaches a
// server that listens on BindAddress.
func (c Controller) LocalAddress() string {
	ip := net.ParseIP(c.BindAddress)
	switch {
	case ip == nil || ip.Equal(net.IPv4zero):
		return "127.0.0.1"
	case ip.Equal(net.IPv6unspecified) && hasIPv6():
		return "::1"
	case ip.Equal(net.IPv6unspecified):
		return "127.0.0.1" // a listener on :: accepts IPv4, too
	default:
		return c.BindAddress
	}
}

// hasIPv6 reports whether this machine has the loopback address of IPv6, which a kernel
// without IPv6, or with net.ipv6.conf.all.disable_ipv6, lacks.
func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// LocalServer returns the URL of the API server for clients on this machine.
func (c Controller) LocalServer() string {
	return "https://" + net.JoinHostPort(c.LocalAddress(), strconv.Itoa(c.SecurePort))
}
