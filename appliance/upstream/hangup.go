package upstream

import (
	"context"
	"net/http"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// hangUpEvery is the time from one HangUp to the next while a server stops.
const hangUpEvery = 20 * time.Millisecond

// Connections are those of every client with one configuration, and of those with the same server
// that ask for no compression, or have a token in place of the certificate: client-go keeps one
// transport for each kind, and kube-controller-manager has all of them. Make them with
// ConnectionsOf before the first client, and keep them until the last one has ended: client-go
// forgets a transport that nobody has, and its idle connections stay open then
// (client-go/transport/cache.go: weak pointers).
type Connections struct{ transports []http.RoundTripper }

// ConnectionsOf finds the connections. It makes none.
func ConnectionsOf(config *rest.Config) *Connections {
	found := &Connections{}
	for _, kind := range []*rest.Config{config, rest.AnonymousClientConfig(config)} {
		for _, plain := range []bool{false, true} {
			c := rest.CopyConfig(kind)
			c.DisableCompression = plain
			if transport, err := rest.TransportFor(c); err == nil { // else there will never be a connection
				found.transports = append(found.transports, transport)
			}
		}
	}
	return found
}

// HangUp closes the connections that are idle. A server that stops waits a second for a client
// that does not hang up (net/http/h2_bundle.go: goAwayTimeout).
func (c *Connections) HangUp() {
	for _, transport := range c.transports {
		utilnet.CloseIdleConnectionsFor(transport)
	}
}

// KeepHangingUp calls HangUp again and again until ctx ends: a connection is idle only when its
// last request is over.
func (c *Connections) KeepHangingUp(ctx context.Context) {
	for tick := time.Tick(hangUpEvery); ctx.Err() == nil; {
		c.HangUp()
		select {
		case <-ctx.Done():
		case <-tick:
		}
	}
}
