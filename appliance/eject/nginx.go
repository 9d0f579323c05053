package eject

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/lb"
)

// healthName is the guide's name of the file and of the server in it.
const healthName = "kubernetes.default.svc.cluster.local"

// healthFile is the guide's nginx in front of the API server's health, with what kthwd's
// bridge does beyond it as far as nginx can: it verifies the certificate, and presents one.
func healthFile(c config.Controller, servingCert string) (File, error) {
	l := c.Layout()
	var verify strings.Builder
	set := func(key, value string) { fmt.Fprintf(&verify, "    %-30s %s;\n", key, value) }
	set("proxy_ssl_trusted_certificate", quoted(l.CA()))
	switch name, err := serviceName(servingCert); {
	case err == nil:
		set("proxy_ssl_verify", "on")
		set("proxy_ssl_name", name)
	case !errors.Is(err, errNoService):
		return File{}, err
	}
	if _, err := os.Stat(l.Key(pki.NameHealth)); err == nil {
		set("proxy_ssl_certificate", quoted(l.Cert(pki.NameHealth)))
		set("proxy_ssl_certificate_key", quoted(l.Key(pki.NameHealth)))
	}
	name := c.HealthServerName
	if name == "" {
		name = healthName
	}
	text := fmt.Sprintf(`# The health of the API server over plain HTTP, for load balancers. As with kthwd, /healthz
# says no as soon as the server is about to leave: it is the API server's /readyz.
server {
    listen      %s;
    server_name %s;

%s
    location = /healthz { proxy_pass %[4]s/readyz; }
    location = /readyz  { proxy_pass %[4]s/readyz; }
    location = /livez   { proxy_pass %[4]s/livez; }
}
`, listenAt(c.HealthAddress), name, verify.String(), c.LocalServer())
	return File{filepath.Join("nginx", healthName), 0o644, []byte(text)}, nil
}

// listenAt is ADDRESS:PORT for nginx, without an address the port alone, as in the guide.
func listenAt(address string) string { return strings.TrimPrefix(address, ":") }

// quoted is a word of nginx's configuration.
func quoted(s string) string {
	if strings.ContainsAny(s, " \t\n;{}\"'\\$#") {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}

// streamFile is the guide's nginx in front of the API servers.
func streamFile(c lb.Config) (File, error) {
	servers, err := upstreamServers(c)
	if err != nil {
		return File{}, err
	}
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("stream {\n    upstream kubernetes {")
	switch c.Balance {
	case lb.LeastConnections:
		line("        least_conn;")
	case lb.SourceHash:
		line("        hash $remote_addr consistent;")
	}
	for _, s := range servers {
		line("        server %s;", s)
	}
	line("    }\n\n    server {")
	for _, l := range c.ListenAddresses() {
		accept := ""
		if slices.Contains(c.ProxiedListeners(), l) {
			accept = " proxy_protocol"
		}
		line("        listen %s%s;", listenAt(l), accept)
	}
	for _, from := range c.AcceptProxyFrom {
		line("        set_real_ip_from %s;", from)
	}
	line("        proxy_pass kubernetes;")
	line("        proxy_connect_timeout %s;", nginxTime(c.ConnectTimeout))
	line("        # A watch may be silent for hours; nginx would cut it after ten minutes.")
	line("        proxy_timeout 24h;\n        proxy_socket_keepalive on;")
	switch c.ProxyProtocol {
	case lb.ProxyV1:
		line("        proxy_protocol on;")
	case lb.ProxyV2:
		return File{}, advice.With(errors.New("nginx writes version 1 of the PROXY protocol only, and the backends get version 2"), "switch kthwd and the backends to --proxy-protocol=v1 first, or to off")
	}
	for i, source := range c.Sources {
		if i > 0 {
			return File{}, advice.With(errors.New("nginx connects to its backends from one address, and there are several in sources"), "leave one of them")
		}
		line("        proxy_bind %s;", source)
	}
	line("    }\n}")
	return File{filepath.Join("nginx", "kubernetes.conf"), 0o644, []byte(b.String())}, nil
}

// nginxTime is a time in nginx's form.
func nginxTime(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// upstreamServers are the backends as nginx's servers, with their options.
func upstreamServers(c lb.Config) (all []string, err error) {
	if len(c.Backends) == 0 {
		return nil, advice.With(errors.New("the load balancer finds its backends by discovery, which nginx has not"), "name them with --backend=HOST:PORT, as kthwd status shows them")
	}
	for i, b := range c.Backends {
		words := strings.Fields(b)
		if _, _, err := net.SplitHostPort(words[0]); err != nil {
			return nil, advice.With(fmt.Errorf("backend %s has SRV records, which this nginx does not look up in a stream", words[0]), "name its servers with --backend=HOST:PORT, as kthwd status shows them")
		}
		server, options := words[0], strings.Join(words[1:], " ")
		backup := false
		for words := strings.Fields(strings.ReplaceAll(options, "=", " ")); len(words) > 0; words = words[1:] {
			switch {
			case words[0] == "backup":
				backup = true
			case words[0] == "weight" && len(words) > 1 && words[1] == "0":
				server += " down"
			case words[0] == "weight" && len(words) > 1:
				server += " weight=" + words[1]
			}
		}
		switch {
		case backup && c.Balance == lb.SourceHash:
			return nil, advice.With(fmt.Errorf("backend %s is a backup, which nginx does not have beside a hash of the source", words[0]), "leave it out, or choose another --balance")
		case backup || c.Balance == lb.FirstAlive && i > 0:
			server += " backup"
		}
		all = append(all, server)
	}
	return all, nil
}
