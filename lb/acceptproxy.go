package lb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A proxy in front of the balancer tells the client's address in a header before the
// client's bytes (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). The
// header is required from the addresses in Config.AcceptProxyFrom, on the listeners with the
// option accept-proxy or, where none has it, on all. From any other address, and on any other
// listener, it is not looked for: it is then the client's data, as with HAProxy's expect-proxy.
// To guess would let every client name an address of its choice.

// proxied is a connection whose client is behind a proxy.
type proxied struct {
	via netip.AddrPort // the proxy
	to  netip.AddrPort // the address that the client connected to; the zero one if the header has none
}

// expectsHeader reports whether the connection of a client begins with a PROXY header.
func (t *settings) expectsHeader(p *pair) bool {
	from := p.peer.Addr().WithZone("")
	return slices.ContainsFunc(t.proxies, func(n netip.Prefix) bool { return n.Contains(from) }) && slices.Contains(t.proxied, p.listener.address)
}

// proxies returns the trusted addresses; the configuration is valid.
func (c Config) proxies() (all []netip.Prefix) {
	for _, text := range c.AcceptProxyFrom {
		if p, err := parsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// parsePrefix parses an address or ADDRESS/BITS.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return a.Unmap().Prefix(a.Unmap().BitLen())
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("is neither an address nor a network")
	case p.Addr().Is4In6():
		return p, errors.New("is an IPv4 network in the form of an IPv6 one")
	case p != p.Masked():
		return p, fmt.Errorf("has bits beyond its length; the network is %s", p.Masked())
	}
	return p, nil
}

func (v *validator) proxies(c Config) {
	for _, text := range c.AcceptProxyFrom {
		if _, err := parsePrefix(text); err != nil {
			v.add("AcceptProxyFrom", "%q %v", text, err).Hint = "want the addresses of the proxies in front, such as 10.0.1.5 or 10.0.1.0/28"
		}
	}
}

// admitProxied is admit for a client behind a trusted proxy. Its deadline for the whole
// header and the first byte after it is that of any client's first byte.
func (l *loop) admitProxied(p *pair) {
	p.proxied, p.headless = &proxied{via: p.peer}, true
	if !l.s.slots.set(p.client.fd, p) {
		l.s.refuse(p, rejectError)
		return
	}
	l.add(p)
	l.fresh.push(p, p.listener.silentUntil(p.born, l.s.settings().firstByte))
	if watch(l.epfd, unix.EPOLL_CTL_ADD, p.client.fd, unix.EPOLLIN|unix.EPOLLRDHUP) != 0 {
		l.end(p, endError)
		return
	}
	p.client.readable = true
	l.readHeader(p)
}

// readHeader reads what has arrived of the header. Once it is whole, the pair is that of
// a client like any other.
func (l *loop) readHeader(p *pair) {
	for p.client.readable {
		buf := l.buf[:maxProxyHeader]
		n, errno := recv(p.client.fd, buf)
		switch {
		case errno == unix.EAGAIN:
			p.client.readable = false
			return
		case errno == unix.EINTR:
			continue
		case errno != 0 || n == 0:
			if len(p.first) == 0 { // such as a check of the proxy's
				l.s.reject(p.listener, rejectSilent)
			} else {
				l.badHeader(p, errors.New("it ends in the middle"))
			}
			l.end(p, endClient)
			return
		}
		p.client.readable = n == len(buf) || p.client.fin
		p.first = append(p.first, buf[:n]...)
		h, size, err := parseProxyHeader(p.first)
		switch {
		case errors.Is(err, errHeaderPart):
			continue
		case err != nil:
			l.badHeader(p, err)
			resetOnClose(p.client.fd)
			l.end(p, endClient)
			return
		}
		l.named(p, h, p.first[size:])
		return
	}
}

// named continues with a client whose header has been read; rest is what it sent itself.
func (l *loop) named(p *pair, h proxyHeader, rest []byte) {
	p.headless = false
	if h.source.IsValid() {
		p.peer, p.proxied.to = h.source, h.destination
	}
	if most := l.s.settings().maxPerSource; most > 0 && !l.s.sources.enter(p, most) {
		l.s.reach(limitPerSource)
		l.s.reject(p.listener, rejectPerSource)
		l.end(p, endClient)
		return
	}
	p.first = bytes.Clone(rest) // without the header's memory
	if len(p.first) == 0 {
		p.first = nil
		l.firstBytes(p)
		return
	}
	l.fresh.remove(p)
	l.beginConnect(p)
}

// badHeader counts a connection from a proxy whose header is none, and logs one a minute:
// a proxy that was not told to send headers is refused with all its clients.
func (l *loop) badHeader(p *pair, why error) {
	l.s.reject(p.listener, rejectHeader)
	last := l.s.headerWarned.Load()
	if now := l.now + 1; (last == 0 || now-last > int64(time.Minute)) && l.s.headerWarned.CompareAndSwap(last, now) {
		l.s.log.Warn("connections closed: no valid PROXY header", "from", p.proxied.via, "listener", p.listener.address, "err", why,
			"hint", "let the proxy send the PROXY protocol, take its address out of --accept-proxy-from, or let it use a --listen without accept-proxy beside one that has it")
	}
}

