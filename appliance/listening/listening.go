// Package listening tells which sockets of this machine listen on a TCP port, and to which
// user each belongs.
//
//	sockets, err := listening.On(10300)
//
// It reads /proc/net of its own network namespace, where every user can see all sockets.
// It does not find the process; appliance/preflight does, as far as /proc shows it.
package listening

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// A Socket listens. Two are the same socket if their inodes are equal while both exist.
type Socket struct {
	Addr  netip.AddrPort // an unspecified address means all addresses
	UID   int            // the user who opened it
	Inode uint64
}

// User is the name of the user, or # and its number, as sudo(8) takes it.
func (s Socket) User() string {
	number := strconv.Itoa(s.UID)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return "#" + number
}

// stateListen is TCP_LISTEN in /proc/net/tcp.
const stateListen = "0A"

// On returns the sockets that listen on a port, at whatever address.
func On(port int) (all []Socket, err error) {
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && file == "/proc/net/tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		found, err := parse(string(data), port)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// Serving returns those of the sockets that accept connections to an address.
func Serving(all []Socket, to netip.AddrPort) []Socket {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	return slices.DeleteFunc(slices.Clone(all), func(s Socket) bool {
		return s.Addr.Port() != to.Port() || !s.Addr.Addr().IsUnspecified() && s.Addr.Addr() != to.Addr().WithZone("")
	})
}

// parse reads the table of one family.
func parse(table string, port int) (all []Socket, err error) {
	const local, state, uid, inode = 1, 3, 7, 9
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) <= inode || fields[state] != stateListen {
			continue
		}
		var s Socket
		if s.Addr, err = address(fields[local]); err != nil {
			return nil, err
		}
		if int(s.Addr.Port()) != port {
			continue
		}
		if s.UID, err = strconv.Atoi(fields[uid]); err != nil {
			return nil, err
		}
		if s.Inode, err = strconv.ParseUint(fields[inode], 10, 64); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// address reads an address as the kernel prints it: words of 32 bits in the machine's byte
// order, and the port.
func address(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	n, errPort := strconv.ParseUint(port, 16, 16)
	raw, err := hex.DecodeString(words)
	if err = errors.Join(errPort, err); err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), nil
}
