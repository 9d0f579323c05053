package health

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// credentials are the CA and the client certificate, read from their files each time, at
// most twice a second. Modification times are too coarse to detect two quick writes;
// the content is not.
type credentials struct {
	ca, cert, key string // cert and key may be empty
	log           *slog.Logger

	mu     sync.Mutex
	config *tls.Config // from the last good set; nil before the first
	sum    [sha256.Size]byte
	bad    string // the last error logged since then
}

// load returns the TLS configuration of the present files. If they are unusable, it
// returns that of the last usable ones; if there were none, the error.
func (c *credentials) load() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.reload()
	switch {
	case err == nil:
		c.bad = ""
	case c.config == nil:
		return nil, err
	case err.Error() != c.bad:
		c.bad = err.Error()
		c.log.Warn("using the last good credentials", "err", err)
	}
	return c.config, nil
}

// reload replaces config if the files have changed and are usable.
func (c *credentials) reload() error {
	var files [3][]byte
	h := sha256.New()
	for i, path := range []string{c.ca, c.cert, c.key} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files[i] = data
		fmt.Fprintf(h, "%d:", len(data))
		h.Write(data)
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	if c.config != nil && sum == c.sum {
		return nil
	}
	config, err := c.parse(files[0], files[1], files[2])
	if err != nil {
		return err
	}
	if c.config != nil {
		c.log.Info("credentials changed", "ca", c.ca, "cert", c.cert)
	}
	c.config, c.sum = config, sum
	return nil
}

// parse returns the client configuration of three PEM files.
func (c *credentials) parse(ca, cert, key []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in it", c.ca)
	}
	config := &tls.Config{
		RootCAs:    pool,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
	}
	if c.cert == "" {
		return config, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", c.cert, c.key, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}
