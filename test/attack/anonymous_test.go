package attack

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// mark is in every request of the attacker, so that its records can be told from others'.
const mark = "attacker-with-no-credentials"

// anonymousKinds are requests that a client without credentials of the cluster can make.
var anonymousKinds = map[string]struct {
	method, path string
	header       http.Header
	recorded     bool // in the file of such clients
}{
	"probe":                {http.MethodGet, "/readyz?" + mark, nil, false}, // the policy leaves probes out
	"API":                  {http.MethodGet, "/api/v1/namespaces/" + mark + "/pods", nil, true},
	"write":                {http.MethodPost, "/api/v1/namespaces/" + mark + "/configmaps", nil, true},
	"long URL":             {http.MethodGet, "/api/v1/namespaces/" + mark + "/configmaps/" + strings.Repeat("a", 15<<10), nil, true},
	"longer URL":           {http.MethodGet, "/api/v1/namespaces/" + mark + "/configmaps/" + strings.Repeat("a", 64<<10), nil, false},
	"unknown verb":         {"BREW", "/api/v1/namespaces/" + mark + "/pods", nil, true},
	"verb of a proxy":      {http.MethodTrace, "/" + mark, nil, true},
	"huge header":          {http.MethodGet, "/" + mark, http.Header{"X-Padding": {strings.Repeat("b", 128<<10)}}, true},
	"long user agent":      {http.MethodGet, "/" + mark, http.Header{"User-Agent": {mark + strings.Repeat("c", 32<<10)}}, true},
	"many addresses":       {http.MethodGet, "/" + mark, http.Header{"X-Forwarded-For": {strings.Repeat("192.0.2.1, ", 300) + "192.0.2.1"}}, true},
	"too many addresses":   {http.MethodGet, "/" + mark, http.Header{"X-Forwarded-For": {strings.Repeat("192.0.2.1, ", 3000) + "192.0.2.1"}}, false},
	"wrong token":          {http.MethodGet, "/api/v1/namespaces/" + mark + "/secrets", http.Header{"Authorization": {"Bearer " + mark}}, true},
	"another user's name":  {http.MethodGet, "/api/v1/namespaces/" + mark + "/secrets", http.Header{"Impersonate-User": {"admin"}, "Impersonate-Group": {"system:masters"}}, true},
	"front proxy's header": {http.MethodGet, "/api/v1/namespaces/" + mark + "/secrets", http.Header{"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}}, true},
	"chosen audit ID":      {http.MethodGet, "/" + mark, http.Header{"Audit-Id": {strings.Repeat("d", 64)}}, true},
	"foreign certificate":  {http.MethodGet, "/api/v1/namespaces/" + mark + "/secrets", nil, true},
}

// Nothing that a client without credentials sends is in the audit log of the others, by count: so
// neither its rate nor its time pushes a record out, whatever the profile. KTHWD_ANONYMOUS=20000
// sends as many of each kind, which takes many minutes.
func TestAnonymousRecordsAreElsewhere(t *testing.T) {
	t.Parallel()
	const anHour = 3600 * 1000 // requests at 1000 a second
	each := 100
	if text := os.Getenv("KTHWD_ANONYMOUS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("KTHWD_ANONYMOUS=%s: want a number", text)
		}
		each = n
	}
	for _, profile := range []string{"guide", "cis"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			o := kthwtest.Options{Args: []string{"--profile=" + profile}}
			if reviewed {
				o.Args = nil // it has no profiles
			}
			c := start(t, o)
			admin := c.pair(t, "admin")
			log, foreign := filepath.Join(c.Dir, "audit.log"), filepath.Join(c.Dir, "audit-unauthenticated.log")
			create(t, c, admin, "evidence", "")
			recorded(t, log, `"name":"evidence"`)
			for kind := range anonymousKinds {
				before := written(t, foreign)
				ofAttacker(t, c, kind, each)
				if anonymousKinds[kind].recorded && !reviewed {
					kthwtest.WaitFor(t, "the records of: "+kind, kthwtest.Soon, func() error {
						if written(t, foreign) == before {
							return errors.New("the file of clients without credentials has none")
						}
						return nil
					})
				}
				t.Logf("%-20s %6d requests, %6d bytes each in the file of clients without credentials", kind, each, (written(t, foreign)-before)/int64(each))
			}
			records, size := recordsOf(t, log)
			if perHour := size * anHour / int64(each*len(anonymousKinds)); records > 0 {
				t.Errorf("%d records of the attacker, %d bytes, are in the log of the others: %d bytes in an hour", records, size, perHour)
			}
			if old := matching(t, c.Dir, "audit-2*"); len(old) > 0 {
				t.Errorf("the audit log was rotated: %q", old)
			}
			recorded(t, log, `"name":"evidence"`)
		})
	}
}

// written is the size of a file and of those that its rotation left.
func written(t *testing.T, path string) (n int64) {
	t.Helper()
	for _, file := range matching(t, filepath.Dir(path), strings.TrimSuffix(filepath.Base(path), ".log")+"*") {
		if info, err := os.Stat(file); err == nil {
			n += info.Size()
		}
	}
	return n
}

// recordsOf counts the attacker's records in the audit log: those with its mark, and any of a
// user that is not known.
func recordsOf(t *testing.T, path string) (records int, size int64) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var e struct{ User struct{ Username string } }
		if err := json.Unmarshal(line, &e); err != nil {
			continue // the last one may be half written
		}
		if bytes.Contains(line, []byte(mark)) || e.User.Username == "" || e.User.Username == "system:anonymous" {
			records, size = records+1, size+int64(len(line))
		}
	}
	return records, size
}

// ofAttacker sends n requests of a kind as fast as 16 connections allow, and wants each refused
// or, of a probe, answered.
func ofAttacker(t *testing.T, c *cluster, kind string, n int) {
	t.Helper()
	k := anonymousKinds[kind]
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if kind == "foreign certificate" {
		config.Certificates = []tls.Certificate{ownAuthority(t).sign(t, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})}
	}
	transport := &http.Transport{TLSClientConfig: config, DialContext: attacker.dial, MaxIdleConnsPerHost: 16}
	defer transport.CloseIdleConnections()
	var left, answered atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				req, err := http.NewRequestWithContext(t.Context(), k.method, "https://"+net.JoinHostPort(c.Address, fmt.Sprint(c.Ports.Secure))+k.path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("User-Agent", mark)
				for key, values := range k.header {
					req.Header[key] = values
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					continue // the server closes the connection of a request that is too long
				}
				if _, err := io.Copy(io.Discard, resp.Body); err == nil {
					answered.Add(1)
				}
				resp.Body.Close()
				if resp.StatusCode < 400 && kind != "probe" {
					t.Errorf("%s: got %s", kind, resp.Status)
					return
				}
			}
		})
	}
	wg.Wait()
	if answered.Load() == 0 {
		t.Errorf("%s: none of %d requests was answered", kind, n)
	}
}

// ownAuthority is a CA that the cluster does not know.
func ownAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}
