package upstream

import (
	"context"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// hangUpEvery is the time from one HangUp to the next while a server stops.
const hangUpEvery = 20 * time.Millisecond

// HangUp closes the idle connections of every client with a configuration like this one, and of
// those with the same server that ask for no compression, or have a token in place of the
// certificate: client-go keeps one transport for each kind (client-go/transport/cache.go), and
// kube-controller-manager has all of them. A server that stops waits a second for a client that
// does not hang up (net/http/h2_bundle.go: goAwayTimeout).
func HangUp(config *rest.Config) {
	for _, kind := range []*rest.Config{config, rest.AnonymousClientConfig(config)} {
		for _, plain := range []bool{false, true} {
			c := rest.CopyConfig(kind)
			c.DisableCompression = plain
			if transport, err := rest.TransportFor(c); err == nil { // else there was never a connection
				utilnet.CloseIdleConnectionsFor(transport)
			}
		}
	}
}

// KeepHangingUp calls HangUp again and again until ctx ends: a connection is idle only when its
// last request is over.
func KeepHangingUp(ctx context.Context, config *rest.Config) {
	for tick := time.Tick(hangUpEvery); ctx.Err() == nil; {
		HangUp(config)
		select {
		case <-ctx.Done():
		case <-tick:
		}
	}
}
