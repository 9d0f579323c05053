// Package dnstest is a DNS server whose records a test changes. It answers over UDP and
// TCP, truncates what does not fit, and can refuse or say nothing.
package dnstest

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Server is a running server. It has an answer for every name: without records, that the
// name does not exist.
type Server struct {
	udp net.PacketConn
	tcp net.Listener

	mu      sync.Mutex
	hosts   map[string][]netip.Addr
	srv     map[string][]net.SRV
	fails   map[dnsmessage.Type]dnsmessage.RCode
	silent  map[dnsmessage.Type]bool
	queries map[dnsmessage.Type]int
}

// types are those that a resolver asks for.
var types = []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV, dnsmessage.TypeCNAME}

// Start starts a server on a free port of 127.0.0.1, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{hosts: map[string][]netip.Addr{}, srv: map[string][]net.SRV{}, fails: map[dnsmessage.Type]dnsmessage.RCode{}, silent: map[dnsmessage.Type]bool{}, queries: map[dnsmessage.Type]int{}}
	var err error
	if s.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if s.udp, err = net.ListenPacket("udp", s.tcp.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(s.serveUDP)
	all.Go(s.serveTCP)
	t.Cleanup(func() { s.udp.Close(); s.tcp.Close(); all.Wait() })
	return s
}

// Address is where the server answers.
func (s *Server) Address() string { return s.tcp.Addr().String() }

// Resolver returns a resolver that asks this server only.
func (s *Server) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.tcp.Addr().String())
	}}
}

// Set makes a name have these addresses; none deletes the name.
func (s *Server) Set(name string, addresses ...string) {
	var all []netip.Addr
	for _, a := range addresses {
		all = append(all, netip.MustParseAddr(a))
	}
	s.change(func() { s.hosts[key(name)] = all })
}

// SetSRV makes a name have these SRV records.
func (s *Server) SetSRV(name string, records ...net.SRV) {
	s.change(func() { s.srv[key(name)] = records })
}

// Fail makes questions of a type fail with SERVFAIL, or be answered again.
func (s *Server) Fail(on bool, types ...dnsmessage.Type) {
	s.change(func() {
		for _, t := range types {
			if on {
				s.fails[t] = dnsmessage.RCodeServerFailure
			} else {
				delete(s.fails, t)
			}
		}
	})
}

// Silence makes the server say nothing to questions of some types, of all if none is named,
// or answer again.
func (s *Server) Silence(on bool, some ...dnsmessage.Type) {
	s.change(func() {
		for _, t := range orAll(some) {
			s.silent[t] = on
		}
	})
}

// Queries returns the number of questions so far, of some types or of all.
func (s *Server) Queries(some ...dnsmessage.Type) (n int) {
	s.change(func() {
		for _, t := range orAll(some) {
			n += s.queries[t]
		}
	})
	return n
}

func orAll(some []dnsmessage.Type) []dnsmessage.Type {
	if len(some) == 0 {
		return types
	}
	return some
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (s *Server) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := s.answer(buf[:n], 1200); answer != nil {
			_, _ = s.udp.WriteTo(answer, from)
		}
	}
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var size [2]byte
			for {
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, question); err != nil {
					return
				}
				answer := s.answer(question, 1<<16-1)
				if answer == nil {
					return
				}
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
		}()
	}
}

// answer returns the reply to a question, truncated to most bytes, or nil for silence.
func (s *Server) answer(question []byte, most int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries[q.Type]++
	if s.silent[q.Type] {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
	name := key(q.Name.String())
	if m.RCode = s.fails[q.Type]; m.RCode == dnsmessage.RCodeSuccess {
		m.Answers = s.records(name, q)
		if len(s.hosts[name])+len(s.srv[name]) == 0 {
			m.RCode = dnsmessage.RCodeNameError
		}
	}
	packed, err := m.Pack()
	if err == nil && len(packed) > most {
		m.Answers, m.Truncated = nil, true
		packed, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}

// records have a TTL of an hour: nobody is to wait for it.
func (s *Server) records(name string, q dnsmessage.Question) (all []dnsmessage.Resource) {
	add := func(body dnsmessage.ResourceBody) {
		all = append(all, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 3600}, Body: body})
	}
	for _, a := range s.hosts[name] {
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			add(&dnsmessage.AResource{A: a.As4()})
		case q.Type == dnsmessage.TypeAAAA && !a.Is4():
			add(&dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	if q.Type == dnsmessage.TypeSRV {
		for _, r := range s.srv[name] {
			add(&dnsmessage.SRVResource{Priority: r.Priority, Weight: r.Weight, Port: r.Port, Target: dnsmessage.MustNewName(strings.TrimSuffix(r.Target, ".") + ".")})
		}
	}
	return all
}
