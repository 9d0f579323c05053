package status

import (
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
)

// ownHosts refuses requests of a browser that a foreign page has sent to a loopback
// address under a name of its own (DNS rebinding). Such a request has the foreign name as
// its host. An address is not refused: a page cannot make a browser take one for its own
// origin. Other listening addresses are the operator's decision and are not restricted.
// The answers say that no cache may keep them and no browser may guess their type.
func ownHosts(address string, next http.Handler) http.Handler {
	names := []string{"localhost"}
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
		names = append(names, host)
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if onLoopback(r) && !isOwnHost(r.Host, names) {
			// As the health bridge: the path exists, but not under this host.
			http.Error(w, "not a name of this machine: use localhost, or an address", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}

// isOwnHost compares the Host header of a request, with or without a port.
func isOwnHost(hostport string, names []string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || host == "" { // HTTP/1.0 needs no host
		return true
	}
	for _, n := range names {
		if strings.EqualFold(host, n) {
			return true
		}
	}
	return strings.HasSuffix(host, ".localhost") // no resolver asks a server for it: RFC 6761
}
