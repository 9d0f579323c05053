package lb_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"kthwd/lb"
)

// A server balances the connections of one listener to one backend. It runs until its
// context ends and its connections have drained.
func ExampleServer() {
	backend := echoServer()
	defer backend.Close()

	// The listening socket comes from outside, as from a service manager, because
	// Config.Listen needs a port and this example takes any free one. Without Sockets,
	// the server opens the addresses of Config.Listen itself.
	address, socket := freeSocket()

	cfg := lb.Default()
	cfg.Listen = []string{address}
	cfg.Backends = []string{backend.Addr().String()}
	cfg.Check = lb.CheckTCP // the backend is not an API server
	s, err := lb.New(cfg, lb.Options{Sockets: []*os.File{socket}})
	if err != nil {
		log.Fatal(err)
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		log.Fatal(err)
	}

	client, err := net.Dial("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(client, "hello through the load balancer")
	answer, err := bufio.NewReader(client).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(answer)

	st := s.Status()
	fmt.Println("ready:", st.Ready, "connections:", st.Connections, "backend:", st.Backends[0].State)

	client.Close()
	stop()
	fmt.Println("ended:", <-ended)

	// Output:
	// hello through the load balancer
	// ready: true connections: 1 backend: ready
	// ended: <nil>
}

// echoServer returns to each client what it sends.
func echoServer() net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return ln
}

// freeSocket returns a listening socket on a free port of the loopback interface.
func freeSocket() (address string, socket *os.File) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // the server sets options that only plain TCP has
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	socket, err = ln.(*net.TCPListener).File()
	if err != nil {
		log.Fatal(err)
	}
	return ln.Addr().String(), socket
}
