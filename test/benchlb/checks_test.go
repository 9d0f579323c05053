package benchlb

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

// checkedBackends is how many backends measureChecks has.
const checkedBackends = 60

// runReadyz is the helper: CERTIFICATE. It makes the certificate, answers GET /readyz over
// TLS on all checkedAddresses as Go's server does, and prints "ready".
func runReadyz(args []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for i := range checkedBackends {
		template.IPAddresses = append(template.IPAddresses, net.IPv4(127, 0, 1, byte(i+1)))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	settings := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }),
		ErrorLog: log.New(io.Discard, "", 0),
	}
	ended := make(chan error, checkedBackends)
	for _, address := range checkedAddresses() {
		l, err := tls.Listen("tcp", address, settings)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(l) }()
	}
	fmt.Println("ready")
	return <-ended
}

func checkedAddresses() (all []string) {
	for i := range checkedBackends {
		all = append(all, fmt.Sprintf("127.0.1.%d:6443", i+1))
	}
	return all
}

// measureChecks compares the processor time of an idle balancer that checks 60 backends
// with that of one that does not check. Both run for the same time, one after the other.
func (r *rig) measureChecks(t *testing.T) {
	ca := filepath.Join(r.setup.Dir, "checked.pem")
	server := lbtest.StartHelper(t, r.ns, "readyz", ca)
	defer server.End()
	if line := server.Line(t); line != "ready" {
		t.Fatalf("backend said %q", line)
	}
	s := r.setup
	s.Backends, s.HTTPS, s.CA, s.Listen = checkedAddresses(), true, ca, "127.0.0.1:7444"
	checked := r.idleCPU(t, s, server)
	s.Args = append([]string{"--check=none"}, s.Args...)
	s.HTTPS = false
	unchecked := r.idleCPU(t, s, server)
	r.add(metricChecksCPU, checked-unchecked)
	r.add(metricNoChecksCPU, unchecked)
}

// idleCPU returns the share of a processor, in per cent, that a balancer takes without
// clients.
func (r *rig) idleCPU(t *testing.T, s lbtest.Setup, server *lbtest.Process) float64 {
	t.Helper()
	balancer := r.side.Start(t, s)
	defer balancer.End()
	harness.WaitFor(t, r.side.Name+" listens", 10*time.Second, func() (err error) {
		r.ns.Do(func() {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", s.Listen, time.Second); err == nil {
				conn.Close()
			}
		})
		return err
	})
	<-time.After(settle) // the second check of each backend comes within an interval
	begin := usageOf(balancer, server.PID)
	<-time.After(5 * r.bench.time)
	end := usageOf(balancer, server.PID)
	r.add(metricOthers, begin.others(end))
	return 100 * float64(end.balancer-begin.balancer) / float64(end.at.Sub(begin.at))
}
