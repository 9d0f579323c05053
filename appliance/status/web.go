package status

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"

	"kthwd/appliance/text"
)

// Web is the part of a web configuration file that kthwd uses itself. The file is
// exporter-toolkit's, which reads it again for each connection and request.
type Web struct {
	TLS         bool
	ClientCerts bool // client certificates are requested
	Users       bool // basic auth is required
	CertFile    string
	CAFile      string

	verifies  bool   // only certificates of clientCAs are accepted
	named     bool   // and only with one of the names that the file lists
	clientCAs []byte // PEM
}

// ReadWeb reads and checks a web configuration file. It refuses a file that holds a
// secret, or names a key file, that every user can read.
func ReadWeb(path string) (Web, error) {
	if err := web.Validate(path); err != nil {
		return Web{}, inFile(path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Web{}, err
	}
	var c web.Config
	if err := yaml.Unmarshal(text, &c); err != nil {
		return Web{}, inFile(path, err)
	}
	t := c.TLSConfig
	t.SetDirectory(filepath.Dir(path))
	w := Web{
		TLS:         t.TLSCert != "" || t.TLSCertPath != "",
		ClientCerts: t.ClientAuth != "" && t.ClientAuth != "NoClientCert",
		Users:       len(c.Users) > 0,
		CertFile:    t.TLSCertPath, CAFile: t.ClientCAs,
		verifies:  t.ClientAuth == "RequireAndVerifyClientCert",
		named:     t.ClientAllowedSans != nil,
		clientCAs: []byte(t.ClientCAsText),
	}
	if w.CAFile != "" {
		if w.clientCAs, err = os.ReadFile(w.CAFile); err != nil {
			return w, err
		}
	}
	if w.Users || t.TLSKey != "" {
		err = private(path)
	}
	if t.TLSKeyPath != "" {
		err = errors.Join(err, private(t.TLSKeyPath))
	}
	return w, err
}

// private refuses a file with a secret that every user can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o004 != 0 {
		return fmt.Errorf("%s: every user can read it (mode %04o), but it holds a secret: chmod 600", path, info.Mode().Perm())
	}
	return err
}

// inFile adds the name of the file to an error that lacks it, and takes the values of the file,
// which may be passwords, out of a parser's.
func inFile(path string, err error) error {
	var in *fs.PathError
	if errors.As(err, &in) {
		return err
	}
	said := text.Line(err.Error())
	if strings.Contains(said, "yaml: ") {
		said = text.Unquoted(said)
	}
	return fmt.Errorf("%s: %s", path, said)
}

// serveWeb is server.Serve behind a web configuration file; "" is plain HTTP.
func serveWeb(server *http.Server, l net.Listener, path string, log *slog.Logger) error {
	if path == "" {
		return server.Serve(l)
	}
	return web.Serve(l, server, &web.FlagConfig{WebConfigFile: &path}, slog.New(quieter{log.Handler()}))
}

// quieter logs exporter-toolkit's info lines at debug, because kthwd writes its own
// line for each change of state.
type quieter struct{ slog.Handler }

// Handle implements slog.Handler.
func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level <= slog.LevelInfo {
		r.Level = slog.LevelDebug
	}
	if !q.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}
