package lb

import (
	"bufio"
	"io"
	"net"
	"os"
	"testing"

	"github.com/pires/go-proxyproto"
)

// The header precedes all other data, and has the client's source and destination, even
// when the listener serves both address families.
func TestProxyHeader(t *testing.T) {
	for _, tt := range []struct {
		name, listen, dial string
	}{
		{"IPv4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "::1"},
		{"IPv4 at a listener for both", ":0", "127.0.0.1"},
		{"IPv6 at a listener for both", ":0", "::1"},
	} {
		for _, version := range []string{ProxyV1, ProxyV2, ProxyOff} {
			t.Run(tt.name+"/"+version, func(t *testing.T) {
				type seen struct {
					header *proxyproto.Header
					rest   string
				}
				got := make(chan seen, 1)
				p := newPeerAt(t, "127.0.0.1:0", func(c net.Conn) {
					in := bufio.NewReader(c)
					h, _ := proxyproto.ReadTimeout(in, patience)
					rest, _ := io.ReadAll(in)
					got <- seen{h, string(rest)}
				})
				f, addr := socket(t, tt.listen)
				_, port, _ := net.SplitHostPort(addr)
				cfg := testConfig(p.addr)
				if host, _, _ := net.SplitHostPort(tt.listen); host == "" {
					addr = ":" + port // the socket's own address, [::], means IPv6 only
				}
				cfg.Listen, cfg.ProxyProtocol = []string{addr}, version
				r := run(t, cfg, Options{Sockets: []*os.File{f}})
				c := dial(t, net.JoinHostPort(tt.dial, port))
				must(t, write(c, "the client's own"), c.CloseWrite())
				s := receive(t, "what the backend sees", got)
				must(t, equal("rest", s.rest, "the client's own"))
				if version == ProxyOff {
					must(t, equal("header", s.header, nil))
					return
				}
				if s.header == nil {
					t.Fatal("no header")
				}
				must(t, equal("source", s.header.SourceAddr.String(), c.LocalAddr().String()),
					equal("destination", s.header.DestinationAddr.String(), c.RemoteAddr().String()),
					equal("version", "v"+string('0'+s.header.Version), version))
				c.Close()
				r.empty()
			})
		}
	}
}