// proxyHeader is a received PROXY header.
type proxyHeader struct {
	source, destination netip.AddrPort // the zero ones when the proxy speaks for itself, or of a client without an IP address
}

// maxProxyHeader is the most that a header may have, TLVs included; HAProxy's buffer is
// as large.
const maxProxyHeader = 16 << 10

// errHeaderPart is returned for the beginning of a header.
var errHeaderPart = errors.New("part of a PROXY header")

const (
	signatureV1 = "PROXY "
	signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"
	longestV1   = 107 // with CR and LF
)

// parseProxyHeader parses the PROXY header, of version 1 or 2, at the start of b, and
// returns its size. It returns errHeaderPart as long as b may still become one.
func parseProxyHeader(b []byte) (h proxyHeader, size int, err error) {
	switch {
	case begins(b, signatureV1):
		return parseV1(b)
	case begins(b, signatureV2):
		return parseV2(b)
	}
	return h, 0, errors.New("it begins with something else")
}

// begins reports whether b begins with a signature, or is the beginning of one.
func begins(b []byte, signature string) bool {
	n := min(len(b), len(signature))
	return string(b[:n]) == signature[:n]
}

// parseV1 parses a line such as "PROXY TCP4 192.0.2.1 10.0.1.48 56324 6443".
func parseV1(b []byte) (h proxyHeader, size int, err error) {
	end := bytes.IndexByte(b[:min(len(b), longestV1)], '\n')
	switch {
	case end < 0 && len(b) < longestV1:
		return h, 0, errHeaderPart
	case end < 0:
		return h, 0, fmt.Errorf("its line is longer than %d characters", longestV1)
	case end < len(signatureV1) || b[end-1] != '\r':
		return h, 0, errors.New("its line does not end with CR and LF")
	}
	size = end + 1
	words := strings.Split(string(b[:end-1]), " ")
	if words[1] == "UNKNOWN" {
		return h, size, nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return h, 0, errors.New("its line is not PROXY TCP4 or TCP6 with two addresses and two ports")
	}
	var errs [2]error
	h.source, errs[0] = placeV1(words[1], words[2], words[4])
	h.destination, errs[1] = placeV1(words[1], words[3], words[5])
	if err := errors.Join(errs[:]...); err != nil {
		return proxyHeader{}, 0, errors.New("it has an address or a port that is none")
	}
	return h, size, nil
}

func placeV1(family, address, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Is4() != (family == "TCP4") {
		return netip.AddrPort{}, errors.New("address")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' {
		return netip.AddrPort{}, errors.New("port")
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// parseV2 parses the signature, version and command, family and protocol, a length, and as
// many bytes: the addresses and TLVs.
func parseV2(b []byte) (h proxyHeader, size int, err error) {
	const fixed = len(signatureV2) + 4
	if len(b) < fixed {
		return h, 0, errHeaderPart
	}
	command, family := b[12], b[13]
	size = fixed + int(binary.BigEndian.Uint16(b[14:fixed]))
	switch {
	case command != 0x20 && command != 0x21:
		return h, 0, fmt.Errorf("it has version and command %#x", command)
	case family>>4 > 3 || family&15 > 2:
		return h, 0, fmt.Errorf("it has family and protocol %#x", family)
	case size > maxProxyHeader:
		return h, 0, fmt.Errorf("it has %d bytes, more than %d", size, maxProxyHeader)
	case len(b) < size:
		return h, 0, errHeaderPart
	}
	if command == 0x20 { // LOCAL: a check of the proxy's own; what follows has no meaning
		return h, size, nil
	}
	body, need := b[fixed:size], [...]int{0, 12, 36, 216}[family>>4]
	if len(body) < need {
		return h, 0, errors.New("it is too short for its addresses")
	}
	if err := checkTLVs(b[:size], fixed+need); err != nil {
		return h, 0, err
	}
	switch family { // of the others the connection's own addresses count
	case 0x11:
		h.source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:]))
		h.destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:])), binary.BigEndian.Uint16(body[10:]))
	case 0x21:
		h.source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:]))
		h.destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[16:])).Unmap(), binary.BigEndian.Uint16(body[34:]))
	}
	return h, size, nil
}

// checkTLVs checks the lengths of the TLVs of a header, which begin at an offset, and its
// checksum if it has one.
func checkTLVs(header []byte, at int) error {
	const crc32c = 0x03
	for at < len(header) {
		if len(header)-at < 3 {
			return errors.New("its last TLV is cut off")
		}
		kind, value := header[at], at+3
		at = value + int(binary.BigEndian.Uint16(header[at+1:]))
		if at > len(header) {
			return errors.New("a TLV is longer than the header")
		}
		if kind != crc32c {
			continue
		}
		if at-value != 4 {
			return errors.New("its checksum has not four bytes")
		}
		whole := bytes.Clone(header)
		clear(whole[value:at])
		if crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(header[value:]) {
			return errors.New("its checksum is wrong")
		}
	}
	return nil
}
