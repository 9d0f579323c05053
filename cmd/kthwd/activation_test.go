package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/lb"
)

// TestSocketActivation starts a load balancer on an open socket with a waiting client.
func TestSocketActivation(t *testing.T) {
	c := lb.Default()
	c.Backends = []string{"192.0.2.1:6443"}
	if _, err := lb.New(c, lb.Options{}); err != nil {
		t.Skip("no data path in this build")
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // as on systemd's sockets
	l, err := plain.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // file keeps the socket open, as systemd does
	defer file.Close()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {})}
	go backend.Serve(server)
	defer backend.Close()
	answer := make(chan error, 1)
	go func() {
		resp, err := (&http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + address)
		if err == nil {
			err = resp.Body.Close()
		}
		answer <- err
	}()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api exec "$0" "$@"`,
		kthwdBinary, "--config=", "--role=lb", "--check=tcp", "--metrics-address=", "--status-socket=", "--listen="+address, "--backend="+server.Addr().String())
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &log, &log, []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("the client: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || strings.Contains(log.String(), "level=WARN component=lb msg=\"inherited socket") {
		t.Errorf("%v\n%s", err, &log)
	}
}
