package status

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/listening"
)

// A Stranger is a server on Addr of this machine that is not believed: any user may listen
// there while kthwd is down.
type Stranger struct {
	Addr   string
	Users  []string // who listens there; empty means that no socket of this machine does
	Socket error    // why Addr was asked at all
}

func (s *Stranger) Error() string { return fmt.Sprintf("%v; %s", s.Socket, s.Sentence()) }

func (s *Stranger) Unwrap() error { return s.Socket }

// Sentence names the user whose answer is not believed.
func (s *Stranger) Sentence() string {
	if len(s.Users) == 0 {
		return "no process of this machine listens on " + s.Addr + ", so its answer is not believed"
	}
	return fmt.Sprintf("a process of the user %s listens on %s and is not believed", strings.Join(s.Users, " and "), s.Addr)
}

// believing returns a transport that connects only to a server on this machine which
// belongs to one of the users.
func believing(users []int) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return dialBelieved(ctx, network, addr, users, listening.On)
	}}
}

// dialBelieved connects to one of the users. It tries whether anybody listens first: on has to read about
// every connection of the machine, a tenth of the time of a completion.
func dialBelieved(ctx context.Context, network, addr string, users []int, on func(port int) ([]listening.Socket, error)) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	trial, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	trial.Close()
	before, err := on(n)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if err := believe(conn, before, users); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// believe checks which user has accepted conn. The sockets that listened before the connection
// must be those that listen now; otherwise a stranger could have accepted it and left the
// port to kthwd.
func believe(conn net.Conn, before []listening.Socket, users []int) error {
	to := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	after, err := listening.On(int(to.Port()))
	if err != nil {
		return err
	}
	before, after = listening.Serving(before, to), listening.Serving(after, to)
	stranger := &Stranger{Addr: netip.AddrPortFrom(to.Addr().Unmap(), to.Port()).String()}
	for _, s := range slices.Concat(before, after) {
		if name := s.User(); !slices.Contains(users, s.UID) && !slices.Contains(stranger.Users, name) {
			stranger.Users = append(stranger.Users, name)
		}
	}
	if len(stranger.Users) > 0 || len(after) == 0 || !slices.Equal(before, after) {
		return stranger
	}
	return nil
}
