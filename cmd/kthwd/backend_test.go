package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// backend serves the requests that a load balancer sends to API servers.
func backend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: backend NAME...")
	}
	for _, name := range args {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
		ts.Defer(func() {
			s.CloseClientConnections()
			s.Close()
		})
		ts.Setenv(name, s.Listener.Addr().String())
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
		ts.Check(os.WriteFile(ts.MkAbs(name+".pem"), ca, 0o600))
	}
}

// connection stays open: its client never opens a second one.
type connection struct {
	conn   net.Conn
	client http.Client
	url    string
}

type connectionsKey struct{}

func connections(ts *testscript.TestScript) map[string]*connection {
	return ts.Value(connectionsKey{}).(map[string]*connection)
}

func connect(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: connect NAME ADDRESS")
	}
	conn, err := tls.Dial("tcp", args[1], &tls.Config{InsecureSkipVerify: true}) // any server will do
	ts.Check(err)
	c := &connection{conn: conn, url: "https://" + args[1]}
	opened := false
	c.client = http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			if opened {
				return nil, fmt.Errorf("the connection %s was closed", args[0])
			}
			opened = true
			return conn, nil
		},
	}}
	connections(ts)[args[0]] = c
	ts.Defer(func() { conn.Close() })
}

func carries(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || connections(ts)[args[0]] == nil {
		ts.Fatalf("usage: carries NAME, after connect NAME ADDRESS")
	}
	c := connections(ts)[args[0]]
	resp, err := c.client.Get(c.url)
	ts.Check(err)
	_, err = io.Copy(io.Discard, resp.Body)
	ts.Check(err)
	resp.Body.Close()
}

func hangup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || connections(ts)[args[0]] == nil {
		ts.Fatalf("usage: hangup NAME, after connect NAME ADDRESS")
	}
	ts.Check(connections(ts)[args[0]].conn.Close())
}
