package eject

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/explain"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// The flags of etcd that say which certificates its ports accept, and its HTTP API, which
// cannot reach a port that accepts certain names only: see package etcdgateway.
const (
	clientNames = "client-cert-allowed-hostname"
	peerCNs     = "peer-cert-allowed-cn"
	peerNames   = "peer-cert-allowed-hostname"
	gateway     = "enable-grpc-gateway"
)

// alone returns the command lines of the programs as processes of their own.
func (in Input) alone() (map[string][]program.Arg, []loss, error) {
	args := map[string][]program.Arg{}
	for _, name := range explain.Names() {
		args[name] = slices.Clone(in.Args[name])
		if v := in.Verbosity[name]; v != 0 {
			args[name] = append(args[name], program.Arg{Key: "v", Value: strconv.Itoa(v)})
		}
	}
	etcd, lost, err := in.etcd(args[program.Etcd])
	if err != nil {
		return nil, nil, err
	}
	args[program.Etcd] = etcd
	args[program.APIServer], err = in.apiServer(args[program.APIServer], etcd)
	return args, lost, err
}

// etcd is its command line without the socket of kthwd's API server, and with the names that
// kthwd sets in code.
func (in Input) etcd(args []program.Arg) ([]program.Arg, []loss, error) {
	for i, a := range args {
		if a.Key != "listen-client-urls" {
			continue
		}
		urls := slices.DeleteFunc(strings.Split(a.Value, ","), func(u string) bool { return strings.HasPrefix(u, "unix") })
		args[i].Value = strings.Join(urls, ",")
	}
	var lost []loss
	if program.Value(args, "peer-trusted-ca-file") != "" && !has(args, peerCNs) && !has(args, peerNames) {
		names, err := pki.Controllers(program.Value(args, "peer-cert-file"))
		if err != nil {
			return nil, nil, err
		}
		key, list := peerCNs, names.CommonNames
		if len(list) == 0 {
			key, list = peerNames, names.Hosts
		}
		args = append(args, program.Arg{Key: key, Value: strings.Join(list, ",")})
	}
	if program.Value(args, "trusted-ca-file") != "" && !has(args, clientNames) {
		// etcd has no flag for the common name of a client, but every controller's certificate
		// has the names of the API server's service as well.
		names, err := pki.ServiceNames(program.Value(args, "cert-file"))
		switch {
		case err != nil:
			return nil, nil, err
		case len(names) == 0:
			lost = append(lost, loss{program.Etcd, "its client port accepts every certificate of its CA: etcd has no flag for a client's common name, and this controller's certificate has no name of the API server's service"})
		default:
			args = append(args, program.Arg{Key: clientNames, Value: strings.Join(names, ",")})
		}
	}
	if has(args, clientNames) && !has(args, gateway) {
		args = append(args, program.Arg{Key: gateway, Value: "false"})
	}
	return args, lost, nil
}

// apiServer is its command line with etcd behind TLS, as in the guide, in place of a socket.
func (in Input) apiServer(args, etcd []program.Arg) ([]program.Arg, error) {
	if !strings.HasPrefix(program.Value(args, "etcd-servers"), "unix:") {
		return in.withoutDelay(args), nil
	}
	server, err := etcdServer(etcd)
	if err != nil {
		return nil, err
	}
	files := []program.Arg{
		{Key: "etcd-servers", Value: server},
		{Key: "etcd-cafile", Value: program.Value(etcd, "trusted-ca-file")},
		{Key: "etcd-certfile", Value: program.Value(etcd, "cert-file")},
		{Key: "etcd-keyfile", Value: program.Value(etcd, "key-file")},
	}
	at := slices.IndexFunc(args, func(a program.Arg) bool { return a.Key == "etcd-servers" })
	return in.withoutDelay(slices.Replace(args, at, at+1, files...)), nil
}

// etcdServer is the URL of etcd's client port that its certificate has a name for; the
// address of this machine only comes first.
func etcdServer(etcd []program.Arg) (string, error) {
	urls := strings.Split(program.Value(etcd, "listen-client-urls"), ",")
	cert := program.Value(etcd, "cert-file")
	var hosts []string
	for i := len(urls) - 1; i >= 0; i-- { // kthwd puts 127.0.0.1 last
		u, err := url.Parse(urls[i])
		if err != nil || u.Scheme != "https" {
			continue
		}
		if pki.CertifiedFor(cert, u.Hostname()) {
			return "https://" + net.JoinHostPort(u.Hostname(), u.Port()), nil
		}
		hosts = append(hosts, u.Hostname())
	}
	return "", &pki.Misfit{File: cert, Problem: "has none of the addresses of etcd's client port: " + strings.Join(hosts, ", "),
		Hint: "issue it anew with kthwd pki controller NAME ADDRESS, where the key of the CA is"}
}

// withoutDelay leaves out the delay of a stop where no other controller serves meanwhile, as
// kthwd does.
func (in Input) withoutDelay(args []program.Arg) []program.Arg {
	c := in.Config.Controller
	if strings.Contains(c.EtcdInitialCluster(), ",") || c.InitialClusterState != "new" {
		return args
	}
	users := program.ParseUser(c.APIServerArgs)
	return slices.DeleteFunc(args, func(a program.Arg) bool { return a.Key == program.KeyShutdownDelay && !slices.Contains(users, a) })
}

func has(args []program.Arg, key string) bool {
	return slices.ContainsFunc(args, func(a program.Arg) bool { return a.Key == key })
}

var errNoService = errors.New("has no name of the API server's service")

// serviceName is a name by which nginx can verify the API server's certificate: it compares
// names, never addresses.
func serviceName(certFile string) (string, error) {
	names, err := pki.ServiceNames(certFile)
	switch {
	case err != nil:
		return "", err
	case len(names) == 0:
		return "", fmt.Errorf("%s %w", certFile, errNoService)
	}
	return names[len(names)-1], nil
}
