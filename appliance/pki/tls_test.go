package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"testing"
	"time"
)

// TestHandshakes uses the files as the API server, etcd and their clients will.
func TestHandshakes(t *testing.T) {
	for name, l := range map[string]Layout{"fresh": fresh(t), "tutorial": tutorial(t, "PKCS#1")} {
		ensure(t, l, testSpec())
		for _, test := range []struct {
			name, server, client string
			ca, clientCA         string
			address              string
			ok                   bool
		}{
			{"etcd peer", NameKubernetes, NameKubernetes, NameCA, NameCA, "10.0.0.11", true},
			{"service address", NameKubernetes, NameHealth, NameCA, NameCA, "10.32.0.1", true},
			{"service name", NameKubernetes, NameHealth, NameCA, NameCA, "kubernetes.default", true},
			{"health bridge", NameKubernetes, NameHealth, NameCA, NameCA, "127.0.0.1", true},
			{"scheduler", NameKubernetes, "kubeconfig:" + NameScheduler, NameCA, NameCA, "127.0.0.1", true},
			{"controller-manager", NameKubernetes, "kubeconfig:" + NameControllerManager, NameCA, NameCA, "127.0.0.1", true},
			{"admin", NameKubernetes, "kubeconfig:" + NameAdmin, NameCA, NameCA, "127.0.0.1", true},
			{"front proxy", NameKubernetes, NameFrontProxyClient, NameCA, NameFrontProxyCA, "127.0.0.1", true},
			{"address of another", NameKubernetes, NameHealth, NameCA, NameCA, "192.0.2.1", false},
			{"a client as server", NameHealth, NameKubernetes, NameCA, NameCA, "", false},
			{"front proxy as user", NameKubernetes, NameFrontProxyClient, NameCA, NameCA, "127.0.0.1", false},
			{"user as front proxy", NameKubernetes, NameHealth, NameCA, NameFrontProxyCA, "127.0.0.1", false},
		} {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				err := handshake(t,
					&tls.Config{Certificates: []tls.Certificate{keyPair(t, l, test.server)}, ClientAuth: tls.RequireAndVerifyClientCert,
						ClientCAs: pool(t, l, test.clientCA), Time: at(noon)},
					&tls.Config{Certificates: []tls.Certificate{keyPair(t, l, test.client)}, RootCAs: pool(t, l, test.ca),
						ServerName: test.address, Time: at(noon)})
				if (err == nil) != test.ok {
					t.Errorf("handshake = %v, want ok = %v", err, test.ok)
				}
			})
		}
	}
}

func keyPair(t *testing.T, l Layout, name string) tls.Certificate {
	t.Helper()
	if file, ok := cutKubeconfig(name); ok {
		a, err := parseKubeconfig([]byte(get(t, l.Kubeconfig(file))), l.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{a.client.chain[0].Raw}, PrivateKey: a.client.key}
	}
	c, err := tls.LoadX509KeyPair(l.Cert(name), l.Key(name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func cutKubeconfig(name string) (string, bool) {
	const prefix = "kubeconfig:"
	if len(name) > len(prefix) && name[:len(prefix)] == prefix {
		return name[len(prefix):], true
	}
	return name, false
}

func pool(t *testing.T, l Layout, name string) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(certificate(t, l.Cert(name)))
	return p
}

// handshake sends a byte each way, so that each side has verified the other.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			defer conn.Close()
			err = conn.(*tls.Conn).HandshakeContext(ctx)
		}
		if err == nil {
			_, err = conn.Write([]byte("."))
		}
		served <- err
	}()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	defer conn.Close()
	if err = conn.HandshakeContext(ctx); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	conn.Close()
	if serverErr := <-served; serverErr != nil {
		return serverErr
	}
	return err
}
