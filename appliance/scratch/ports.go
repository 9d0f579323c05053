package scratch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"

	"kthwd/appliance/advice"
)

// The ports are below those that the kernel gives to outgoing connections (32768 and up) and
// those of Kubernetes' services (30000 and up), so that none of these has one of them.
const (
	firstPort = 12000
	lastPort  = 20000
	block     = 8
)

// Ports are ports of 127.0.0.1 that no other run on this machine has, whoever its user is.
type Ports struct {
	Numbers []int

	name net.Listener
}

// Claim returns n ports, 8 at most, on which nothing listens. The name of an abstract unix
// socket, which the kernel gives to one process and takes away at its end, keeps other runs
// from them.
func Claim(n int) (*Ports, error) { return claim(n, rand.IntN((lastPort-firstPort)/block)) }

func claim(n, start int) (*Ports, error) {
	const blocks = (lastPort - firstPort) / block
	for i := range blocks {
		first := firstPort + (start+i)%blocks*block
		l, err := net.Listen("unix", fmt.Sprintf("@kthwd-try-%d", first))
		if err != nil {
			continue
		}
		p := &Ports{name: l}
		for port := first; port < first+n && free(port); port++ {
			p.Numbers = append(p.Numbers, port)
		}
		if len(p.Numbers) == n {
			return p, nil
		}
		p.Release()
	}
	return nil, advice.With(errors.New("no free ports"), fmt.Sprintf("end programs that listen on the ports %d–%d of 127.0.0.1", firstPort, lastPort))
}

func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	return err == nil && l.Close() == nil
}

// Release gives the ports to others.
func (p *Ports) Release() { p.name.Close() }
