package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Member is one controller of a cluster.
type Member struct{ Name, Address string }

func (m Member) String() string { return m.Name + "=" + m.Address }

// Members returns the members in InitialCluster, which must be valid.
func (c Controller) Members() []Member {
	members, _ := parseMembers("initial-cluster", c.InitialCluster)
	return members
}

// EtcdInitialCluster returns etcd's initial cluster: the members with their peer
// URLs. Without InitialCluster this controller is the only member.
func (c Controller) EtcdInitialCluster() string {
	members := c.Members()
	if len(members) == 0 {
		members = []Member{{c.Name, c.AdvertiseAddress}}
	}
	var all []string
	for _, m := range members {
		all = append(all, m.Name+"=https://"+net.JoinHostPort(m.Address, strconv.Itoa(c.EtcdPeerPort)))
	}
	return strings.Join(all, ",")
}

// parseMembers reads elements of the form NAME=ADDRESS. It returns the members that
// it could read and the problems with the others.
func parseMembers(key string, list []string) (members []Member, problems []*Problem) {
	add := func(hint, format string, args ...any) {
		problems = append(problems, &Problem{Key: key, Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	for _, s := range list {
		name, address, found := strings.Cut(s, "=")
		if !found {
			add("such as --"+key+"=c0=10.0.1.73,c1=10.0.1.35,c2=10.0.1.36", "%q is not NAME=ADDRESS", s)
			continue
		}
		before := len(problems)
		if !aName().MatchString(name) {
			add("", "%s: %q is not a name: want letters, digits, dots and dashes", s, name)
		}
		if problem := unusable(address); problem != "" {
			add("", "%s: %q %s", s, address, problem)
		}
		for _, m := range members {
			if m.Name == name {
				add("", "%s: the name is already that of %s", s, m)
			}
			if m.Address == address {
				add("", "%s: the address is already that of %s", s, m)
			}
		}
		if len(problems) == before {
			members = append(members, Member{name, address})
		}
	}
	return members, problems
}

const notAnAddress = "is not an IP address"

// unusable returns why other machines cannot use an address, or "".
func unusable(address string) string {
	switch ip, err := netip.ParseAddr(address); {
	case err != nil:
		return notAnAddress
	case ip.IsUnspecified() || ip.IsMulticast():
		return "is not an address that other machines can reach"
	case ip.Zone() != "":
		return "has a zone, which other machines cannot use"
	}
	return ""
}

// ParseMember checks the name and address of a further controller. The error joins
// all *Problems; they belong to no setting.
func ParseMember(name, address string) (Member, error) {
	members, problems := parseMembers("", []string{name + "=" + address})
	if len(problems) > 0 {
		return Member{}, joinProblems(problems)
	}
	return members[0], nil
}

// members checks the list of members, and that this controller is in it.
func (v *validator) members(c Controller) {
	members, problems := parseMembers("initial-cluster", c.InitialCluster)
	v.problems = append(v.problems, problems...)
	switch {
	case c.InitialClusterState != StateNew && c.InitialClusterState != StateExisting:
		v.add("initial-cluster-state", "%q is neither %s nor %s", c.InitialClusterState, StateNew, StateExisting)
	case c.InitialClusterState == StateExisting && len(c.InitialCluster) < 2:
		v.add("initial-cluster-state", "is existing, but --initial-cluster names no other controller to query").Hint = "kthwd join writes both"
	}
	if len(members) == 0 || len(problems) > 0 {
		return
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == c.Name })
	j := slices.IndexFunc(members, func(m Member) bool { return m.Address == c.AdvertiseAddress })
	switch {
	case i < 0 && j < 0:
		v.add("initial-cluster", "%s lacks this controller, %s=%s", strings.Join(c.InitialCluster, ","), c.Name, c.AdvertiseAddress).Hint =
			"set --name and --advertise-address to this machine's entry in that list"
	case i < 0:
		v.add("initial-cluster", "calls the controller at --advertise-address %s %q; its --name is %q", c.AdvertiseAddress, members[j].Name, c.Name).Hint =
			"set --name=" + members[j].Name + ", or correct the list on all controllers"
	case members[i].Address != c.AdvertiseAddress:
		v.add("initial-cluster", "has %s; the --advertise-address of --name %s is %s", members[i], c.Name, c.AdvertiseAddress).Hint =
			"set --advertise-address=" + members[i].Address + ", or correct the list on all controllers"
	}
}

// EvenWarning warns, in at most one line, of a number of controllers that survives
// no more failures than one controller fewer.
func EvenWarning(n int) (lines []string) {
	switch {
	case n == 2:
		lines = append(lines, "2 controllers survive no loss: both are needed for a quorum; use 1 or 3")
	case n > 2 && n%2 == 0:
		lines = append(lines, fmt.Sprintf("%d controllers survive the loss of %d, no more than %d do: use %[3]d or %d", n, n/2-1, n-1, n+1))
	}
	return lines
}
