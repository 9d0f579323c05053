package lb

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An address that cannot be listened on is named with the reason and with advice.
func TestListenErrors(t *testing.T) {
	for _, tt := range []struct{ listen, want, hint string }{
		{"192.0.2.50:6443", "listen on 192.0.2.50:6443: no interface has 192.0.2.50: cannot assign requested address", "freebind: true lets kthwd listen before the address comes"},
		{"[2001:db8::50]:6443", "listen on [2001:db8::50]:6443: no interface has 2001:db8::50: cannot assign requested address", "freebind: true"},
		{"[fe80::50]:6443", "an address of one link needs the interface: invalid argument", "such as [fe80::50%eth0]:6443"},
		{"[fe80::50%nowhere]:6443", "there is no interface nowhere", "ip link lists"},
	} {
		cfg := testConfig(newPeer(t).addr)
		cfg.Listen = []string{tt.listen}
		err := receive(t, "the end of Run", begin(t, cfg, Options{}).ended)
		expectAdvice(t, err, tt.want, tt.hint)
	}
	expectAdvice(t, listenError("[::]:6443", unix.EAFNOSUPPORT), "this machine has no IPv6", "ipv6.disable=1")
	expectAdvice(t, listenError(":443", unix.EACCES), "listen on :443: permission denied", "CAP_NET_BIND_SERVICE")
	if err := listenError(":443", unix.EADDRINUSE); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}

func expectAdvice(t *testing.T, err error, want, hint string) {
	t.Helper()
	adviser, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok || !strings.Contains(err.Error(), want) || !strings.Contains(adviser.Hint(), hint) {
		t.Errorf("got %v (advice: %v); want %q with %q", err, ok, want, hint)
	}
}
