// Package config is kthwd's configuration: what can be set, what it is when
// nobody sets it, and which combinations are refused.
//
// It goes one way. Default gives every value once; Load reads the YAML file
// over it and the command line over that; Validate names all problems at once;
// afterwards nothing changes it. Keys of the file are the names of the flags.
//
// The package links no Kubernetes and no etcd, so that it compiles and is
// tested in seconds. It reads no environment variable and keeps no global.
package config

import (
	"net"
	"slices"
	"strconv"

	"kthwd/lb"
)

// Config is the configuration of one kthwd process.
type Config struct {
	Role           []string // what this process is: RoleController, RoleLB or both
	LogFormat      string   // "text" or "json"
	LogLevel       []string // "info", or per component "etcd=debug"; later ones win
	MetricsAddress string   // metrics and status; "" switches it off
	MetricsWeb     string   // exporter-toolkit's web configuration: TLS, client certificates, basic auth; "" is plain HTTP
	MetricsOpen    bool     // plain HTTP on an address that other machines reach is meant
	MetricsPprof   bool     // profiles beside them
	StatusSocket   string   // of a load balancer; "" for none. A controller's is in its data directory
	Controller     Controller
	LB             lb.Config
}

// Is tells whether the process has the role.
func (c Config) Is(role string) bool { return slices.Contains(c.Role, role) }

// Controller is the configuration of the controller role.
type Controller struct {
	DataDir     string // all files of the tutorial, flat; see pki.Layout
	EtcdDataDir string // etcd's own data; empty means <DataDir>/etcd
	Name        string // etcd member name and lease holder; empty means the host name

	BindAddress      string // where the API server listens
	SecurePort       int
	AdvertiseAddress string   // what other machines reach this one by; empty means the address of the default route
	SubjectAltNames  []string // further names and addresses for a kubernetes.pem that is made here

	EtcdClientPort        int
	EtcdPeerPort          int
	ControllerManagerPort int
	SchedulerPort         int
	JoinPort              int // open on AdvertiseAddress while another controller may join

	HealthAddress    string // the plain HTTP bridge; "" switches it off
	HealthServerName string // the only Host it answers; "" means any

	InitialCluster        []string // NAME=ADDRESS of every controller, this one included; empty means this one only
	InitialClusterState   string   // StateNew or StateExisting; counts until etcd has data
	ServiceClusterIPRange string
	ClusterCIDR           string

	TracingEndpoint string // HOST:PORT of an OpenTelemetry collector, gRPC without TLS; empty for no traces

	// Passed to the programs after kthwd's own flags, each "key=value"; the user's wins.
	EtcdArgs              []string
	APIServerArgs         []string
	ControllerManagerArgs []string
	SchedulerArgs         []string
}

// What InitialClusterState may be.
const (
	StateNew      = "new"
	StateExisting = "existing"
)

// Default is the configuration when nobody says otherwise: the tutorial's
// paths, ports and ranges, and lb.Default. Every default of kthwd's own is
// written in one of the two and nowhere else.
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
			ServiceClusterIPRange: "10.32.0.0/24",
			ClusterCIDR:           "10.200.0.0/16",
		},
	}
}

// LocalAddress is the address on which a client on this machine reaches a
// server that listens on BindAddress.
func (c Controller) LocalAddress() string {
	ip := net.ParseIP(c.BindAddress)
	switch {
	case ip == nil || ip.Equal(net.IPv4zero):
		return "127.0.0.1"
	case ip.Equal(net.IPv6unspecified):
		return "::1"
	default:
		return c.BindAddress
	}
}

// LocalServer is the URL of the API server for clients on this machine.
func (c Controller) LocalServer() string {
	return "https://" + net.JoinHostPort(c.LocalAddress(), strconv.Itoa(c.SecurePort))
}
