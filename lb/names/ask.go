package names

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// grace is how long a look-up that has found addresses of one family waits for the other:
// some servers say nothing at all to questions for AAAA records. RFC 8305 has 50 ms, which is
// little on a busy machine. An answer after it counts in the next look-up.
const grace = 100 * time.Millisecond

var families = []string{"ip6", "ip4"}

type answer struct {
	found []netip.Addr
	err   error
}

// ask begins the questions for both families of a host. One that is under way still is not
// asked again.
func (n *Name) ask(ctx context.Context, host string) {
	for _, network := range families {
		key := network + " " + host
		if n.asked[key] != nil {
			continue
		}
		c, limit := make(chan answer, 1), n.limit
		n.asked[key] = c
		n.asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			found, err := n.c.Resolver.LookupNetIP(ctx, network, host)
			for i := range found {
				found[i] = found[i].Unmap()
			}
			slices.SortFunc(found, netip.Addr.Compare) // servers of DNS like to change the order
			c <- answer{found, err}
			signal(n.late)
		})
	}
}

// addresses returns the addresses of a host. The two families are separate questions: one
// that gets no answer leaves the other as it is.
func (n *Name) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	n.ask(ctx, host)
	answers := n.await(host)
	some := len(answers["ip6"].found)+len(answers["ip4"].found) > 0
	var all []netip.Addr
	var failed error
	for _, network := range families {
		key := network + " " + host
		if a, answered := answers[network]; answered {
			n.learn(key, a, some)
		}
		all = append(all, n.last[key]...)
		switch err := n.failed[key]; {
		case err == nil:
		case some && silent(err) && len(n.last[key]) == 0: // there is nothing to miss
		case failed == nil || none(failed):
			failed = err
			n.urgent = n.urgent || !some || !silent(err)
		}
	}
	return all, failed
}

// await returns the answers for a host: both, or the one that has addresses if the other is
// late.
func (n *Name) await(host string) map[string]answer {
	got := map[string]answer{}
	six, four := n.asked["ip6 "+host], n.asked["ip4 "+host]
	var over <-chan time.Time
	for len(got) < len(families) {
		var a answer
		select {
		case a = <-six:
			got["ip6"], six = a, nil
		case a = <-four:
			got["ip4"], four = a, nil
		case <-over:
			return got
		}
		if len(a.found) > 0 {
			over = time.After(grace)
		}
	}
	return got
}

// learn applies the answer to a question. some tells that the other family has addresses, so
// that an answer of none is no fault of DNS.
func (n *Name) learn(key string, a answer, some bool) {
	delete(n.asked, key)
	switch {
	case a.err == nil:
		n.last[key] = a.found
		delete(n.failed, key)
	case some && none(a.err):
		delete(n.last, key)
		delete(n.failed, key)
	default:
		n.failed[key] = a.err
	}
}

// readLate applies answers that came after their look-up had ended, and reports whether an
// address is new or gone. The other family had some.
func (n *Name) readLate() (changed bool) {
	for key, c := range n.asked {
		select {
		case a := <-c:
			was := n.last[key]
			n.learn(key, a, true)
			changed = changed || !slices.Equal(was, n.last[key])
		default:
		}
	}
	return changed
}

// none reports whether err says that there are no such records, and not that there is no
// answer.
func none(err error) bool {
	var dns *net.DNSError
	var addr *net.AddrError // a name in /etc/hosts, without an address of the family
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &addr)
}

// silent reports whether err says that there was no answer at all.
func silent(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsTimeout
}
