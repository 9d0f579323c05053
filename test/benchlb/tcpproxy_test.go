package benchlb

import (
	"fmt"
	"testing"

	"github.com/inetaf/tcpproxy"

	"kthwd/test/lbtest"
)

// plain is tcpproxy as in its README, with one backend.
var plain = &lbtest.Balancer{
	Name:    "tcpproxy",
	Missing: func() string { return "" },
	Command: func(t testing.TB, s lbtest.Setup) lbtest.Command {
		return lbtest.Command{
			Argv: []string{lbtest.PublicCopy(t, s.Dir, lbtest.Self(t), "tcpproxy"), s.Listen, s.Backends[0]},
			Env:  []string{lbtest.HelperEnv("tcpproxy")},
		}
	},
	Version: func() string { return "" },
}

func runTCPProxy(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("got %d arguments, want LISTEN BACKEND", len(args))
	}
	var p tcpproxy.Proxy
	p.AddRoute(args[0], tcpproxy.To(args[1]))
	return p.Run()
}
