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

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"

	"kthwd/appliance/text"
)

// Web is what a web configuration file says, as far as kthwd must know. The file
// is exporter-toolkit's, which reads it anew for each connection and request.
type Web struct {
	TLS         bool
	ClientCerts bool // are asked for
	Users       bool // basic auth
	CertFile    string
	CAFile      string
}

// ReadWeb reads and checks a web configuration file. A file with a secret in it,
// and the key that it names, must not be readable by all.
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
	}
	if w.Users || t.TLSKey != "" {
		err = private(path)
	}
	if t.TLSKeyPath != "" {
		err = errors.Join(err, private(t.TLSKeyPath))
	}
	return w, err
}

// private refuses a secret that everybody can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o004 != 0 {
		return fmt.Errorf("%s: everybody can read it (%04o), and it holds a secret: chmod 600", path, info.Mode().Perm())
	}
	return err
}

// inFile names the file where the error does not.
func inFile(path string, err error) error {
	var in *fs.PathError
	if errors.As(err, &in) {
		return err
	}
	return fmt.Errorf("%s: %s", path, text.Line(err.Error()))
}

// serveWeb is server.Serve behind a web configuration file; "" is plain HTTP.
func serveWeb(server *http.Server, l net.Listener, path string, log *slog.Logger) error {
	if path == "" {
		return server.Serve(l)
	}
	return web.Serve(l, server, &web.FlagConfig{WebConfigFile: &path}, slog.New(quieter{log.Handler()}))
}

// quieter takes exporter-toolkit's word on what it does for debug: one line for
// each change of state is ours.
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
