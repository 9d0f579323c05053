package ha

import (
	"fmt"
	"testing"

	"kthwd/test/lbtest"
)

// The network: one bridge in the test's own network, where the clients are, with
// a port for each machine.
const clientsMAC = "02:00:00:00:01:fe"

const clientsAddress = "10.43.0.254"

func hostAddress(i int) string { return fmt.Sprintf("10.43.0.%d", 11+i) }
func hostMAC(i int) string     { return fmt.Sprintf("02:00:00:00:01:%02x", i) }
func hostPort(i int) string    { return fmt.Sprintf("v%d", i) }

// connect gives each machine a network of its own on the bridge. Neighbours are
// fixed, so that a machine whose link is down is silent, as one behind a router
// is, instead of being reported unreachable after three seconds.
func connect(t *testing.T, machines []*machine) {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "br0", "address", clientsMAC, "type", "bridge", "mcast_snooping", "0")
	run(t, "ip", "address", "add", clientsAddress+"/24", "dev", "br0")
	run(t, "ip", "link", "set", "br0", "up")
	for i, m := range machines {
		m.host = lbtest.NewNamespace(t)
		run(t, "ip", "link", "add", hostPort(i), "type", "veth", "peer", "name", "eth0", "address", hostMAC(i), "netns", m.host.Path())
		run(t, "ip", "link", "set", hostPort(i), "master", "br0", "up")
		m.host.Run(t, "ip", "address", "add", m.address+"/24", "dev", "eth0")
		m.host.Run(t, "ip", "link", "set", "eth0", "up")
		neighbour(t, nil, "br0", m.address, hostMAC(i))
		neighbour(t, m.host, "eth0", clientsAddress, clientsMAC)
	}
	for _, m := range machines {
		for i, other := range machines {
			if m != other {
				neighbour(t, m.host, "eth0", other.address, hostMAC(i))
			}
		}
	}
}

func neighbour(t testing.TB, from *lbtest.Namespace, device, address, mac string) {
	t.Helper()
	from.Run(t, "ip", "neighbour", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent")
}

// unplug and plug are about the cable of a machine.
func (c *cluster) unplug(t testing.TB, m *machine) { c.port(t, m, "down") }
func (c *cluster) plug(t testing.TB, m *machine)   { c.port(t, m, "up") }

func (c *cluster) port(t testing.TB, m *machine, state string) {
	t.Helper()
	run(t, "ip", "link", "set", hostPort(c.index(m)), state)
}

func (c *cluster) index(m *machine) int {
	for i := range c.machines {
		if c.machines[i] == m {
			return i
		}
	}
	panic(m.name + " is none of the cluster")
}

// separate makes two machines silent for each other, and join ends it: what one
// sends to the other goes to an address that nobody has.
func (c *cluster) separate(t testing.TB, a, b *machine) {
	c.between(t, a, b, func(int) string { return "02:00:00:00:01:ff" })
}
func (c *cluster) join(t testing.TB, a, b *machine) { c.between(t, a, b, hostMAC) }

func (c *cluster) between(t testing.TB, a, b *machine, mac func(int) string) {
	t.Helper()
	neighbour(t, a.host, "eth0", b.address, mac(c.index(b)))
	neighbour(t, b.host, "eth0", a.address, mac(c.index(a)))
}
